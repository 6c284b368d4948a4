"""Eval-mode passes over many inputs in batches of one size, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress
from jaxunlearn._types import ApplyFn, Array, Model, Params


@partial(jax.jit, static_argnums=0)
def _forward(apply_fn: ApplyFn, params: Params, model_state: Params, x: Array) -> Array:
    return apply_fn(params, model_state, x, train=False)[0]


def logits(model: Model, x: Any, *, batch_size: int = 250, label: str = "evaluating") -> np.ndarray:
    """Return eval-mode logits, (n, C) float32 on the host.

    The last batch is padded, so that one compilation serves any n.

    Args:
      model: the classifier.
      x: (n, *input_shape), array or anything whose slices become one.
      batch_size: rows a pass.
      label: what progress is reported as.
    """
    n = len(x)
    batch_size = min(batch_size, max(n, 1))
    starts = range(0, n, batch_size)
    chunks = (x[start : start + batch_size] for start in starts)
    return logits_of_batches(model, chunks, batch_size=batch_size, total=n, label=label)


def logits_of_batches(
    model: Model, batches: Iterable[Any], *, batch_size: int, total: int | None = None, label: str = "evaluating"
) -> np.ndarray:
    """Return eval-mode logits of a stream of batches, each of at most ``batch_size`` rows."""
    out, done = [np.zeros((0, model.spec.num_classes), np.float32)], 0
    for batch in batches:
        rows = len(batch)
        x = jnp.asarray(batch)
        if rows < batch_size:
            x = jnp.pad(x, [(0, batch_size - rows)] + [(0, 0)] * (x.ndim - 1))
        out.append(np.asarray(_forward(model.apply_fn, model.params, model.model_state, x))[:rows])
        done += rows
        _progress.report(label, done, total)
    return np.concatenate(out)
