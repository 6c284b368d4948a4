"""A Kronecker-factored metric on weight tensors, and functions seen in coordinates where it is the identity.

Rows of a few hundred examples say nothing of most directions in weight space;
a metric says which of those are cheap. As in Shampoo (Gupta et al. 2018) and
K-FAC (Martens & Grosse 2015), the second moment of a tensor's per-example
gradients is taken to be a Kronecker product, so it is known from few examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _repeat, _validate
from jaxunlearn._ahead import ahead
from jaxunlearn._types import Array, Params, PyTree
from jaxunlearn.curvature.jacobian import Jacobian, ScalarFn, microbatches, per_example_grad
from jaxunlearn.curvature.selection import put, take

#: For each tensor, what multiplies it from the left and from the right: (r, r) and (c, c), or diagonals.
Metric: TypeAlias = dict[str, tuple[Array, Array]]

#: Sides longer than this get a diagonal factor: what a matrix would cost grows with their cube.
MAX_SIDE = 1024


def second_moments(jacobian: Jacobian, params: Params, context: PyTree, examples: PyTree) -> Metric:
    """Return for each tensor, seen as a matrix G (all axes but the last, last), the means of G G^T and G^T G.

    One backward pass; holds the gradients of one microbatch at a time.

    Args:
      jacobian: whose rows are meant.
      params, context, examples: as in `Jacobian.rows`.
    """
    n = _repeat.rows(examples)
    total: Any = None
    parts = ahead(
        lambda chunk: _repeat.call(_moments, (jacobian,), params, context, chunk[2], np.int32(chunk[1] - chunk[0])),
        microbatches(examples, jacobian.microbatch_size),
    )
    for part in parts:
        part = jax.tree.map(np.asarray, part)  # added on the host: adding compiles for every shape
        total = part if total is None else jax.tree.map(np.add, total, part)
    return cast(Metric, jax.tree.map(lambda leaf: leaf / n, total))


def inverse_root(moments: Metric, *, ridge: float = 1e-2) -> Metric:
    """Return the factors of ``S^(-1/2)`` for the metric ``S = (L kron R) / trace(L)`` of each tensor.

    L and R are its moments; S has the trace of the true second moment, so
    tensors keep their scales against each other. Where all gradients are zero
    nothing is known, and S is the identity.

    Args:
      moments: see `second_moments`.
      ridge: added to the eigenvalues of each factor, relative to their mean.

    Raises:
      ValueError: ridge not above 0.
    """
    _validate.in_range("ridge", ridge, np.finfo(np.float64).tiny)
    return {path: _inverse_root(*factors, ridge) for path, factors in moments.items()}


def scale(metric: Metric, tensors: Mapping[str, Any]) -> dict[str, Array]:
    """Return ``left @ G @ right`` of each tensor G seen as a matrix; pure.

    >>> half = {"w": (jnp.full(2, 0.5), jnp.eye(3))}
    >>> scale(half, {"w": jnp.ones((2, 3))})["w"].tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    return _repeat.call(_scaled, (), {path: metric[path] for path in tensors}, dict(tensors))  # one compilation


def _scaled(metric: Metric, tensors: Mapping[str, Any]) -> dict[str, Array]:
    return {path: _scale(*metric[path], tensor) for path, tensor in tensors.items()}


@dataclasses.dataclass(frozen=True)
class Whitened:
    """A scalar function in coordinates d: ``fn(params + S^(-1/2) d, context, example)``.

    Its first argument is ``{path: d}``, see `origin`; its context is ``(params,
    context, metric)``. A Euclidean step in d is a step of the metric in weights.
    """

    fn: ScalarFn

    def __call__(self, coordinates: Params, context: PyTree, example: PyTree) -> Array:
        params, inner, metric = context
        chosen = take(params, tuple(coordinates))
        moved = jax.tree.map(jnp.add, chosen, _scaled(metric, coordinates))
        return self.fn(put(params, moved), inner, example)


def origin(params: Params, paths: tuple[str, ...]) -> dict[str, Array]:
    """Return the coordinates of the weights themselves: zeros."""
    return jax.tree.map(jnp.zeros_like, take(params, paths))


def _matrix(tensor: Array) -> Array:
    return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)


def _scale(left: Array, right: Array, tensor: Array) -> Array:
    matrix = _matrix(tensor)
    matrix = left @ matrix if left.ndim == 2 else left[:, None] * matrix
    matrix = matrix @ right if right.ndim == 2 else matrix * right[None]
    return matrix.reshape(tensor.shape)


def _moments(jacobian: Jacobian, params: Params, context: PyTree, chunk: PyTree, count: Array) -> Metric:
    grads = per_example_grad(jacobian.fn, jacobian.paths)(params, context, chunk)
    real = (jnp.arange(jacobian.microbatch_size) < count).astype(jnp.float32)
    return {path: _outer(grad * real.reshape(-1, *[1] * (grad.ndim - 1))) for path, grad in grads.items()}


def _outer(grad: Array) -> tuple[Array, Array]:
    g = jax.vmap(_matrix)(grad)
    left = jnp.einsum("nrc,nsc->rs", g, g) if g.shape[1] <= MAX_SIDE else jnp.einsum("nrc,nrc->r", g, g)
    right = jnp.einsum("nrc,nrd->cd", g, g) if g.shape[2] <= MAX_SIDE else jnp.einsum("nrc,nrc->c", g, g)
    return left, right


def _inverse_root(left: Array, right: Array, ridge: float) -> tuple[Array, Array]:
    trace = float(np.trace(left) if left.ndim == 2 else np.sum(left))
    if trace == 0:
        return jnp.ones(left.shape[0]), jnp.ones(right.shape[0])
    first, second = (_root_of_inverse(np.asarray(factor, np.float64), ridge) for factor in (left, right))
    return jnp.asarray(first * np.sqrt(trace), left.dtype), jnp.asarray(second, right.dtype)


def _root_of_inverse(factor: np.ndarray, ridge: float) -> np.ndarray:
    if factor.ndim == 1:
        return np.asarray((factor + ridge * factor.mean()) ** -0.5)
    values, vectors = np.linalg.eigh(factor)
    values = np.maximum(values, 0)
    root: np.ndarray = (vectors * (values + ridge * values.mean()) ** -0.5) @ vectors.T
    return root
