"""Long work that survives being killed: host loops keep their state, the same work done again goes on from it.

A loop opens a `work`, takes up the state that was kept of it, and offers its
state after each step; a `Journal` decides when to write. Where no journal is
open all of this costs nothing. The work of a process has names that follow
from the order in which it is opened, so it is the caller who sees to it that a
journal is only ever opened for the same request again.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _files
from jaxunlearn._types import PyTree

T = TypeVar("T")
#: One of the things that come together in a loop: an array, or several by name.
Item: TypeAlias = Any
#: Seconds between two times of writing.
INTERVAL = 10.0
#: Of the time, that writing may take.
SHARE = 0.05
_META = "meta"


@dataclasses.dataclass
class Journal:
    """A folder in which work keeps its state.

    Attributes:
      folder: must exist; one process at a time.
      interval: seconds between two times of writing, at least; more where writing takes more than a twentieth of it.
      taken_up: how many pieces of work went on from what was kept.
      failed: told of it, once, when a state cannot be written, such as on a full disk; the work goes on, and so does
        what was kept before. None: that is an OSError, and ends the work.
    """

    folder: Path
    interval: float = INTERVAL
    taken_up: int = 0
    failed: Callable[[OSError], None] | None = None
    attached: tuple[Callable[[], Any], Callable[[Any], None]] | None = None
    _top: _Level = dataclasses.field(default_factory=lambda: _Level(""))
    _last: float = dataclasses.field(default_factory=time.monotonic)
    _took: float = 0.0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Have all work inside the block kept here."""
        self._top, self._last = _Level(""), time.monotonic()
        token = _current.set((self, self._top))
        try:
            yield
        finally:
            _current.reset(token)

    def _due(self) -> bool:
        wait = max(self.interval, self._took / SHARE) if self.interval else 0.0
        return time.monotonic() - self._last >= wait

    def _write(self, name: str, done: int, state: PyTree, items: Sequence[Item]) -> None:
        more = self.attached[0]() if self.attached is not None and "@" not in name else None
        values = [*jax.tree.leaves(state), *(leaf for item in items for leaf in _leaves(item))]
        arrays, facts = {}, []
        for number, (kind, array) in enumerate(map(_plain, values)):
            facts.append([kind, str(array.dtype), list(array.shape)])
            arrays[str(number)] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # no copy of gigabytes
        names = [list(item) if isinstance(item, Mapping) else None for item in items]
        meta = {"done": done, "leaves": facts, "items": names, "more": more}
        arrays[_META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        began = time.monotonic()
        try:
            self._put_in_place(name, arrays)
        except OSError as error:
            if self.failed is None:
                raise
            self.failed(error)
            self.interval = math.inf
            return
        for inner in self.folder.glob(f"{name}@*.npz"):  # steps of it that are done by now
            if int(inner.name[len(name) + 1 :].partition(".")[0]) < done:
                inner.unlink()
        self._last = time.monotonic()
        self._took = self._last - began

    def _put_in_place(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        with _files.in_place(self.folder / f"{name}.npz") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _read(self, name: str) -> tuple[dict[str, Any], list[Any]] | None:
        """Return what was kept of a piece of work, None where that is nothing or a damaged file."""
        try:
            with (self.folder / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
                meta = json.loads(archive[_META].tobytes())
                leaves = [
                    _as_before(kind, np.frombuffer(archive[str(number)].tobytes(), jnp.dtype(dtype)).reshape(shape))
                    for number, (kind, dtype, shape) in enumerate(meta["leaves"])
                ]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None
        return meta, leaves


@dataclasses.dataclass
class _Level:
    """A piece of work that may have others inside: its name, where it stands, how many it opened there."""

    name: str
    done: int = 0
    opened: int = 0

    def next(self, label: str) -> str:
        plain = "".join(c if c.isalnum() else "-" for c in label)
        inside = f"{self.name}@{self.done}." if self.name else ""
        self.opened += 1
        return f"{inside}{self.opened:04d}-{plain}"


_current: contextvars.ContextVar[tuple[Journal, _Level] | None] = contextvars.ContextVar("journal", default=None)


class Work:
    """A loop that is under way; see `work`."""

    def __init__(self, journal: Journal | None, level: _Level) -> None:
        self._journal, self._level = journal, level

    def resume(self, state: T, items: Sequence[Item] = ()) -> tuple[int, T, list[Any]]:
        """Return how many steps were done, the state then, and the items that had come together.

        Args:
          state: before the first step, a pytree of arrays and plain numbers of fixed structure.
          items: what there is before the first step of a list that grows.
        """
        found = None if self._journal is None else self._journal._read(self._level.name)
        if self._journal is None or found is None:
            return 0, state, list(items)
        meta, leaves = found
        self._level.done = meta["done"]
        if self._journal.attached is not None and meta["more"] is not None:
            self._journal.attached[1](meta["more"])
        self._journal.taken_up += 1
        fixed = len(jax.tree.leaves(state))
        rest = iter(leaves[fixed:])
        grown = [next(rest) if names is None else {name: next(rest) for name in names} for names in meta["items"]]
        return meta["done"], jax.tree.unflatten(jax.tree.structure(state), leaves[:fixed]), grown

    def keep(self, done: int, state: PyTree, items: Sequence[Item] = ()) -> None:
        """Offer the state and the items after so many steps; they are written if it is time."""
        self._level.done, self._level.opened = done, 0
        if self._journal is not None and self._journal._due():
            self._journal._write(self._level.name, done, state, items)


def attach(get: Callable[[], Any], put: Callable[[Any], None]) -> None:
    """Keep what ``get()`` returns, plain JSON, beside the state of outermost work, and ``put`` it back with it."""
    current = _current.get()
    if current is not None:
        current[0].attached = (get, put)


@contextlib.contextmanager
def work(label: str) -> Iterator[Work]:
    """Open a piece of work; what is opened inside the block is part of its current step.

    >>> with work("sum") as sums:
    ...     done, total, _ = sums.resume(jnp.zeros(()))
    ...     for i in range(done, 3):
    ...         total = total + i
    ...         sums.keep(i + 1, total)
    >>> float(total)
    3.0
    """
    current = _current.get()
    if current is None:
        yield Work(None, _Level(""))
        return
    journal, level = current
    inner = _Level(level.next(label))
    token = _current.set((journal, inner))
    try:
        yield Work(journal, inner)
    finally:
        _current.reset(token)


def _leaves(item: Item) -> list[Any]:
    return list(item.values()) if isinstance(item, Mapping) else [item]


def _plain(leaf: Any) -> tuple[str, np.ndarray]:
    """Return what kind of thing a leaf is, and its numbers."""
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return f"key:{jax.random.key_impl(leaf)}", np.asarray(jax.random.key_data(leaf))
        return "weak" if leaf.weak_type else "jax", np.asarray(leaf)
    if isinstance(leaf, np.ndarray | np.generic):
        return "numpy", np.asarray(leaf)
    if isinstance(leaf, bool | int | float):
        return type(leaf).__name__, np.asarray(leaf)
    raise TypeError(f"a state that is kept must hold arrays and numbers; got {type(leaf).__name__}")


def _as_before(kind: str, array: np.ndarray) -> Any:
    if kind.startswith("key:"):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind.removeprefix("key:"))
    if kind == "weak":  # of a Python number; as a float32 it would win over a bfloat16 in what follows
        return jnp.asarray(array.item()) if array.ndim == 0 else jnp.asarray(array)
    if kind == "jax":
        return jnp.array(array)  # a copy: what was read may not be written to
    return array.copy() if kind == "numpy" else array.item()
