"""The folder of the user's where what is costly to make is kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: Bytes of compiled programs that are kept; the least recently used go first.
MOST = 2**30
#: Compilations shorter than so many seconds are not worth a file.
WORTH = 0.05


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
    if not kept or before["jax_compilation_cache_dir"] is not None or not _writable(path):
        yield
        return
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)
