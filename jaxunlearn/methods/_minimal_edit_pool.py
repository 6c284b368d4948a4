"""Proxies of the minimal edit: where they come from, what is held on them, and their rows."""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import curvature, inference, proxies as sources
from jaxunlearn._types import Array, Artefact, Model, Params, Problem

#: Proxies that the metric is estimated from, at least, where there are so many.
SAMPLE = 64


class Pool(NamedTuple):
    """Proxies with what the original network says of them.

    Attributes:
      x: (N, *input_shape).
      logits: of the original network, (N, C).
    """

    x: Array
    logits: Array

    @property
    def direction(self) -> np.ndarray:
        """What is held: the original's first less second largest logit, times N^-1/2, as directions, (N, C)."""
        order = np.argsort(np.asarray(self.logits), axis=1)
        eye = np.eye(order.shape[1], dtype=np.float32)
        held: np.ndarray = (eye[order[:, -1]] - eye[order[:, -2]]) / np.float32(np.sqrt(len(order)))
        return held

    def drift(self, logits: np.ndarray) -> np.ndarray:
        """Return how far the held combinations have moved from the original's, (N,)."""
        return np.einsum("nc,nc->n", self.direction, logits - np.asarray(self.logits), dtype=np.float64)


def default_size(constraints: int) -> int:
    """Return how many proxies a request of so many constraints, at most, gets.

    >>> [default_size(k) for k in (1, 64, 256, 1024)]
    [500, 500, 1000, 2000]
    """
    return 500 if constraints <= 64 else 1000 if constraints <= 256 else 2000


def images(problem: Problem) -> Array | None:
    """Return the images to draw proxies from beside the forget set: the user's, else those from inversion."""
    if problem.public is not None:
        return jnp.asarray(problem.public)
    kept = problem.artefacts.get("proxies")
    return None if kept is None else jnp.asarray(kept.arrays["x"] if isinstance(kept, Artefact) else kept)


def empty(model: Model, n: int) -> Pool:
    """Return a pool of the right shapes with nothing in it."""
    return Pool(jnp.zeros((n, *model.spec.input_shape)), jnp.zeros((n, model.spec.num_classes)))


def draw(key: Array, state: Any) -> Pool:
    """Return fresh proxies: cut-and-paste images of the instances, half and half with other images if given.

    Where versions of the instances are to be forgotten, too, other images
    only: cut-and-paste images would hold the neighbourhood to its old answer.
    """
    mixed, other = jax.random.split(key)
    n = len(state.pool.x)
    cut = n if state.images is None else 0 if state.copies is not None else max(n // 2, 1)
    pieces = []
    if cut:
        x = np.asarray(state.forget.x)
        if state.held is not None:
            x = np.concatenate([x, np.asarray(state.held.x)])
        pieces.append(sources.cutmix(mixed, x, cut))
    if cut < n:
        pieces.append(sources.augment(other, state.images, n - cut))
    made = np.concatenate(pieces)
    return Pool(jnp.asarray(made), jnp.asarray(inference.logits(state.original, made, label="proxies")))


class _Latest(threading.local):
    """What the latest pool's gradients gave, as long as that pool lives: large, and a pure function of the state."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.pool: weakref.ref[Any] | None = None
        self.jacobian: curvature.Jacobian | None = None
        self.metric: curvature.Metric = {}
        self.rows: Any = None
        self.gram = np.zeros((0, 0))

    def is_of(self, jacobian: curvature.Jacobian, pool: Pool) -> bool:
        return self.pool is not None and self.pool() is pool.x and self.jacobian == jacobian

    def seal(self, jacobian: curvature.Jacobian, pool: Pool) -> None:
        """Say whose it is, once all is there: an interrupted computation is nobody's."""
        self.jacobian, self.pool = jacobian, weakref.ref(pool.x, lambda _: self.clear())


_metric, _rows = _Latest(), _Latest()


def metric(jacobian: curvature.Jacobian, pool: Pool, params: Params, model_state: Params) -> curvature.Metric:
    """Return what makes the pool's gradients about white, from a quarter of them; kept as `stored` keeps rows."""
    if not _metric.is_of(jacobian, pool):
        _metric.clear()
        some = slice(None, None, max(min(len(pool.x) // SAMPLE, 4), 1))
        moments = curvature.second_moments(jacobian, params, model_state, (pool.x[some], pool.direction[some]))
        _metric.metric = curvature.inverse_root(moments)
        _metric.seal(jacobian, pool)
    return _metric.metric


def stored(jacobian: curvature.Jacobian, pool: Pool, part: curvature.Part) -> tuple[Any, np.ndarray]:
    """Return the pool's rows and their Gram matrix.

    They are kept until another pool's are wanted, this one is gone or `drop_rows`
    is called, so that a state stays small enough to be saved; a loaded state
    makes them again.
    """
    if not _rows.is_of(jacobian, pool):
        old, shape = _rows.rows, (len(pool.x), curvature.width(part.params, jacobian.paths))
        usable = isinstance(old, np.ndarray) and old.shape == shape and old.dtype == np.float32
        _rows.clear()
        _rows.rows = jacobian.rows(*part, out=old if usable else None, label="curvature")
        _rows.gram = curvature.inner_products(_rows.rows)
        _rows.seal(jacobian, pool)
    return _rows.rows, _rows.gram


def drop_rows() -> None:
    """Let go of what `metric` and `stored` keep: the run is over."""
    _metric.clear()
    _rows.clear()
