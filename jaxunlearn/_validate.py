"""Argument checks in one place: each raises with the argument's name and value."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn import _devices
from jaxunlearn._types import GOALS, Batch, ModelSpec


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise ValueError unless the value is one of those allowed.

    >>> one_of("norm", "l3", ("l2", "linf"))
    Traceback (most recent call last):
    ValueError: norm must be one of 'l2', 'linf'; got 'l3'
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def positive_int(name: str, value: Any) -> None:
    """Raise unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def in_range(name: str, value: Any, low: float | None = None, high: float | None = None) -> None:
    """Raise ValueError for a number that is not finite or outside [low, high]; skip traced values."""
    if isinstance(value, jax.core.Tracer):
        return
    number = _devices.host(value)
    if not np.issubdtype(number.dtype, np.number) and not isinstance(value, jax.Array):
        raise TypeError(f"{name} must be a number; got {value!r}")
    bounds = (
        f"in [{'-inf' if low is None else low:g}, {'inf' if high is None else high:g}]"
        if (low is not None and high is not None)
        else (f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else "finite")
    )
    finite = np.all(np.isfinite(number))
    if not finite or (low is not None and np.any(number < low)) or (high is not None and np.any(number > high)):
        raise ValueError(f"{name} must be {bounds}; got {value}")


def inputs(name: str, x: Any, spec: ModelSpec) -> None:
    """Raise unless x is a batch of the model's inputs, finite and inside its box; skip traced values."""
    shape = tuple(np.shape(x))
    if len(shape) != len(spec.input_shape) + 1 or shape[1:] != spec.input_shape:
        raise ValueError(f"{name} must have shape (batch, {', '.join(map(str, spec.input_shape))}); got {shape}")
    if isinstance(x, jax.core.Tracer) or shape[0] == 0:
        return
    values = _devices.host(x)
    bad = ~np.isfinite(values.reshape(shape[0], -1)).all(axis=1)
    if bad.any():
        raise ValueError(f"{name} has NaN or infinite values in row {int(bad.argmax())}")
    low, high = spec.box
    if values.min() < low - 1e-6 or values.max() > high + 1e-6:
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}]; got values from {values.min():g} to {values.max():g}"
            " (are the images scaled or normalised twice, or not at all?)"
        )


def labels(name: str, y: Any, num_classes: int) -> None:
    """Raise ValueError for a label outside 0..C-1; skip traced values."""
    if isinstance(y, jax.core.Tracer):
        return
    values = _devices.host(y)
    bad = (values < 0) | (values >= num_classes)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name} must be labels from 0 to {num_classes - 1}; got {values[row]} in row {row}")


def forget_set(forget: Batch, spec: ModelSpec, goal: str) -> None:
    """Raise unless a forget set fits the model and the goal: shapes, box, labels, targets."""
    one_of("goal", goal, GOALS)
    if np.shape(forget.x)[0] == 0:
        raise ValueError("the forget set is empty: name at least one instance")
    inputs("forget.x", forget.x, spec)
    same_length("forget", {name: getattr(forget, name) for name in forget._fields})
    labels("forget.y", forget.y, spec.num_classes)
    if goal == "relabel" and not isinstance(forget.target, jax.core.Tracer):
        labels("forget.target", forget.target, spec.num_classes)
        target = _devices.host(forget.target)
        same = target == _devices.host(forget.y)
        if same.any():
            row = int(same.argmax())
            raise ValueError(
                f"forget.target must differ from the true label; row {row} asks for {int(target[row])}, its own"
            )


def same_length(name: str, arrays: dict[str, Any]) -> None:
    """Raise ValueError unless all arrays have one length."""
    lengths = {key: int(np.shape(value)[0]) for key, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} must have fields of one length; got {lengths}")


def unique(name: str, values: Sequence[Any]) -> None:
    """Raise ValueError naming the first value that occurs twice."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{name} must not repeat; got {value!r} twice")
        seen.add(value)
