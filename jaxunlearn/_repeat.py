"""Run a step many times: from the host, or inside one loop on the device.

On CPU, XLA leaves the gradient convolutions of a loop body in a slow form, so
there a loop is better stepped from the host; elsewhere it lives on the device.
Both forms run the same steps in the same order.

Nothing here retraces when called again: functions are module-level (or hash
and compare equal), what selects code goes through ``statics``, what varies
through arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn import _devices, _journal, _progress, _validate
from jaxunlearn._ahead import A_CORE, ahead
from jaxunlearn._types import PyTree

Loop: TypeAlias = Literal["auto", "host", "device"]
Chunks: TypeAlias = Literal["whole", "spread", "own"]
LOOPS: tuple[Loop, ...] = ("auto", "host", "device")


def is_traced(*trees: PyTree) -> bool:
    """Return whether any leaf is a tracer, that is, whether we are under jit, vmap or grad."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def on_host(*trees: PyTree, loop: Loop = "auto") -> bool:
    """Return whether a loop over these values is stepped from the host.

    Args:
      *trees: the values that the loop works on.
      loop: "host", "device", or "auto": the host on CPU, the device elsewhere
        and wherever a value is traced.

    Raises:
      ValueError: for another loop, or "host" with traced values.

    >>> on_host(jnp.zeros(2), loop="device")
    False
    """
    _validate.one_of("loop", loop, LOOPS)
    traced = is_traced(*trees)
    if loop == "host" and traced:
        raise ValueError("loop='host' cannot run under jit, vmap or grad; use loop='auto' or 'device'")
    return loop == "host" or (loop == "auto" and not traced and jax.default_backend() == "cpu")


@partial(jax.jit, static_argnums=(0, 1))
def call(fn: Callable[..., Any], statics: tuple[Any, ...], *args: PyTree) -> Any:
    """Return ``fn(*statics, *args)``, compiled once for equal functions, statics and shapes.

    >>> int(call(jnp.add, (), 1, 2))
    3
    """
    return fn(*statics, *args)


def repeat(
    body: Callable[..., PyTree],
    n: int,
    carry: PyTree,
    *consts: PyTree,
    statics: tuple[Any, ...] = (),
    loop: Loop = "auto",
    label: str | None = None,
    done: int = 0,
    total: int | None = None,
) -> PyTree:
    """Return the carry after n steps ``carry = body(*statics, i, carry, *consts)``, i = 0..n-1.

    Args:
      body: hashable; i is an int32 scalar, traced.
      n: number of steps, a Python int.
      carry: pytree whose structure, shapes and dtypes the body keeps.
      *consts: pytrees that the body reads.
      statics: hashable leading arguments of the body.
      loop: see `on_host`.
      label: what progress is reported as; the host form reports after each step.
      done, total: where this call stands in larger work, in steps.

    Raises:
      ValueError: for a negative n or a loop that cannot be.

    >>> int(repeat(jnp.add, 4, jnp.int32(0)))  # 0 + 1 + 2 + 3
    6
    """
    if n < 0:
        raise ValueError(f"n must be at least 0; got {n}")
    if not on_host(carry, consts, loop=loop):
        return call(_device_repeat, (body, n, statics), carry, *consts)
    with _journal.work(label or "repeat") as work:
        first, carry, _ = work.resume(carry)
        for i in range(first, n):
            carry = call(body, statics, np.int32(i), carry, *consts)
            if label is not None:
                jax.block_until_ready(carry)  # dispatch runs ahead; report what is done
                _progress.report(label, done + i + 1, n if total is None else total)
            work.keep(i + 1, carry)
    return carry


def _device_repeat(
    body: Callable[..., PyTree], n: int, statics: tuple[Any, ...], carry: PyTree, *consts: PyTree
) -> PyTree:
    return jax.lax.fori_loop(0, n, lambda i, carry: body(*statics, i, carry, *consts), carry)


