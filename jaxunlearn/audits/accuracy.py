"""Accuracies and what became of each instance: logits in, plain numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np


def accuracy(logits: Any, y: Any) -> float:
    """Return the share of instances that are given their label, in [0, 1].

    An instance whose logits hold a NaN or infinity counts as wrong.

    Args:
      logits: (n, C), or in their place (n,) labels as `jaxunlearn.inference.predictions` gives them.
      y: (n,) int labels.

    Raises:
      ValueError: for no instances, or lengths that differ.

    >>> accuracy([[2.0, 1.0], [2.0, 1.0]], [0, 1]), accuracy([0, 0], [0, 1])
    (0.5, 0.5)
    """
    return float(np.mean(_right(logits, y)))


def accuracy_by_class(logits: Any, y: Any, num_classes: int | None = None) -> list[float | None]:
    """Return the accuracy among instances of each label 0..C-1; None for a label without any.

    Args:
      logits, y: as of `accuracy`.
      num_classes: C, where labels take the place of logits.

    >>> accuracy_by_class([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [0, 1, 1])
    [1.0, 0.5, None]
    """
    right, y = _right(logits, y), np.asarray(y)
    if num_classes is None and np.ndim(logits) == 1:
        raise ValueError("num_classes is missing: labels do not say how many there are, as logits do")
    count = np.shape(logits)[1] if num_classes is None else num_classes
    return [float(np.mean(right[y == c])) if np.any(y == c) else None for c in range(count)]


def behaviour(before: Any, after: Any, y: Any) -> list[dict[str, Any]]:
    """Return what each of two models says of each instance.

    Args:
      before, after: (n, C) logits of the two models.
      y: (n,) int labels.

    Returns:
      One dict an instance, of ``label``; ``before`` and ``after``, the predicted
      labels; ``confidence_before`` and ``confidence_after``, their softmax
      probabilities; ``label_probability_before`` and ``..._after``, those of
      the label. None where the logits hold a NaN or infinity.

    >>> row, = behaviour([[0.0, 0.0, 9.0]], [[9.0, 0.0, 0.0]], [2])
    >>> row["label"], row["before"], row["after"], round(row["confidence_after"], 3)
    (2, 2, 0, 1.0)
    """
    _right(before, y), _right(after, y)
    rows = []
    for label, old, new in zip(np.asarray(y).tolist(), np.asarray(before), np.asarray(after), strict=True):
        row: dict[str, Any] = {"label": label}
        for when, logits in (("before", old), ("after", new)):
            row[when], row[f"confidence_{when}"], row[f"label_probability_{when}"] = _verdict(logits, label)
        rows.append(row)
    return rows


def _verdict(logits: np.ndarray, label: int) -> tuple[int | None, float | None, float | None]:
    if not np.isfinite(logits).all():
        return None, None, None
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    p = shifted / shifted.sum()
    return int(p.argmax()), float(p.max()), float(p[label])


def _right(logits: Any, y: Any) -> np.ndarray:
    logits, y = np.asarray(logits), np.asarray(y)
    if logits.ndim not in (1, 2) or y.shape != logits.shape[:1]:
        raise ValueError(f"logits must have shape (n, C) and y (n,); got {logits.shape} and {y.shape}")
    if len(y) == 0:
        raise ValueError("y is empty: there is nothing to measure")
    if logits.ndim == 1:
        return np.asarray(logits == y)
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise ValueError(f"y must be labels from 0 to {logits.shape[1] - 1}; got {y.min()} to {y.max()}")
    return (logits.argmax(axis=1) == y) & np.isfinite(logits).all(axis=1)
