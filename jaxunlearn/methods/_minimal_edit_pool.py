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

    def row_bytes(self, model: Model, paths: tuple[str, ...]) -> int:
        """Return the memory that the pool's Jacobian rows need."""
        return 4 * len(self.x) * curvature.width(model.params, paths)


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


class _Latest:
    """The rows of the latest pool, as long as that pool lives: large, and a pure function of the state."""

    def __init__(self) -> None:
        self.pool: weakref.ref[Any] | None = None
        self.key: Any = None
        self.rows: tuple[Any, np.ndarray] | None = None

    def get(self, pool: Any, key: Any) -> tuple[Any, np.ndarray] | None:
        return self.rows if self.pool is not None and self.pool() is pool and self.key == key else None

    def set(self, pool: Any, key: Any, rows: tuple[Any, np.ndarray]) -> None:
        self.pool, self.key, self.rows = weakref.ref(pool, lambda _: self.clear()), key, rows

    def clear(self) -> None:
        self.pool = self.rows = self.key = None


_latest = _Latest()


def linearise(jacobian: curvature.Jacobian, state: Any, pool: Proxies) -> tuple[Any, np.ndarray]:
    """Return the pool's rows and their Gram matrix, at the weights where it was drawn.

    They are kept until another pool is linearised or this one is gone, so that
    a state stays small enough to be saved; a loaded state makes them again.
    """
    found = _latest.get(state.pool, jacobian)
    if found is None:
        _latest.clear()
        params = curvature.put(state.model.params, state.anchor)
        rows = jacobian.rows(params, state.model.model_state, pool.examples, label="curvature")
        found = rows, curvature.inner_products(rows)
        _latest.set(state.pool, jacobian, found)
    return found
