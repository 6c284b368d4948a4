"""Gram matrices of Jacobian rows, from stored rows or without ever holding more than a slice of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _cpu, _devices, _journal, _repeat, _validate
from jaxunlearn._types import Params, PyTree
from jaxunlearn.curvature.jacobian import Jacobian
from jaxunlearn.curvature.selection import take

#: Multiplications up to which Gram matrices are computed in float64, and entries up to which rows are combined in it.
EXACT_WORK, EXACT_SIZE = 1 << 28, 1 << 22


def inner_products(a: Any, b: Any = None) -> np.ndarray:
    """Return ``a @ b.T`` on the host in float64.

    Where it costs little it is also computed in float64, else in the rows'
    dtype: with few weights, proxies come close to spanning them, and what is
    left after projection drowns in float32 rounding.

    Args:
      a: rows, (n, P), NumPy or JAX.
      b: rows, (m, P); None is ``a`` itself (half the work on CPU).

    >>> inner_products(np.array([[1.0, 2.0]])).tolist()
    [[5.0]]
    """
    b = a if b is None else b
    if a.shape[0] * b.size <= EXACT_WORK:
        left = _devices.host(a).astype(np.float64)
        return left @ (left if b is a else _devices.host(b).astype(np.float64)).T
    if isinstance(a, np.ndarray):
        return np.asarray(a @ b.T, np.float64)
    return _devices.host(jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)).astype(np.float64)


def combine(weight: np.ndarray, rows: Any) -> np.ndarray:
    """Return ``weight @ rows`` on the host in float64, computed in it where that costs little, see `inner_products`.

    Args:
      weight: (n,).
      rows: (n, P), NumPy or JAX.

    >>> combine(np.array([1.0, -1.0]), np.array([[1.0, 2.0], [0.5, 1.0]], np.float32)).tolist()
    [0.5, 1.0]
    """
    if rows.size > EXACT_SIZE:
        return np.asarray(weight.astype(rows.dtype) @ rows, np.float64)
    return weight @ np.asarray(rows, np.float64)


class Part(NamedTuple):
    """Some rows of a matrix: examples, and the weights at which they are differentiated."""

    params: Params
    context: PyTree
    examples: PyTree


def gram(jacobian: Jacobian, *parts: Part, max_bytes: int, label: str | None = None) -> np.ndarray:
    """Return ``J J^T``, float64, of the parts' rows below each other, holding about ``max_bytes`` of them at a time.

    The columns of J are cut into blocks of whole tensors, or slices of one
    tensor where it alone is too large; each block costs one pass over the
    examples that differentiates its own tensors only. One compilation for each
    set of tensors, none for another n of the same blocks.

    Args:
      jacobian: see `Jacobian`; all parts have its tensors.
      *parts: at least one.
      max_bytes: memory for rows; the result is the same but for rounding.
      label: what progress is reported as, in examples of a block.

    Raises:
      ValueError: ``max_bytes`` holds not even one column.
    """
    n = sum(_repeat.rows(part.examples) for part in parts)
    tensors = take(parts[0].params, jacobian.paths)
    columns = max_bytes // (n * max(leaf.dtype.itemsize for leaf in tensors.values()))
    if columns < 1:
        raise ValueError(f"max_bytes must hold at least one column of {n} rows; got {max_bytes}")
    total = np.zeros((n, n))
    with _journal.work(label or "gram") as work:
        done, total, _ = work.resume(total)
        blocks = list(column_blocks(tensors, columns))
        for number, (paths, columns_of) in enumerate(blocks[done:], done):
            block = Jacobian(jacobian.fn, paths, jacobian.microbatch_size)
            rows = [block.rows(*part, columns=columns_of, label=label) for part in parts]
            for i, a in enumerate(rows):
                for j, b in enumerate(rows[: i + 1]):
                    inner = inner_products(a) if i == j else inner_products(a, b)
                    total[_place(rows, i), _place(rows, j)] += inner
            work.keep(number + 1, total)
    lower = np.tril_indices(n, -1)
    total.T[lower] = total[lower]
    return total


def _place(rows: list[Any], i: int) -> slice:
    start = sum(len(a) for a in rows[:i])
    return slice(start, start + len(rows[i]))


def column_blocks(tensors: Mapping[str, Any], columns: int) -> Iterator[tuple[tuple[str, ...], slice]]:
    """Yield (paths, slice of their columns) of at most so many columns each, that cover all columns once.

    >>> list(column_blocks({"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(5)}, 4))
    [(('a', 'b'), slice(0, 4, None)), (('c',), slice(0, 4, None)), (('c',), slice(4, 5, None))]
    """
    _validate.positive_int("columns", columns)
    group: tuple[str, ...] = ()
    filled = 0
    for path, leaf in tensors.items():
        size = int(np.prod(np.shape(leaf), dtype=np.int64))
        if group and filled + size > columns:
            yield group, slice(0, filled)
            group, filled = (), 0
        if size > columns:
            yield from (((path,), slice(start, min(start + columns, size))) for start in range(0, size, columns))
        else:
            group, filled = (*group, path), filled + size
    if group:
        yield group, slice(0, filled)


def memory_for_rows() -> int:
    """Return how many bytes of rows to hold at a time: a quarter of the memory of the device they lie on."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) // 4
    return (_cpu.host_memory() or 8 << 30) // 4
