"""Labels for targeted attacks."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn._types import Array

Targets: TypeAlias = Literal["uniform", "published"]
TARGETS: tuple[Targets, ...] = ("uniform", "published")


def random_targets(key: Array, y: Array, num_classes: int, *, scheme: Targets = "uniform") -> Array:
    """Draw a class to attack towards, independently for each label.

    "uniform": each of the other C - 1 classes equally often. "published": one
    of all C, and C // 2 where that is y itself, so that C // 2 comes about
    twice as often, and an instance of that class may get its own label
    (deviation L2UL-2).

    Args:
      key: one typed key; vmap over keys to draw each instance by its own.
      y: true labels, any shape, int in 0..C-1.
      num_classes: C, at least 2.
      scheme: "uniform" or "published".

    Returns:
      Target labels, int32, shape of y.

    Raises:
      ValueError: for C below 2, a label outside 0..C-1, another scheme.

    >>> bool(random_targets(jax.random.key(0), jnp.array(1), 2))
    False
    """
    _validate.one_of("scheme", scheme, TARGETS)
    _validate.positive_int("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, there is no other class; got {num_classes}")
    y = jnp.asarray(y)
    _validate.labels("y", jnp.atleast_1d(y), num_classes)
    if scheme == "uniform":
        target = (y + 1 + jax.random.randint(key, y.shape, 0, num_classes - 1)) % num_classes
    else:
        drawn = jax.random.randint(key, y.shape, 0, num_classes)
        target = jnp.where(drawn == y, num_classes // 2, drawn)
    return target.astype(jnp.int32)
