"""Per-example losses and what it means that an instance is forgotten; every result has shape (batch,)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxunlearn._types import Array, Batch


def cross_entropy(logits: Array, label: Array) -> Array:
    """Return -log softmax(logits)[label] per example.

    Args:
      logits: (batch, C).
      label: (batch,), int in 0..C-1.

    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(4))
    [1.3863]
    """
    return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, label)


def margin(logits: Array, label: Array) -> Array:
    """Return the label's logit less the largest other logit, per example; negative: misclassified.

    >>> margin(jnp.array([[3.0, 1.0, 0.5]]), jnp.array([0])).tolist()
    [2.0]
    """
    others = jnp.where(jax.nn.one_hot(label, logits.shape[-1], dtype=bool), -jnp.inf, logits)
    return _pick(logits, label) - jnp.max(others, axis=-1)


def ascent(logits: Array, label: Array) -> Array:
    """Return minus the cross-entropy: unbounded below, so descent on it may diverge (L2UL eq. for D_f)."""
    return -cross_entropy(logits, label)


def bounded_margin(logits: Array, label: Array, slack: Array | float = 0.0) -> Array:
    """Return ``max(margin + slack, 0)``: zero, with zero gradient, once the label lies ``slack`` below.

    >>> bounded_margin(jnp.array([[3.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0]), 0.5).tolist()
    [2.5, 0.0]
    """
    return jnp.maximum(margin(logits, label) + slack, 0.0)


def bounded_target(logits: Array, target: Array, slack: Array | float = 0.0) -> Array:
    """Return ``max(slack - margin of the target, 0)``: zero once the target leads by ``slack``."""
    return jnp.maximum(slack - margin(logits, target), 0.0)


def forgotten(logits: Array, batch: Batch, goal: str) -> Array:
    """Return a (batch,) bool: the goal holds for the instance.

    Misclassify: the label is not the argmax. Relabel: the target is. Logits
    with a NaN or infinity are never forgotten, padding (weight 0) always is.

    >>> b = Batch.of(jnp.zeros((2, 1)), [0, 1])
    >>> forgotten(jnp.array([[0.0, 1.0], [0.0, 1.0]]), b, "misclassify").tolist()
    [True, False]
    """
    predicted = jnp.argmax(logits, axis=-1)
    met = predicted != batch.y if goal == "misclassify" else predicted == batch.target
    return jnp.all(jnp.isfinite(logits), axis=-1) & met | (batch.weight == 0)


def _pick(logits: Array, label: Array) -> Array:
    return jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
