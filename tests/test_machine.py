"""What the machine does to a command, in a process of its own: streams that are closed or full, signals, no device."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.digits_net import ARCH, tensors
from tests.test_cli_process import RUN, TALKATIVE, environment, interrupt_when

SHELL = {"shell": True, "capture_output": True, "text": True, "timeout": 300}
PROGRAM = f"{sys.executable} -m jaxunlearn"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small network, and the flags that name it and its data."""
    path = tmp_path_factory.mktemp("weights") / "w.npz"
    np.savez(path, **tensors())
    return ["--arch", ARCH, "--weights", str(path), "--data", "digits"]


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("--help | head -1", 0, ""),
        ("--help >&-", 0, ""),
        ("unlern 2>&-", 2, ""),
        ("unlern <&- >&- 2>&-", 2, ""),
        ("unlern 2>/dev/full", 2, ""),
        ("--help >/dev/full", 2, "jaxunlearn: error: standard output: No space left on device\n"),
    ],
)
def test_streams_that_are_closed_or_full(line, status, said):
    if "/dev/full" in line and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = subprocess.run(f"{PROGRAM} {line}", **SHELL, env=environment())
    assert (done.returncode, done.stderr) == (status, said)
    assert "error" not in done.stdout


@pytest.mark.parametrize(
    "how", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_locale_without_utf_8(how):
    for command, status in (("models", 0), ("methods", 0), ("ünlearn", 2)):
        done = subprocess.run([*RUN, command], capture_output=True, timeout=300, env=environment(**how))
        assert done.returncode == status
        assert (done.stdout + done.stderr).isascii()
        assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_device_at_all(weights):
    more = environment(JAX_PLATFORMS="nonsense")
    done = subprocess.run([*RUN, "evaluate", *weights], capture_output=True, text=True, timeout=300, env=more)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jaxunlearn: error: jax cannot use any device (JAX_PLATFORMS=nonsense): ")


def test_a_reader_that_leaves_does_not_end_a_run(weights, tmp_path):
    line = (
        f"{PROGRAM} unlearn {' '.join(weights)} --forget 2 --method neggrad --learning-rate 0.01 --out {tmp_path}/out"
    )
    done = subprocess.run(f"{line} 2>&1 | true", **SHELL, env=environment())
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "report.html").exists()


SLOW = "neggrad:learning_rate=1e-9:max_passes=10000000"
#: Command, what is said when the signal comes, what is said then, what is left in the folder.
MOMENTS = {
    "unlearn": (
        "--forget 2 --method neggrad --learning-rate 1e-9 --max-passes 10000000",
        "unlearning (neggrad): 20 of",
    ),
    "train": ("--epochs 500", "training: 3"),
    "compare": (f"--forget 2 --methods {SLOW}", "1 of 1: run of"),
    "demo": ("", "training: 3"),
}
THEN = {
    "unlearn": ("interrupted after [0-9]+ steps, 0 of 1 instances forgotten; the result so far is kept in .*", ["out"]),
    "train": ("interrupted; (nothing was written|the same command with --resume).*", []),
    "compare": ("interrupted; what is done is kept in .*, the same command goes on", ["out"]),
    "demo": ("interrupted; nothing was written, the same command begins anew", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", MOMENTS)
def test_a_signal_ends_a_command_in_order(command, number, weights, tmp_path):
    more, ready = MOMENTS[command]
    asked = {"train": ["--arch", ARCH, "--data", "digits"], "demo": []}.get(command, weights)
    argv = [*TALKATIVE, command, *asked, *more.split(), "--out", str(tmp_path / "out")]
    anew = {"XDG_CACHE_HOME": str(tmp_path / "nothing" / "kept")} if command == "demo" else {}  # so that it trains
    status, said = interrupt_when(argv, ready, number, **anew)
    assert status == 128 + number, said
    assert "Traceback" not in said
    line, left = THEN[command]
    assert re.fullmatch(f"jaxunlearn: {line}", said.splitlines()[-1]), said
    kept = {".out.resume"} if "--resume goes on" in line or "--resume goes on" in said else set()
    assert {path.name for path in tmp_path.iterdir()} - {"nothing"} == {*left, *kept}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0])
def test_a_signal_while_a_command_starts(seconds, number, weights, tmp_path):
    argv = [*TALKATIVE, "unlearn", *weights, *MOMENTS["unlearn"][0].split(), "--out", str(tmp_path / "out")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment()) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(seconds)
        child.send_signal(number)
        said = child.stderr.read()
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("jaxunlearn: interrupted")
