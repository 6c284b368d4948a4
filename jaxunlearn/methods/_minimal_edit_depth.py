"""Depth of the minimal edit: versions of the instances as further constraints, violated ones first."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn import inference, proxies
from jaxunlearn._types import Array, Batch
from jaxunlearn.methods import _minimal_edit_constraints as constraints

#: Fresh versions of each instance that a step looks at.
CANDIDATES = 32


class Copies(NamedTuple):
    """Versions that are constraints from now on, in arrays of fixed size.

    Attributes:
      x: (capacity, *input_shape).
      owner: place of the instance in the forget set, -1 where unused, (capacity,).
    """

    x: Array
    owner: Array


def default_margin(instances: int) -> float:
    """Return how far past the boundary versions must lie, in logits, so that unseen ones do, too.

    The more images are forgotten, the more their versions move with each other,
    and the more each further logit costs (chosen on forget sets of seed 0).

    >>> default_margin(16), default_margin(64)
    (3.0, 1.0)
    """
    return 3.0 if instances <= 32 else 1.0


def none_yet(forget: Batch, an_instance: int) -> Copies:
    """Return room for so many copies of each instance."""
    k = len(forget.y) * an_instance
    return Copies(jnp.zeros((k, *forget.x.shape[1:]), forget.x.dtype), jnp.full(k, -1, jnp.int32))


def grow(key: Array, state: Any, *, depth: str, at_most: int, margin: float) -> Copies:
    """Return the copies with, for each instance, up to ``at_most`` fresh violated ones added, the worst first.

    Where there is no room, they take the place of those that are met best.
    """
    forget = state.forget
    k, n = len(forget.y), 1 if depth == "mirror" else CANDIDATES
    fresh = proxies.copies(key, forget.x, n, depth, box=state.model.spec.box).reshape(-1, *forget.x.shape[1:])
    x, owner = np.array(state.copies.x), np.array(state.copies.owner)
    whose = np.concatenate([np.tile(np.arange(k), n), np.maximum(owner, 0)])
    logits = inference.logits(state.model, np.concatenate([fresh, x]), label="copies")
    target = np.asarray(forget.target) if state.goal == "relabel" else np.full(k, -1)
    value = constraints.largest_margin(logits, np.asarray(forget.y)[whose], target[whose])
    new, old = value[: len(fresh)], np.where(owner < 0, -np.inf, value[len(fresh) :])
    for i in range(k):
        room = np.arange(i, len(owner), k)  # the places of instance i, least needed first
        room = room[np.argsort(old[room], kind="stable")][:at_most]
        known = {x[place].tobytes() for place in np.arange(i, len(owner), k)}
        worst = [c for c in i + k * np.argsort(-new[i::k], kind="stable") if new[c] > -margin]
        for candidate in worst:
            if not len(room) or new[candidate] <= old[room[0]]:
                break
            if fresh[candidate].tobytes() not in known:
                known.add(fresh[candidate].tobytes())
                x[room[0]], owner[room[0]] = fresh[candidate], i
                room = room[1:]
    return Copies(jnp.asarray(x), jnp.asarray(owner))
