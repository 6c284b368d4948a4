"""Two processes that share the work over loopback give what one gives."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn import loop, methods
from jaxunlearn.testing import tiny_problem
from tests import spread

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "devices.md"
PROCESSES, DEVICES, SECONDS = 2, 2, 300


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(folder: Path, *more: str) -> None:
    """Run `tests.spread` in two processes; when one fails or hangs, both end and the test shows what they said."""
    address = f"127.0.0.1:{free_port()}"
    said = [folder / f"said_{i}.txt" for i in range(PROCESSES)]
    # XLA_FLAGS of the machine could ask for other devices; GPUs are not for this test.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as files:
        running = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.spread", address]
                + [str(argument) for argument in (PROCESSES, i, DEVICES, folder / f"found_{i}.npz", *more)],
                cwd=ROOT,
                env=env,
                stdout=files.enter_context(said[i].open("w")),
                stderr=subprocess.STDOUT,
            )
            for i in range(PROCESSES)
        ]
        try:
            end = time.monotonic() + SECONDS
            codes = [process.poll() for process in running]
            # Not once one has failed: the other would wait for it.
            while None in codes and not any(codes) and time.monotonic() < end:
                time.sleep(0.1)
                codes = [process.poll() for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
    if codes != [0] * PROCESSES:
        told = "\n".join(
            f"--- process {i}, exit status {codes[i]}\n{said[i].read_text()[-4000:]}" for i in range(PROCESSES)
        )
        pytest.fail(f"the processes did not both end well within {SECONDS} s (None: was still running)\n{told}")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("processes")
    run(folder)
    return [dict(np.load(folder / f"found_{i}.npz")) for i in range(PROCESSES)]


def test_every_process_holds_the_same(found: list[dict[str, np.ndarray]]) -> None:
    first, second = found
    for path, value in first.items():
        np.testing.assert_array_equal(second[path], value, err_msg=path)


def test_two_processes_give_what_one_gives(found: list[dict[str, np.ndarray]]) -> None:
    expected = spread.leaves(spread.work(spread.problem(), batch_norm=("frozen",)))
    assert expected.keys() == found[0].keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[0][path], value, rtol=1e-3, atol=1e-5, err_msg=path)


def test_the_program_of_the_page_on_devices_gives_what_one_process_gives(tmp_path: Path) -> None:
    run(tmp_path, str(PAGE))
    text = PAGE.read_text()
    assert len(spread.PROGRAM.findall(text)) == 1
    config = methods.get("adv-imp").Config(draws=2, attack_steps=5, max_passes=2, forget_batch=16, companion_batch=32)
    alone = loop.run(tiny_problem(k=16), method="adv-imp", config=config, key=jax.random.key(0))
    kept = np.load(tmp_path / "weights.npz")
    for path, leaf in spread.leaves(dict(alone.model.params)).items():
        np.testing.assert_allclose(kept[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