def fold(
    body: Callable[..., PyTree],
    carry: PyTree,
    xs: PyTree,
    *consts: PyTree,
    microbatch_size: int,
    statics: tuple[Any, ...] = (),
    exact: bool = False,
    chunks: Chunks = "whole",
    loop: Loop = "auto",
    label: str | None = None,
) -> PyTree:
    """Return the carry after ``carry = body(*statics, carry, chunk, *consts)`` for each microbatch.

    Chunks are consecutive rows, in order.

    Args:
      body: hashable, see `repeat`.
      carry: pytree whose structure, shapes and dtypes the body keeps.
      xs: pytree of arrays with one leading axis of n >= 1 rows.
      *consts: pytrees that the body reads.
      microbatch_size: rows of a chunk; fewer where n is smaller, see `chunk_size`.
      statics: hashable leading arguments of the body.
      exact: cut the last chunk short (one more compilation) instead of padding it with zeros.
      chunks: where rows are split over devices, "whole" has each chunk on every device (see `microbatch`), "spread"
        splits it over them, if its rows are a multiple of them, and "own" joins a chunk of each device's own rows.
      loop: see `on_host`.
      label: what progress is reported as, in chunks.

    Raises:
      ValueError: where xs is empty, lengths differ or the size is below 1.
    """
    xs = jax.tree.map(jnp.asarray, xs)
    split = _devices.split_of(xs) if chunks != "whole" else None
    n = rows(xs) // (_devices.parts(split) if chunks == "own" else 1)
    size = chunk_size(n, microbatch_size, exact=exact)
    kept = n - n % size if exact else n
    whole, total = -(-kept // size), -(-n // size)
    tail = None if whole == total else jax.tree.map(lambda a: a[kept:], xs)
    cut = (size, split, chunks == "own" and split is not None)
    if not on_host(carry, xs, consts, loop=loop):
        carry = call(_device_fold, (body, statics, whole, cut), carry, xs, *consts)
        return carry if tail is None else call(body, statics, carry, tail, *consts)
    with _journal.work(label or "fold") as work:
        done, carry, _ = work.resume(carry)
        for c in range(done, total):
            chunk = call(_cut, cut, xs, np.int32(c)) if c < whole else tail
            carry = call(body, statics, carry, chunk, *consts)
            if label is not None:
                jax.block_until_ready(carry)  # dispatch runs ahead; report what is done
                _progress.report(label, c + 1, total)
            work.keep(c + 1, carry)
    return carry


def _device_fold(
    body: Callable[..., PyTree],
    statics: tuple[Any, ...],
    whole: int,
    cut: tuple[int, NamedSharding | None, bool],
    carry: PyTree,
    xs: PyTree,
    *consts: PyTree,
) -> PyTree:
    def step(c: Any, carry: PyTree) -> PyTree:
        return body(*statics, carry, _cut(*cut, xs, c), *consts)

    return jax.lax.fori_loop(0, whole, step, carry)


def _cut(size: int, split: NamedSharding | None, own: bool, xs: PyTree, c: Any) -> PyTree:
    if split is not None and own:
        return _devices.beside(partial(microbatch, size=size), split, xs, c)
    return _devices.spread(microbatch(xs, c, size=size), split)


@partial(jax.jit, static_argnames="size")
def microbatch(xs: PyTree, c: Any, *, size: int) -> PyTree:
    """Return rows c * size, ..., of arrays, and zeros past their end.

    The chunk is whole on every device, by a gather that cannot be split, for
    the reason that `jaxunlearn._devices.beside` gives: under jit, where
    placements cannot be seen, every device does all the work.

    >>> microbatch(jnp.arange(1, 6), 1, size=3).tolist()
    [4, 5, 0]
    """
    index = c * size + jnp.arange(size)

    def leaf(a: Any) -> Any:
        real = (index < a.shape[0]).reshape(size, *[1] * (a.ndim - 1))
        return jnp.where(real, jnp.take(a, index, axis=0, mode="clip"), jnp.zeros_like(a, shape=(1,) * a.ndim))

    return jax.tree.map(leaf, xs)


def accumulate(
    fn: Callable[..., PyTree],
    xs: PyTree,
    *consts: PyTree,
    microbatch_size: int,
    statics: tuple[Any, ...] = (),
    own: PyTree = None,
    loop: Loop = "auto",
    label: str | None = None,
) -> PyTree:
    """Return the sum over microbatches of ``fn(*statics, chunk, *consts)``, a pytree of arrays.

    The last chunk is padded with zeros: a leaf of ``xs`` must be a weight, of
    which zero means padding, and ``fn`` must give nothing for such rows. So
    memory is flat in n, and stepped from the host a new n recompiles only the
    cutting.

    Where the rows of ``xs`` are split over devices, each device goes through
    its own, a microbatch at a time, and the devices' sums are added at the end.

    Args:
      own: arrays that a chunk's rows look things up in, given to ``fn`` after the chunk where they are not None;
        split over devices they are each device's own rows, so the look-up must be by position there.

    Other args and errors are those of `fold`.

    >>> weighted = lambda chunk: jnp.sum(chunk[0] * chunk[1])
    >>> float(accumulate(weighted, (jnp.arange(5.0), jnp.ones(5)), microbatch_size=2))
    10.0
    """
    xs, own = jax.tree.map(jnp.asarray, (xs, own))
    split = _devices.split_of(xs, own)
    looked_up = () if own is None else (own,)
    several = split is None and jax.default_backend() == "cpu" and on_host(xs, looked_up, consts, loop=loop)
    most = min(microbatch_size, A_CORE) if several else microbatch_size
    size = chunk_size(rows(xs) // _devices.parts(split), most)
    chunk = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), xs)
    shapes = call.eval_shape(fn, statics, chunk, *looked_up, *consts)
    more: Any = dict(microbatch_size=size, loop=loop, label=label)
    if split is None:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        if several:
            return _side_by_side(partial(call, fn, statics), zeros, xs, *looked_up, *consts, size=size, label=label)
        return fold(_add, zeros, xs, *looked_up, *consts, statics=(fn, statics), **more)
    xs, looked_up = jax.device_put((xs, looked_up), split)
    zeros = jax.tree.map(lambda s: jnp.zeros((_devices.parts(split), *s.shape), s.dtype, device=split), shapes)
    total = fold(_add_beside, zeros, xs, looked_up, *consts, statics=(fn, statics, split), chunks="own", **more)
    return call(_over_devices, (split,), total)


