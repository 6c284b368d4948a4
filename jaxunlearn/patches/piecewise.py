"""The linear piece of a piecewise-linear network around a point, exactly, in float64.

A network of affine maps, ReLU, leaky or clipped ReLU, average and max pooling,
batch normalisation in eval mode is affine on polytopes. The program that JAX
traces of it is walked once: every comparison between values that depend on the
input gives one sign that must stay as it is, and what is neither affine nor a
comparison is refused by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxunlearn._types import ApplyFn, Array, Model, Params

#: Inputs differentiated at a time.
CHUNK = 64
#: A condition is degenerate if the point is closer than this to where it changes, in units of the box.
DEGENERATE = 1e-9

_AFFINE = {
    "add", "sub", "neg", "add_any", "reduce_sum", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose",
    "pad", "slice", "concatenate", "rev", "convert_element_type", "copy", "copy_p", "reduce_window_sum", "cumsum",
    "optimization_barrier", "real", "split", "reduce_precision", "device_put", "sharding_constraint",
}  # fmt: skip
#: Affine in one operand while the others do not depend on the input.
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
#: Affine in the first operands while the rest (denominator, indices) do not depend on the input.
_BY_FIRST = {"div": 1, "gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}
_COMPARED = {"ge", "gt", "le", "lt"}
#: Operations that are a program of their own -> where it is.
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "remat2", "checkpoint"), "jaxpr"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "closed_call", "core_call"), "call_jaxpr"),
}


class NotPiecewiseLinearError(ValueError):
    """The network has an operation that is neither affine nor a comparison; the message names it."""


class Piece(NamedTuple):
    """A network around one point x, on flattened inputs; float64.

    Attributes:
      normals, offsets: (m, n) and (m,), the piece is ``normals x <= offsets``; rows have unit length.
      slope, shift: (C, n) and (C,), the logits there are ``slope x + shift``.
      nearest: distance from x to the nearest face; at 0 x lies between pieces, and this is one of them.
    """

    normals: np.ndarray
    offsets: np.ndarray
    slope: np.ndarray
    shift: np.ndarray
    nearest: float


def linear_piece(model: Model, x: Any) -> Piece:
    """Return the linear piece of a network that holds a point.

    A point on a face between pieces gets one of the pieces that touch it, with ``nearest`` 0.

    Args:
      model: a piecewise-linear network, in eval mode; its weights are taken to float64.
      x: one input, (*input_shape).

    Raises:
      NotPiecewiseLinearError: it is not piecewise linear; the operation is named.
      ValueError: the network does not compute in float64, so that nothing exact can be said.

    >>> net = lambda params, state, x, *, train=False, rngs=None: (jax.nn.relu(x) @ params["w"], state)
    >>> from jaxunlearn._types import ModelSpec
    >>> spec = ModelSpec(num_classes=1, input_shape=(2,), box=(-1.0, 1.0))
    >>> piece = linear_piece(Model(params={"w": np.ones((2, 1))}, model_state={}, apply_fn=net, spec=spec), [0.5, -0.5])
    >>> (piece.normals + 0.0).tolist(), piece.slope.tolist(), piece.nearest
    ([[-1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], 0.5)
    """
    low, high = model.spec.box
    point = np.asarray(x, np.float64)
    found = _signs(model, point)
    nearest = found.distances.min(initial=np.inf)
    if nearest <= DEGENERATE * (high - low):
        beyond = found.distances[found.distances > DEGENERATE * (high - low)].min(initial=high - low)
        step = np.random.RandomState(0).uniform(-1, 1, point.shape)
        inward = np.where(point <= low, np.abs(step), np.where(point >= high, -np.abs(step), step))
        found = _signs(model, point + inward * beyond / (4 * np.linalg.norm(inward)))
        nearest = 0.0
    slope, logits = found.slope, found.logits
    at = found.point.ravel()
    return Piece(found.normals, found.distances + found.normals @ at, slope, logits - slope @ at, float(nearest))


def count_conditions(model: Model) -> int:
    """Return how many signs the linear pieces of a network are bounded by, m; by its shapes alone.

    Raises:
      NotPiecewiseLinearError: see `linear_piece`.
    """
    leaves, tree = jax.tree.flatten((dict(model.params), dict(model.model_state)))
    shapes = tuple((tuple(np.shape(leaf)), np.dtype(leaf.dtype).name) for leaf in leaves)
    apply_fn: Any = model.apply_fn
    return _count(apply_fn, shapes, tree, model.spec.input_shape)


@lru_cache(maxsize=32)
def _count(apply_fn: ApplyFn, shapes: tuple[Any, ...], tree: Any, input_shape: tuple[int, ...]) -> int:
    params, state = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    x = jax.ShapeDtypeStruct(input_shape, np.float32)
    conditions, _ = jax.eval_shape(partial(_conditions, apply_fn), params, state, x)
    return int(conditions.size)


class _Signs(NamedTuple):
    """Conditions at a point: unit normals that point out of the piece, distances to the faces, logits and slope."""

    point: np.ndarray
    normals: np.ndarray
    distances: np.ndarray
    logits: np.ndarray
    slope: np.ndarray


def _signs(model: Model, point: np.ndarray) -> _Signs:
    with jax.enable_x64(True):
        wide: Callable[[Any], np.ndarray] = lambda leaf: np.asarray(leaf, np.float64)  # noqa: E731
        params, state = jax.tree.map(wide, (dict(model.params), dict(model.model_state)))
        values, logits, by_value, slope = jax.tree.map(np.asarray, _jacobian(model.apply_fn, params, state, point))
    if logits.dtype != np.float64:
        raise ValueError(f"the network computes in {logits.dtype} whatever its weights are; exact regions need float64")
    size = np.linalg.norm(by_value, axis=1)
    # A value without slope does not change on the piece. A slope that is small beside the others may be rounding, or
    # the scale of its layer: it has a face unless it cannot take its value to zero within the box.
    low, high = model.spec.box
    reach = (1 + 1e-6) * (high - low) * np.abs(by_value).sum(axis=1)
    real = (size > 1e-12 * max(size.max(initial=0.0), 1.0)) | ((size > 0) & (np.abs(values) <= reach))
    size, values, by_value = size[real], values[real], by_value[real]
    signs = np.where(values < 0, -1.0, 1.0)
    return _Signs(point, -by_value * (signs / size)[:, None], np.abs(values) / size, logits, slope)


@partial(jax.jit, static_argnums=0)
def _jacobian(apply_fn: ApplyFn, params: Params, state: Params, x: Array) -> tuple[Array, ...]:
    fn = partial(_conditions, apply_fn, params, state)
    (values, logits), push = jax.linearize(fn, x)
    tangents = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    chunks = [jax.vmap(push)(tangents[start : start + CHUNK]) for start in range(0, x.size, CHUNK)]
    by_value, slope = (jnp.concatenate(parts).T for parts in zip(*chunks, strict=True))
    return values, logits, by_value, slope


def _conditions(apply_fn: ApplyFn, params: Params, state: Params, x: Array) -> tuple[Array, Array]:
    """Return every value whose sign must stay, (m,), and the logits, (C,), at one input."""
    weights, tree = jax.tree.flatten((params, state))

    def logits(x: Array, *weights: Array) -> Array:
        params, state = jax.tree.unflatten(tree, weights)
        return apply_fn(params, state, x[None], train=False)[0][0]

    closed = jax.make_jaxpr(logits)(x, *weights)
    found: list[Array] = []
    (out,) = _walk(closed.jaxpr, closed.consts, [(x, True), *((leaf, False) for leaf in weights)], found)
    flat = [jnp.ravel(part) for part in found]
    return (jnp.concatenate(flat) if flat else jnp.zeros(0, x.dtype)), out[0]


def _walk(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[tuple[Any, bool]], found: list[Array]
) -> list[tuple[Any, bool]]:
    """Evaluate a program on (value, whether it depends on the input) pairs; append what is compared to ``found``."""
    env: dict[Any, tuple[Any, bool]] = dict(zip(jaxpr.constvars, ((const, False) for const in consts), strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        pairs = [(var.val, False) if isinstance(var, jex.Literal) else env[var] for var in eqn.invars]
        env |= dict(zip(eqn.outvars, _step(eqn, pairs, found), strict=True))
    return [(var.val, False) if isinstance(var, jex.Literal) else env[var] for var in jaxpr.outvars]


def _step(eqn: Any, pairs: list[tuple[Any, bool]], found: list[Array]) -> list[tuple[Any, bool]]:
    name, values, depends = eqn.primitive.name, [value for value, _ in pairs], [flag for _, flag in pairs]
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]]
        return _walk(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), pairs, found)
    out = eqn.primitive.bind(*values, **eqn.params)
    outs = list(out) if eqn.primitive.multiple_results else [out]
    if not any(depends):
        return [(value, False) for value in outs]
    locally_constant = _compare(eqn, values, depends, found)
    if locally_constant is None:
        affine = (
            name in _AFFINE
            or (name in _PRODUCTS and sum(depends) == 1)
            or (name in _BY_FIRST and not any(depends[_BY_FIRST[name] :]))
            or (name == "select_n" and not depends[0])
            or (name == "integer_pow" and eqn.params["y"] == 1)
        )
        if not affine:
            raise NotPiecewiseLinearError(f"the network is not piecewise linear: it has the operation {name!r}")
    return [(value, not locally_constant) for value in outs]


def _compare(eqn: Any, values: list[Any], depends: list[bool], found: list[Array]) -> bool | None:
    """Append what an operation compares; True if its result stays constant on the piece, None for no comparison."""
    name = eqn.primitive.name
    if name in ("max", "min") or name in _COMPARED:
        found.append(jnp.subtract(*values))
    elif name in ("abs", "sign"):
        found.append(values[0])
    elif name == "clamp":
        found.extend((values[1] - values[0], values[2] - values[1]))
    elif name in ("reduce_max", "reduce_min"):
        axes = eqn.params["axes"]
        rows = jnp.moveaxis(values[0], axes, range(-len(axes), 0))
        found.append(_races(rows.reshape(*rows.shape[: rows.ndim - len(axes)], -1), name == "reduce_max"))
    elif name in ("reduce_window_max", "reduce_window_min"):
        found.append(_races(_windows(values[0], eqn.params), name == "reduce_window_max"))
    else:
        return None
    return name in _COMPARED or name == "sign"


def _races(rows: Array, largest: bool) -> Array:
    """Return by how much the winner of each row leads each other entry; 0 for itself, a constant for padding."""
    rows = rows if largest else -rows
    first = jnp.argmax(rows, axis=-1, keepdims=True)
    lead = jnp.take_along_axis(rows, first, axis=-1) - rows
    return jnp.where(jnp.isfinite(rows), lead, 1)


def _windows(x: Array, params: Any) -> Array:
    """Return what each window of a pooling operation sees, (*out, window)."""
    if any(step != 1 for step in params["base_dilation"]):
        raise NotPiecewiseLinearError(
            "the network is not piecewise linear as far as known: it pools with base dilation"
        )
    fill = -jnp.inf if x.dtype == jnp.float64 or jnp.issubdtype(x.dtype, jnp.inexact) else 0
    padded = jnp.pad(x, params["padding"], constant_values=fill)
    along = []
    for size, window, stride, dilation in zip(
        padded.shape, params["window_dimensions"], params["window_strides"], params["window_dilation"], strict=True
    ):
        starts = np.arange(0, size - (window - 1) * dilation, stride)
        along.append(starts[:, None] + dilation * np.arange(window))
    offsets = itertools.product(*(range(index.shape[1]) for index in along))
    views = [padded[np.ix_(*(index[:, at] for index, at in zip(along, offset, strict=True)))] for offset in offsets]
    return jnp.stack(views, axis=-1)
