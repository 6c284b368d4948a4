"""Strict by default: 8 fake devices, warnings are errors, rank promotion raises."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same small programs anew; one cache for the session, all its workers, halves the time.
_session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
_cache = Path(tempfile.gettempdir(), f"jaxunlearn-tests-{_session}") if _session else tempfile.mkdtemp()
jax.config.update("jax_compilation_cache_dir", str(_cache))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache)  # for the processes that tests start
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def shared_dir() -> Path | None:
    """Return the folder of real data and third-party weights, or None where it is absent."""
    named = os.environ.get("JAXUNLEARN_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; skip where it is absent."""
    folder = shared_dir()
    if folder is None:
        pytest.skip("needs the shared data and weights beside the checkout (or JAXUNLEARN_SHARED)")
    return folder
