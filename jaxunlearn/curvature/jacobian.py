"""Jacobians of a scalar per example: stored rows, or products with J and its transpose without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxunlearn import _devices, _progress, _repeat, _validate
from jaxunlearn._ahead import ahead
from jaxunlearn._types import ApplyFn, Array, Params, PyTree
from jaxunlearn.curvature.selection import put, take, width

#: ``fn(params, context, example) -> scalar``; the context is shared by all examples.
ScalarFn: TypeAlias = Callable[[Params, PyTree, PyTree], Array]


@dataclasses.dataclass(frozen=True)
class LogitDirection:
    """The scalar ``v . z(x)`` of an example ``(x, v)``: a direction in the space of logits.

    The context is the network's ``model_state``; batch statistics stay as they
    are. With v = e_a - e_b it is the margin of class a over class b.
    """

    apply_fn: ApplyFn

    def __call__(self, params: Params, context: PyTree, example: PyTree) -> Array:
        x, direction = example
        logits = self.apply_fn(params, context, x[None], train=False)[0][0]
        return jnp.vdot(direction.astype(logits.dtype), logits)


def per_example_grad(fn: ScalarFn, paths: Sequence[str]) -> Callable[[Params, PyTree, PyTree], dict[str, Array]]:
    """Return a function that gives one gradient per example, as ``{path: (n, *shape)}``; pure, for any jit.

    >>> grad = per_example_grad(lambda p, _, x: p["w"] * x, ("w",))
    >>> grad({"w": jnp.float32(2.0)}, None, jnp.arange(3.0))["w"].tolist()
    [0.0, 1.0, 2.0]
    """

    def grads(params: Params, context: PyTree, examples: PyTree) -> dict[str, Array]:
        def one(chosen: dict[str, Array], example: PyTree) -> Array:
            return fn(put(params, chosen), context, example)

        return jax.vmap(jax.grad(one), in_axes=(None, 0))(take(params, paths), examples)

    return grads


@dataclasses.dataclass(frozen=True)
class Jacobian:
    """The matrix J with row i the gradient of ``fn(params, context, example_i)`` in chosen tensors.

    Stepped from the host in microbatches of one size, the last one padded: one
    compilation serves any number of examples, and no product but `rows` needs
    memory that grows with them. Columns follow the order of ``paths``. Where
    examples are sharded over devices, each differentiates its own.

    Attributes:
      fn: hashable; equal functions share compiled code.
      paths: see `select_paths`.
      microbatch_size: examples differentiated at a time on each device; 0: by device, few on
        CPU, where every core has a microbatch of its own.

    >>> J = Jacobian(lambda p, _, x: jnp.vdot(p["w"], x), ("w",))
    >>> J.rows({"w": jnp.ones(2)}, None, np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    fn: ScalarFn
    paths: tuple[str, ...]
    microbatch_size: int = 0

    def __post_init__(self) -> None:
        if self.microbatch_size == 0:
            object.__setattr__(self, "microbatch_size", 4 if jax.default_backend() == "cpu" else 64)
        _validate.positive_int("microbatch_size", self.microbatch_size)

    def rows(
        self,
        params: Params,
        context: PyTree,
        examples: PyTree,
        *,
        columns: slice = slice(None),
        out: np.ndarray | None = None,
        label: str | None = None,
    ) -> Any:
        """Return J, (n, P), or some of its columns: a NumPy array on CPU, else a JAX array.

        Args:
          params, context: arguments of ``fn``.
          examples: pytree of arrays with one leading axis of n.
          columns: which columns to keep, a slice of step 1.
          out: on CPU, a NumPy array of the result's shape and dtype to write
            to, since touching a gigabyte for the first time takes seconds.
          label: what progress is reported as, in examples.
        """
        n, total = _repeat.rows(examples), width(params, self.paths)
        kept = len(range(*columns.indices(total)))
        split, on_cpu = _devices.split_of(examples), jax.default_backend() == "cpu"
        if on_cpu and out is None:
            out = np.empty((n, kept), np.result_type(*(leaf.dtype for leaf in take(params, self.paths).values())))
        if split is not None:
            blocks = ((start, b[..., columns]) for start, b in _beside(_rows, self, split, examples, params, context))
            if out is None or not on_cpu:  # keep rows where they are
                return jnp.concatenate([block for _, block in blocks], axis=1).reshape(n, kept)
            for start, block in blocks:  # not in threads: every process must do the same in the same order
                for first, own in zip(range(start, n, n // len(block)), _devices.host(block), strict=True):
                    out[first : first + len(own)] = own
                if label is not None:
                    _progress.report(label, len(block) * (start + block.shape[1]), n)
            return out

        def piece(chunk: tuple[int, int, PyTree]) -> tuple[int, int, Array]:
            start, stop, some = chunk
            return start, stop, _repeat.call(_rows, (self,), params, context, some)[: stop - start, columns]

        chunks = microbatches(examples, self.microbatch_size)
        if out is None or not on_cpu:
            return jnp.concatenate([block for _, _, block in map(piece, chunks)])

        def write(chunk: tuple[int, int, PyTree]) -> int:
            start, stop, block = piece(chunk)
            out[start:stop] = block
            return stop

        for stop in ahead(write, chunks):
            if label is not None:
                _progress.report(label, stop, n)
        return out

    def times(self, params: Params, context: PyTree, examples: PyTree, direction: Mapping[str, Any]) -> np.ndarray:
        """Return J d, (n,), for a direction given as ``{path: tensor}``, by forward-mode products."""
        direction = {path: jnp.asarray(direction[path]) for path in self.paths}
        split = _devices.split_of(examples)
        if split is not None:
            beside = _beside(_times, self, split, examples, params, context, direction)
            return np.concatenate([_devices.host(block) for _, block in beside], axis=1).reshape(-1)
        out = [
            np.asarray(_repeat.call(_times, (self,), params, context, chunk, direction))[: stop - start]
            for start, stop, chunk in microbatches(examples, self.microbatch_size)
        ]
        return np.concatenate(out)

    def transpose_times(self, params: Params, context: PyTree, examples: PyTree, weight: Any) -> dict[str, Array]:
        """Return J^T w as ``{path: tensor}``: one backward pass over the examples.

        Args:
          params, context, examples: as in `rows`.
          weight: w, (n,).

        Raises:
          ValueError: the weight has another length than the examples.
        """
        weight = _devices.host(weight)
        _validate.same_length("examples and weight", {"examples": jax.tree.leaves(examples)[0], "weight": weight})
        weight = weight.astype(jax.tree.leaves(take(params, self.paths))[0].dtype)
        total = {path: jnp.zeros_like(leaf) for path, leaf in take(params, self.paths).items()}
        split = _devices.split_of(examples)
        if split is not None:
            own, shared = jax.device_put((examples, weight), split), (params, context)
            for at in _starts(self, split, examples):
                total = _repeat.call(_transpose_times_beside, (self, split), at, own, shared, total)
            return total
        for start, stop, (chunk, w) in microbatches((examples, weight), self.microbatch_size):
            w = np.where(np.arange(len(w)) < stop - start, w, 0)
            total = _repeat.call(_transpose_times, (self,), params, context, chunk, w, total)
        return total


def _rows(jacobian: Jacobian, params: Params, context: PyTree, chunk: PyTree) -> Array:
    grads = per_example_grad(jacobian.fn, jacobian.paths)(params, context, chunk)
    return jnp.concatenate([grads[path].reshape(jacobian.microbatch_size, -1) for path in jacobian.paths], axis=1)


def _values(jacobian: Jacobian, params: Params, context: PyTree, chunk: PyTree) -> Callable[[Any], Array]:
    def values(chosen: dict[str, Array]) -> Array:
        merged = put(params, chosen)
        return jax.vmap(lambda example: jacobian.fn(merged, context, example))(chunk)

    return values


def _times(jacobian: Jacobian, params: Params, context: PyTree, chunk: PyTree, direction: dict[str, Array]) -> Array:
    # The transpose of the transpose: networks with custom gradients have no forward mode.
    values = _values(jacobian, params, context, chunk)
    out, back = jax.vjp(values, take(params, jacobian.paths))
    (tangent,) = jax.linear_transpose(lambda weight: back(weight)[0], out)(direction)
    return cast(Array, tangent)


def _transpose_times(
    jacobian: Jacobian, params: Params, context: PyTree, chunk: PyTree, weight: Array, total: dict[str, Array]
) -> dict[str, Array]:
    values = _values(jacobian, params, context, chunk)
    grads = jax.grad(lambda chosen: jnp.vdot(weight, values(chosen)))(take(params, jacobian.paths))
    return jax.tree.map(jnp.add, total, grads)


def _starts(jacobian: Jacobian, split: NamedSharding, examples: PyTree) -> Iterator[Any]:
    """Yield where each microbatch of a device's own rows starts."""
    each = _repeat.rows(examples) // _devices.parts(split)
    return map(np.int32, range(0, each, jacobian.microbatch_size))


def _beside(
    fn: Callable[..., Array], jacobian: Jacobian, split: NamedSharding, examples: PyTree, *shared: PyTree
) -> Iterator[tuple[int, Array]]:
    """Yield (start, what ``fn`` gives for the rows from there on of each device, (devices, rows, ...))."""
    examples, each = jax.device_put(examples, split), _repeat.rows(examples) // _devices.parts(split)
    for start in _starts(jacobian, split, examples):
        block = _repeat.call(_block, (fn, jacobian, split), start, examples, *shared)
        yield int(start), block[:, : each - start]


def _block(
    fn: Callable[..., Array],
    jacobian: Jacobian,
    split: NamedSharding,
    start: Array,
    examples: PyTree,
    params: Params,
    context: PyTree,
    *more: PyTree,
) -> Array:
    def here(examples: PyTree, start: Array, params: Params, context: PyTree, *more: PyTree) -> Array:
        return fn(jacobian, params, context, _from(start, jacobian.microbatch_size, examples)[1], *more)[None]

    return _devices.beside(here, split, examples, start, params, context, *more)


def _transpose_times_beside(
    jacobian: Jacobian, split: NamedSharding, start: Array, own: PyTree, shared: PyTree, total: dict[str, Array]
) -> dict[str, Array]:
    def here(own: PyTree, start: Array, shared: PyTree) -> dict[str, Array]:
        real, (chunk, w) = _from(start, jacobian.microbatch_size, own)
        zeros = jax.tree.map(jnp.zeros_like, take(shared[0], jacobian.paths))
        params, context = shared
        sums = _transpose_times(jacobian, params, context, chunk, jnp.where(real, w, 0), zeros)
        return jax.tree.map(lambda a: a[None], sums)

    sums = _devices.beside(here, split, own, start, shared)
    return jax.tree.map(lambda t, s: t + jnp.sum(s, axis=0), total, sums)


def _from(start: Array, size: int, rows: PyTree) -> tuple[Array, PyTree]:
    """Return so many rows, whether each is there, and the last one in place of those that are not."""
    index = start + jnp.arange(size)
    return index < _repeat.rows(rows), jax.tree.map(lambda a: jnp.take(a, index, axis=0, mode="clip"), rows)


def microbatches(examples: PyTree, size: int) -> Iterator[tuple[int, int, PyTree]]:
    """Yield (start, stop, microbatch of one size): the last one repeats its last row."""
    examples = jax.tree.map(_devices.host, examples)
    n = _repeat.rows(examples)
    for start in range(0, n, size):
        stop = min(start + size, n)
        missing = start + size - stop
        yield start, stop, jax.tree.map(lambda a: _repeat_last(a[start:stop], missing), examples)


def _repeat_last(rows: np.ndarray, times: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], times, axis=0)]) if times else rows