def _side_by_side(
    fn: Callable[..., PyTree], total: PyTree, xs: PyTree, *consts: PyTree, size: int, label: str | None
) -> PyTree:
    """Return the sum over microbatches, added in their order; each core takes one."""
    count = -(-rows(xs) // size)
    with _journal.work(label or "fold") as work:
        first, total, _ = work.resume(total)
        parts = ahead(lambda c: fn(microbatch(xs, np.int32(c), size=size), *consts), range(first, count))
        for done, part in enumerate(parts, first + 1):
            total = call(_plus, (), total, part)
            if label is not None:
                jax.block_until_ready(total)  # dispatch runs ahead; report what is done
                _progress.report(label, done, count)
            work.keep(done, total)
    return total


def _plus(total: PyTree, part: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, part)


def _add(fn: Callable[..., PyTree], statics: tuple[Any, ...], total: PyTree, chunk: PyTree, *consts: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, call(fn, statics, chunk, *consts))  # call: traced already, by eval_shape


def _add_beside(
    fn: Callable[..., PyTree],
    statics: tuple[Any, ...],
    split: NamedSharding,
    total: PyTree,
    chunk: PyTree,
    looked_up: tuple[PyTree, ...],
    *consts: PyTree,
) -> PyTree:
    def add(own: PyTree, *consts: PyTree) -> PyTree:
        total, chunk, looked_up = own
        return jax.tree.map(lambda a, b: a + b[None], total, fn(*statics, chunk, *looked_up, *consts))

    return _devices.beside(add, split, (total, chunk, looked_up), *consts)


def _over_devices(split: NamedSharding, total: PyTree) -> PyTree:
    whole = NamedSharding(split.mesh, P())
    return jax.lax.with_sharding_constraint(jax.tree.map(lambda a: jnp.sum(a, 0, dtype=a.dtype), total), whole)


def rows(xs: PyTree) -> int:
    """Return the length of the leading axis; raise ValueError where there is none or lengths differ."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"arrays must share one leading axis; got lengths {sorted(lengths)}")
    n = lengths.pop()[0]
    if n == 0:
        raise ValueError("got no rows: at least one instance is needed")
    return n


def chunk_size(n: int, microbatch_size: int, *, exact: bool = False) -> int:
    """Return the rows of a chunk for n rows: the microbatch size, less where n is far below it.

    Powers of two, so that few sizes are ever compiled; ``exact`` caps at n.

    >>> [chunk_size(n, 64) for n in (1, 5, 40, 500)]
    [1, 8, 64, 64]
    """
    _validate.positive_int("microbatch_size", microbatch_size)
    return min(microbatch_size, n if exact else 1 << (n - 1).bit_length())


@partial(jax.jit, static_argnames="size")
def split(xs: PyTree, *, size: int) -> PyTree:
    """Deal n rows to chunks, (chunks, size, ...), padded with zeros.

    Chunk c has the rows c, c + chunks, ...: arrays that are sharded over the
    rows stay sharded within each chunk.

    >>> split(jnp.arange(1, 6), size=2).tolist()
    [[1, 4], [2, 5], [3, 0]]
    """

    def cut(a: Any) -> Any:
        chunks = -(-a.shape[0] // size)
        missing = chunks * size - a.shape[0]
        if missing:
            a = jnp.concatenate([a, jnp.zeros_like(a, shape=(missing, *a.shape[1:]))])
        return jnp.swapaxes(a.reshape(size, chunks, *a.shape[1:]), 0, 1)

    def leaf(a: Any) -> Any:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(cut(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        return cut(a)

    return jax.tree.map(leaf, xs)


@jax.jit
def pick(chunks: PyTree, c: int) -> PyTree:
    """Return one chunk of `split`."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, c, keepdims=False), chunks)


@partial(jax.jit, static_argnames="n")
def join(chunks: PyTree, *, n: int) -> PyTree:
    """Undo `split`: chunks (chunks, size, ...), or a list of them, to the first n rows.

    >>> join(split(jnp.arange(5), size=2), n=5).tolist()
    [0, 1, 2, 3, 4]
    """
    if isinstance(chunks, list):
        chunks = jax.tree.map(lambda *a: jnp.stack(a), *chunks)
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])[:n], chunks)
