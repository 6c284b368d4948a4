"""The folder of the user's where what is costly to make is kept."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Return the folder; it need not be there yet."""
    import platformdirs

    return platformdirs.user_cache_path("jaxunlearn")
