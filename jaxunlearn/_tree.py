"""Pytree helpers that `optax.tree` lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn._types import Array, Model, PyTree


def flatten_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a nested dict by slash-joined path, sorted.

    >>> flatten_paths({"b": {"w": 1}, "a": 2})
    {'a': 2, 'b/w': 1}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    pairs = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves)
    return dict(sorted(pairs))


def map_with_path(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map ``fn(path, leaf, ...)`` over trees of one structure; the path is slash-joined."""

    def call(path: Any, *leaves: Any) -> Any:
        return fn(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves)

    return jax.tree_util.tree_map_with_path(call, tree, *rest)


def all_finite(tree: PyTree) -> Array:
    """Return a scalar bool: every floating-point entry of the tree is finite.

    >>> bool(all_finite({"a": jnp.array([1.0, jnp.nan])}))
    False
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    checks = [jnp.all(jnp.isfinite(x)) for x in leaves]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def select(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return ``new`` where a scalar condition holds, else ``old``; works on typed keys too."""
    return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b), new, old)


def copy(tree: PyTree) -> PyTree:
    """Copy the arrays of a tree, so that donating the original leaves the copy alive."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def size(tree: PyTree) -> int:
    """Return the number of scalars in a tree."""
    return sum(int(np.size(x)) for x in jax.tree.leaves(tree))


def digest(tree: PyTree) -> str:
    """Return the SHA-256 of a nested dict of arrays: paths, dtypes, shapes and bytes.

    >>> digest({"a": np.zeros(2)}) == digest({"a": jnp.zeros(2, jnp.float32)})
    False
    """
    sha = hashlib.sha256()
    for path, leaf in flatten_paths(tree).items():
        array = np.ascontiguousarray(np.asarray(leaf))
        sha.update(f"{path}|{array.dtype.str}|{array.shape}|".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)  # the bytes themselves, not a copy
    return sha.hexdigest()


def model_digest(model: Model) -> str:
    """Return the SHA-256 of a model's weights and statistics: what an artefact is bound to."""
    return digest({"params": model.params, "model_state": model.model_state})
