"""What only a process of its own can show: what is imported, Ctrl-C, a disk that is full, a closed pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.digits_net import ARCH, tensors

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, "-m", "jaxunlearn.cli.main"]
#: Tells of every report, hears SIGINT also where the tests run in the background, and does not outlive a failed test.
TALKATIVE = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); signal.alarm(300); "
    "from jaxunlearn.cli import _progress, main; _progress.EVERY = 0; sys.exit(main.main())",
]


@pytest.fixture(scope="module")
def argv(tmp_path_factory) -> list[str]:
    """An unlearn command that would go on for minutes."""
    path = tmp_path_factory.mktemp("weights") / "w.npz"
    np.savez(path, **tensors())
    return [
        "unlearn", "--arch", ARCH, "--weights", str(path), "--data", "digits", "--forget", "2,57",
        "--method", "neggrad", "--learning-rate", "1e-9", "--max-passes", "10000000",
    ]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which a child finds the checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **more}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["frobnicate"]])
def test_what_stands_before_a_command_does_not_import_jax(arguments):
    code = (
        "import sys; from jaxunlearn.cli.main import main; main(sys.argv[1:]); "
        "print([name for name in ('jax', 'numpy', 'rich', 'flax') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stderr.splitlines()[-1] == "[]"


def interrupt_when(command: list[str], ready: str, number: int = signal.SIGINT, **more: str) -> tuple[int, str]:
    """Send a signal once a line of standard error holds a text; return the exit status and standard error."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment(**more)}
    with subprocess.Popen(command, **pipes) as child:
        said = ""
        for line in child.stderr:
            said += line
            if ready in line:
                break
        child.send_signal(number)
        said += child.stderr.read()
    return child.returncode, said


def test_ctrl_c_while_unlearning_keeps_the_result(argv, tmp_path):
    out = tmp_path / "out"
    status, said = interrupt_when([*TALKATIVE, *argv, "--out", str(out)], "unlearning (neggrad): 20 of")
    assert status == 130, said
    assert "Traceback" not in said
    assert f"the result so far is kept in {out}" in said
    found = json.loads((out / "results.json").read_text())
    assert found["stop_reason"] == "interrupted"
    assert found["steps"] >= 20
    assert len(found["history"]["forgotten"]) - found["steps"] in (0, 1)  # the signal may fall between row and state
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_before_that_writes_nothing(argv, tmp_path):
    command = [*TALKATIVE, *argv, "--out", str(tmp_path / "out")]
    status, said = interrupt_when(command, "measuring before")
    assert status == 130, said
    assert said.splitlines()[-1] == "jaxunlearn: interrupted; nothing was written, the same command begins anew"
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["difflib", "jax"], ids=["before the command line is there", "after it"])
@pytest.mark.parametrize("entry", ["module", "script"])
def test_ctrl_c_while_modules_are_imported(entry, module, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    name, _, function = scripts["jaxunlearn"].partition(":")
    script = f"import sys; from {name} import {function}; sys.exit({function}())"  # as pip writes it
    command = [sys.executable, *(["-m", "jaxunlearn"] if entry == "module" else ["-c", script])]
    more = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    done = subprocess.run([*command, "evaluate"], capture_output=True, text=True, env=more, timeout=60)
    said = "jaxunlearn: interrupted; nothing was written, the same command begins anew\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)


@pytest.mark.parametrize("room", [1_000, 9_000, 30_000], ids=["probe", "checkpoint", "pictures"])
def test_a_disk_without_room_is_one_line_and_leaves_nothing(argv, tmp_path, room):
    code = (  # larger files cannot be written: what a full disk does, to every library alike
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
        "from jaxunlearn.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, str(room), *argv, "--max-passes", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("jaxunlearn: error: ")
    assert f"{tmp_path / 'out'}: " in line or room < 4096
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_error():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    with subprocess.Popen([*RUN, "methods", "--json"], **pipes) as child:
        child.stdout.close()
        error = child.stderr.read()
    assert error == b""


def test_bars_on_a_terminal_leave_the_result_in_one_piece(argv, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    more = ["--max-passes", "5", "--out", str(tmp_path / "out")]
    shown = b""
    pipes = {"stdout": subprocess.PIPE, "stderr": theirs, "env": environment(TERM="xterm")}
    with subprocess.Popen([*RUN, *argv, *more], **pipes) as child:
        os.close(theirs)
        while piece := read(ours):
            shown += piece
        out = child.stdout.read().decode()
    os.close(ours)
    assert child.returncode == 3
    assert b"measuring before" in shown
    assert b"Traceback" not in shown
    assert "step budget spent" in out
    assert "\x1b" not in out


def read(terminal: int) -> bytes:
    """Return what a pseudo-terminal shows; nothing once its other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_what_was_compiled_is_kept_for_the_next_process(tmp_path):
    weights = tmp_path / "w.npz"
    np.savez(weights, **tensors())
    more = environment(XDG_CACHE_HOME=str(tmp_path / "cache"), PYTHONWARNINGS="error::UserWarning")
    del more["JAX_COMPILATION_CACHE_DIR"]
    code = "import sys; from jaxunlearn.cli import _cache, main; _cache.WORTH = 0; sys.exit(main.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "evaluate", "--arch", ARCH, "--weights", str(weights), "--data", "digits"]
    folder, kept = tmp_path / "cache" / "jaxunlearn" / "compiled", []
    for flags in (["--no-compile-cache"], [], []):
        done = subprocess.run([*command, "--quiet", *flags], capture_output=True, text=True, env=more, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
        kept.append({path.name for path in folder.glob("*-cache")} if folder.exists() else set())
    assert not kept[0]
    assert kept[1]
    assert kept[2] == kept[1]  # nothing was compiled anew


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path):
    weights, cache = tmp_path / "w.npz", tmp_path / "cache"
    np.savez(weights, **tensors())
    cache.write_text("a file where the folder should be")
    more = environment(XDG_CACHE_HOME=str(cache))
    del more["JAX_COMPILATION_CACHE_DIR"]
    command = [*RUN, "evaluate", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=more, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
