"""What of a network's weights is another than before, and what was put around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxunlearn import _tree, wrappers
from jaxunlearn._types import Model


def change(model: Model, original: Model) -> dict[str, float | int]:
    """Return how much of a network changed: numbers counted, bit by bit, not answers.

    Args:
      model: the classifier after forgetting, wrapped or not (`jaxunlearn.wrappers`).
      original: the one before, whose network is inside it.

    Returns:
      ``parameters``: numbers in the original's weights; ``changed``: how many of
      them are others now; ``relative_l2``: length of their change over their own
      length, at least 0; ``statistics``: how many of BatchNorm's running
      statistics are others now; ``added``: numbers that wrappers brought along.

    Raises:
      ValueError: the original is not the network inside: a tensor is missing or of another shape.

    >>> from jaxunlearn.testing import tiny_problem
    >>> model = tiny_problem().model
    >>> change(model, model)["changed"], change(model, model)["added"]
    (0, 0)
    """
    inside = wrappers.layers(model)[max(len(wrappers.layers(model)) - len(wrappers.layers(original)), 0)]
    weights = list(_pairs(original.params, inside.params))
    distance = math.sqrt(sum(float(np.sum(np.square(now - then))) for then, now in weights))
    length = math.sqrt(sum(float(np.sum(np.square(then))) for then, _ in weights))
    return {
        "parameters": _tree.size(original.params),
        "changed": _others(weights),
        "relative_l2": distance / length if length else 0.0,
        "statistics": _others(_pairs(original.model_state, inside.model_state)),
        "added": _tree.size(model.params) - _tree.size(inside.params),
    }


def _others(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    return sum(int(np.count_nonzero(now != then)) for then, now in pairs)


def _pairs(original: Any, inside: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each tensor before and after, in float64."""
    before, after = _tree.flatten_paths(original), _tree.flatten_paths(inside)
    for path in sorted({*before, *after}):
        shapes = [tuple(np.shape(found[path])) if path in found else "none" for found in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"original must be the network inside model: shape of {path} {shapes[0]}, now {shapes[1]}")
        yield np.asarray(before[path], np.float64), np.asarray(after[path], np.float64)
