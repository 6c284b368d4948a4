"""Choose tensors of a parameter tree by path, and move between them and flat vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn._tree import flatten_paths, map_with_path
from jaxunlearn._types import Array, Params


def select_paths(params: Params, patterns: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the paths of the tensors that match any pattern, sorted.

    Args:
      params: nested dict of arrays.
      patterns: globs over slash-joined paths (``layer3*/kernel``); none: every
        floating-point tensor of at least two axes, that is kernels and
        embeddings without biases and normalisation.

    Raises:
      ValueError: a pattern matches no tensor, or nothing is chosen.

    >>> params = {"conv": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
    >>> select_paths(params)
    ('conv/kernel', 'head/kernel')
    >>> select_paths(params, ["conv/*"])
    ('conv/bias', 'conv/kernel')
    """
    leaves = {path: leaf for path, leaf in flatten_paths(params).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if not patterns:
        chosen = {path for path, leaf in leaves.items() if leaf.ndim >= 2}
    else:
        chosen = set()
        for pattern in patterns:
            matched = {path for path in leaves if fnmatchcase(path, pattern)}
            if not matched:
                raise ValueError(f"no parameter matches {pattern!r}; the network has {', '.join(leaves)}")
            chosen |= matched
    if not chosen:
        raise ValueError(
            f"no parameter has two axes or more; the network has {', '.join(leaves)}: name some by pattern"
        )
    return tuple(sorted(chosen))


def take(params: Params, paths: Sequence[str]) -> dict[str, Array]:
    """Return chosen tensors by path."""
    leaves = flatten_paths(params)
    return {path: leaves[path] for path in paths}


def put(params: Params, chosen: Mapping[str, Array]) -> Params:
    """Return the tree with chosen tensors replaced, all others the same objects.

    >>> put({"a": {"w": 1}, "b": 2}, {"a/w": 5})
    {'a': {'w': 5}, 'b': 2}
    """
    new: Params = map_with_path(lambda path, leaf: chosen.get(path, leaf), params)
    return new


def width(params: Params, paths: Sequence[str]) -> int:
    """Return how many scalars the chosen tensors hold together."""
    return sum(int(np.prod(np.shape(leaf), dtype=np.int64)) for leaf in take(params, paths).values())


def unravel(vector: Any, params: Params, paths: Sequence[str]) -> dict[str, Any]:
    """Return a flat vector cut into tensors shaped like the chosen ones, in the order of the paths.

    >>> unravel(np.arange(3.0), {"a": np.zeros(1), "b": np.zeros((1, 2))}, ("a", "b"))
    {'a': array([0.]), 'b': array([[1., 2.]])}
    """
    out, start = {}, 0
    for path, leaf in take(params, paths).items():
        stop = start + int(np.prod(np.shape(leaf), dtype=np.int64))
        out[path] = vector[start:stop].reshape(np.shape(leaf))
        start = stop
    return out
