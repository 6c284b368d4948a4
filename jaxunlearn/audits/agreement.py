"""How far two models answer the same on images that neither needs labels for."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special

from jaxunlearn import _validate, inference
from jaxunlearn._types import Model


def agreement(model: Model, original: Model, x: Any) -> dict[str, float | int]:
    """Return how far a model still answers as another one does, on unlabelled images.

    It needs no data that a request may not see (cut-and-paste images of the
    forget set do), so settings can be chosen by it.

    Args:
      model: the classifier after forgetting.
      original: the one before.
      x: (n, *input_shape), inside the box of both.

    Returns:
      ``agreement``: share of images given the same label, in [0, 1]; where logits hold a NaN or infinity, none is;
      ``kl``: mean Kullback-Leibler divergence of the model's answers from the
      original's, in nats, at least 0; ``images``: n.

    Raises:
      ValueError, TypeError: the images do not fit.

    >>> from jaxunlearn.testing import tiny_problem
    >>> problem = tiny_problem()
    >>> agreement(problem.model, problem.model, problem.public)
    {'agreement': 1.0, 'kl': 0.0, 'images': 16}
    """
    _validate.inputs("x", x, original.spec)
    now, then = (inference.logits(net, x).astype(np.float64) for net in (model, original))
    same = (now.argmax(1) == then.argmax(1)) & np.isfinite(now).all(1) & np.isfinite(then).all(1)
    with np.errstate(invalid="ignore"):  # such logits make a divergence that is NaN
        now, then = (scipy.special.log_softmax(logits, axis=1) for logits in (now, then))
        kl = float((np.exp(then) * (then - now)).sum(1).mean())
    return {"agreement": float(same.mean()), "kl": kl, "images": len(then)}
