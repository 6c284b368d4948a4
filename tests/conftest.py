"""Strict by default: 8 fake devices, warnings are errors, rank promotion raises."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxunlearn import _cpu

# As the command line does, so that what tests run in this process is what they start in others, to the bit.
_cpu.convolve_on_all_cores()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same small programs anew; one cache for the session, all its workers, halves the time.
_session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
_cache = Path(tempfile.gettempdir(), f"jaxunlearn-tests-{_session}") if _session else tempfile.mkdtemp()
jax.config.update("jax_compilation_cache_dir", str(_cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# For the processes that tests start; by itself JAX keeps only what took a second.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


#: Memory maps of a process from which its compiled programs are dropped; Linux allows 65,530, and the next one crashes.
MAPS = 25_000


@pytest.fixture(scope="module", autouse=True)
def few_maps() -> Iterator[None]:
    """Drop compiled programs before they are too many: each takes some five memory maps."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()


def shared_dir() -> Path | None:
    """Return the folder of real data and third-party weights, or None where it is absent."""
    named = os.environ.get("JAXUNLEARN_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `tests.digits_net` with fresh weights, to be read only."""
    from jaxunlearn import checkpoint
    from tests.digits_net import fresh

    path = tmp_path_factory.mktemp("net") / "checkpoint"
    checkpoint.save(path, fresh())
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; skip where it is absent."""
    folder = shared_dir()
    if folder is None:
        pytest.skip("needs the shared data and weights beside the checkout (or JAXUNLEARN_SHARED)")
    return folder
