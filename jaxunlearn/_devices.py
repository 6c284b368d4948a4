"""Rows that are split over devices: where they lie, work beside them, and their way to the host.

Components take no mesh. Arrays whose leading axis is sharded carry it, and what
is asked here is answered from them; without such arrays, or under jit, vmap or
grad, where placements cannot be seen, nothing is split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn._types import PyTree

T = TypeVar("T")


def split_of(*trees: PyTree) -> NamedSharding | None:
    """Return how the rows of arrays are split over devices, None where they are not.

    Args:
      *trees: of arrays; the first whose leading axis is sharded over more than one device decides.

    Returns:
      A placement that splits the leading axis alone; hashable, so that it can be a static argument.

    >>> split_of(jax.numpy.zeros(3), np.zeros(2)) is None
    True
    """
    for leaf in jax.tree.leaves(trees):
        placed = leaf.sharding if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) else None
        if isinstance(placed, NamedSharding) and len(placed.spec) and placed.spec[0] is not None:
            split = NamedSharding(placed.mesh, P(placed.spec[0]))
            if parts(split) > 1:
                return split
    return None


def parts(split: NamedSharding | None) -> int:
    """Return over how many devices rows are split, 1 for None."""
    if split is None:
        return 1
    axes = split.spec[0]
    return math.prod(split.mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))


def spread(tree: T, split: NamedSharding | None) -> T:
    """Split the rows of every array so, if their number is a multiple; also under jit."""
    if split is None:
        return tree
    n = parts(split)

    def leaf(a: Any) -> Any:
        whole = not np.ndim(a) or not np.shape(a)[0] or np.shape(a)[0] % n
        return a if whole else jax.lax.with_sharding_constraint(a, split)

    return cast(T, jax.tree.map(leaf, tree))


def beside(fn: Callable[..., T], split: NamedSharding, own: PyTree, *shared: PyTree) -> T:
    """Run ``fn(own, *shared)`` on each device, with its rows of ``own``; the results' rows are joined.

    Under `jax.shard_map` the partitioner has no part in it, which gives wrong
    numbers (jax 0.10.2) for the grouped convolutions of per-example weight
    gradients where examples are sharded. Shared arrays are whole on every
    device; mesh axes that split no rows do the same work side by side.
    """
    rows = P(split.spec[0])
    return jax.shard_map(  # type: ignore[no-any-return]
        fn,
        mesh=split.mesh,
        in_specs=(rows, *(P() for _ in shared)),
        out_specs=rows,
        check_vma=False,  # gradients in shared arrays are each device's own
    )(own, *shared)


def host(value: Any) -> np.ndarray:
    """Return an array as NumPy on every process: what lies on other processes' devices is fetched by all of them.

    >>> host(jax.numpy.arange(2)).tolist()
    [0, 1]
    """
    away = isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated)
    if away and isinstance(value.sharding, NamedSharding):
        value = jax.device_put(value, NamedSharding(value.sharding.mesh, P()))
    return np.asarray(value)
