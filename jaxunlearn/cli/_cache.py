"""The folder of the user's where what is costly to make is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxunlearn.cli import _errors

#: Bytes of compiled programs that are kept; the least recently used go first.
MOST = 2**30
#: Compilations shorter than so many seconds are not worth a file.
WORTH = 0.05
#: What JAX says of a kept program that it cannot read or write.
DAMAGED = "persistent compilation cache"


def folder() -> Path:
    """Return the folder; it need not be there yet."""
    import platformdirs

    return platformdirs.user_cache_path("jaxunlearn")


@contextlib.contextmanager
def compiled(*, kept: bool = True) -> Iterator[None]:
    """Keep what JAX compiles in the block on disk, for later processes.

    Where the user has told JAX of a folder already, that one is used; where
    ours cannot be written, nothing is kept.
    """
    import jax

    path = folder() / "compiled"
    settings = {
        "jax_compilation_cache_dir": str(path),
        "jax_compilation_cache_max_size": MOST,
        "jax_persistent_cache_min_compile_time_secs": WORTH,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    if before["jax_compilation_cache_dir"] is not None:
        with _told_of_damage(str(before["jax_compilation_cache_dir"])):
            yield
        return
    if not kept or not _writable(path):
        yield
        return
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with _told_of_damage(str(path), ours=True):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def _told_of_damage(path: str, *, ours: bool = False) -> Iterator[None]:
    """Tell in one line of kept programs that cannot be read, where JAX tells of each in two; drop them if ours."""
    show, damaged = warnings.showwarning, []

    def shown(message: Warning | str, *where: Any, **more: Any) -> None:
        if DAMAGED in str(message):
            damaged.append(message)
        else:
            show(message, *where, **more)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show
        if damaged:
            if ours:  # JAX leaves them there, and would find them again
                shutil.rmtree(path, ignore_errors=True)
            _errors.say(f"compiled anew: programs kept in {path} cannot be used" + "; they were dropped" * ours)


def _writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)
