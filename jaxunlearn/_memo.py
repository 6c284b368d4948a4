"""An array that takes long to make, kept for the next process that makes it of the same numbers."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _devices, _files, _repeat, _tree
from jaxunlearn._types import Array, PyTree

_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("kept", default=None)


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Have arrays that are made inside the block kept in a folder: the last one only, so that it does not grow.

    It is the caller who sees to it that a folder is of one network (its code is
    not among the numbers), and that one process at a time works with it.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def array(made_of: PyTree, make: Callable[[], Array]) -> Array:
    """Return ``make()``, or the very bits that it gave before; outside `within`, under jit or sharded, the former.

    Args:
      made_of: all that it depends on but code: a pytree of arrays, typed keys, numbers and text.
      make: makes it.
    """
    folder = _folder.get()
    if folder is None or _repeat.is_traced(made_of) or _devices.split_of(made_of) is not None:
        return make()
    path = folder / f"{_tree.digest(jax.tree.map(_plain, made_of))}.npy"
    with contextlib.suppress(OSError, ValueError, TypeError, EOFError):  # nothing is there, or it is damaged
        return jnp.asarray(np.load(path, allow_pickle=False))
    made = make()
    with contextlib.suppress(OSError):  # a full disk costs time, no more
        _keep(path, np.asarray(made))
    return made


def _keep(path: Path, value: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        old.unlink()
    with _files.in_place(path) as file:
        np.save(file, value)


def _plain(leaf: Any) -> Any:
    """Return what a leaf is digested as: of a typed key its bits."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
