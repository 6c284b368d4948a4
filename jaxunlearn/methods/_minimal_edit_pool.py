"""Proxies of the minimal edit: where they come from, what is held on them, and their rows."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import curvature, inference, proxies as sources
from jaxunlearn._types import Array, Artefact, Model, Problem


@dataclasses.dataclass(frozen=True)
class Proxies:
    """A pool of proxies with what the original network says of them.

    Attributes:
      x: (N, *input_shape).
      direction: first less second largest logit of the original, times N^-1/2, (N, C).
      value: that combination of the original's logits, (N,).
    """

    x: np.ndarray
    direction: np.ndarray
    value: np.ndarray

    @property
    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x, self.direction

    def drift(self, logits: np.ndarray) -> np.ndarray:
        """Return how far the held combinations have moved from the original's, (N,)."""
        return np.einsum("nc,nc->n", self.direction, logits, dtype=np.float64) - self.value


def default_size(instances: int) -> int:
    """Return how many proxies a request of so many instances gets."""
    return 1000 if instances <= 16 else 2000


def images(problem: Problem) -> Array | None:
    """Return the images to draw proxies from beside the forget set: the user's, else those from inversion."""
    if problem.public is not None:
        return jnp.asarray(problem.public)
    kept = problem.artefacts.get("proxies")
    return None if kept is None else jnp.asarray(kept.arrays["x"] if isinstance(kept, Artefact) else kept)


def draw(key: Array, state: Any, n: int) -> np.ndarray:
    """Return n fresh proxies: cut-and-paste images of the instances, half and half with other images if given."""
    mixed, other = jax.random.split(key)
    x = np.asarray(state.forget.x)
    if state.held is not None:
        x = np.concatenate([x, np.asarray(state.held.x)])
    if state.images is None:
        return sources.cutmix(mixed, x, n)
    half = max(n // 2, 1)
    pieces = [sources.cutmix(mixed, x, half), sources.augment(other, state.images, max(n - half, 1))]
    return np.concatenate(pieces)[:n]


def proxies(original: Model, pool: Array) -> Proxies:
    """Return a pool with the original network's answers."""
    x = np.asarray(pool)
    logits = inference.logits(original, x, label="proxies")
    order = np.argsort(logits, axis=1)
    eye = np.eye(logits.shape[1], dtype=np.float32)
    direction = (eye[order[:, -1]] - eye[order[:, -2]]) / np.float32(np.sqrt(len(x)))
    return Proxies(x, direction, np.einsum("nc,nc->n", direction, logits, dtype=np.float64))


def linearised_at(state: Any, pool: Proxies) -> curvature.Part:
    """Return the pool's rows to be: its examples, and the weights at the time it was drawn."""
    params = curvature.put(state.model.params, state.anchor)
    return curvature.Part(params, state.model.model_state, pool.examples)


class _Latest:
    """The rows of the latest pool, as long as that pool lives: large, and a pure function of the state."""

    def __init__(self) -> None:
        self.pool: weakref.ref[Any] | None = None
        self.jacobian: curvature.Jacobian | None = None
        self.rows: tuple[Any, np.ndarray] | None = None

    def get(self, pool: Any, jacobian: curvature.Jacobian) -> tuple[Any, np.ndarray] | None:
        same = self.pool is not None and self.pool() is pool and self.jacobian == jacobian
        return self.rows if same else None

    def set(self, pool: Any, jacobian: curvature.Jacobian, rows: tuple[Any, np.ndarray]) -> None:
        self.pool, self.jacobian, self.rows = weakref.ref(pool, lambda _: self.clear()), jacobian, rows

    def clear(self) -> None:
        self.pool = self.rows = self.jacobian = None


_latest = _Latest()


def stored(jacobian: curvature.Jacobian, pool: Array, part: curvature.Part) -> tuple[Any, np.ndarray]:
    """Return the pool's rows and their Gram matrix.

    They are kept until another pool's are wanted or this one is gone, so that
    a state stays small enough to be saved; a loaded state makes them again.
    """
    found = _latest.get(pool, jacobian)
    if found is None:
        _latest.clear()
        rows = jacobian.rows(*part, label="curvature")
        found = rows, curvature.inner_products(rows)
        _latest.set(pool, jacobian, found)
    return found
