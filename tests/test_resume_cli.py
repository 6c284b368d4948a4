"""`--resume`: killed at any moment, refused where it would mix two requests."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from jaxunlearn import _journal, _progress
from jaxunlearn.cli import _resume, _run
from jaxunlearn.cli.main import main
from jaxunlearn.job import resume, work
from jaxunlearn.report import read_run, tables
from tests.digits_net import ARCH, tensors

#: The command in a process of its own that keeps its state as often as it can.
PROGRAM = "import sys; from jaxunlearn import _journal; _journal.INTERVAL = 0.0; from jaxunlearn.cli.main import main; "
PROGRAM += "sys.exit(main(sys.argv[1:]))"

ROOT = Path(__file__).resolve().parents[1]
ADV_IMP = ["--method", "adv-imp", "--draws", "12", "--attack-steps", "40", "--max-passes", "12"]
MINIMAL_EDIT = ["--method", "minimal-edit", "--proxies", "100", "--steps", "6"]
#: Files of each phase, among how many of their calls one is drawn, and how often: 20 kills, in the phases' order.
ADV_IMP_PHASES = (("attacks/", 60, 5), ("_journal.py", 60, 5), ("importance.py", 3, 5), ("loop.py", 20, 5))
MINIMAL_EDIT_PHASES = (("curvature/", 20, 8), ("loop.py", 12, 6), ("_journal.py", 12, 6))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    np.savez(path, **tensors())
    return str(path)


@pytest.fixture
def argv(weights):
    more = ["--forget", "5,57,100", "--method", "adv-imp", "--draws", "3", "--attack-steps", "8", "--max-passes", "6"]
    return ["unlearn", "--arch", ARCH, "--weights", weights, "--data", "digits", "--quiet", *more]


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(_journal, "INTERVAL", 0.0)


def comparable(out):
    """What a run gave, without what a clock or the memory says, and without the command."""
    results = {name: value for name, value in read_run(out).results.items() if name not in ("seconds", "memory")}
    return {name: value for name, value in results.items() if name != "command"}


def killed(argv, seconds_after_the_first_state: float) -> int:
    """Run the command in a process, and kill it so long after it kept something; return its exit status."""
    out = argv[argv.index("--out") + 1]
    folder = _resume.folder_of(out)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *argv], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.npz")) if path.exists()} != before:
            time.sleep(seconds_after_the_first_state)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    _, error = process.communicate(timeout=300)
    assert process.returncode in (0, 3, -signal.SIGKILL), error
    return process.returncode


def assert_as_if_never_killed(argv, out, whole):
    """Go on to the end; what comes out is what an undisturbed run gives, and nothing is left beside the two."""
    status = main([*argv, "--out", str(out), "--resume"])
    assert status == main([*argv, "--out", str(whole)])
    assert comparable(out) == comparable(whole)
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([out.name, whole.name])


def test_killed_and_resumed_is_as_if_it_never_was(argv, tmp_path):
    moments, out = random.Random(0), tmp_path / "out"
    for _ in range(2):
        assert killed([*argv, "--out", str(out), "--resume"], moments.uniform(0, 0.6)) == -signal.SIGKILL
    assert_as_if_never_killed(argv, out, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "phases"), [(ADV_IMP, ADV_IMP_PHASES), (MINIMAL_EDIT, MINIMAL_EDIT_PHASES)])
def test_killed_at_twenty_moments_spread_over_the_phases(argv, tmp_path, method, phases):
    rng = random.Random(0)
    argv, out = [*argv[: argv.index("--method")], *method, "--eval-limit", "50"], tmp_path / "out"
    plan = [(files, rng.randint(1, most)) for files, most, kills in phases for _ in range(kills)]
    command = [sys.executable, "-m", "tests.kills", json.dumps(plan), *argv, "--out", str(out), "--resume"]
    # Twenty processes compile the same; the smallest programs are worth keeping, too.
    every = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, cwd=ROOT, env=every, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL] * 20, done.stderr
    assert not out.exists()
    assert_as_if_never_killed(argv, out, tmp_path / "whole")


def test_a_training_goes_on_where_it_was_killed(tmp_path, capsys):
    argv = ["train", "--arch", ARCH, "--data", "digits", "--epochs", "12", "--batch-size", "16", "--quiet"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    again = [*argv, "--out", str(out), "--resume"]
    ended = [killed(again, seconds) for seconds in (0.0, 0.4)]
    assert ended[0] == -signal.SIGKILL
    other = [*again, "--learning-rate", "0.01"]
    if ended[1] == -signal.SIGKILL and not out.exists():
        assert main(other) == 2
        assert "its settings was" in capsys.readouterr().err
    assert main(again) == 0
    assert main([*argv, "--out", str(whole)]) == 0
    facts, expected = (json.loads((folder / "training.json").read_text()) for folder in (out, whole))
    for name in ("digest", "history", "accuracy", "settings"):
        assert facts[name] == expected[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    capsys.readouterr()
    assert main(again) == 0
    assert "this training is finished" in capsys.readouterr().out
    assert main([*argv, "--out", str(out)]) == 2  # without --resume it is in the way


def test_moments_go_on_where_they_were_stopped(weights, tmp_path, often, monkeypatch, capsys):
    argv = ["moments", "--arch", ARCH, "--weights", weights, "--data", "digits", "--quiet", "--layers", "linear*"]
    out, whole, real, seen = tmp_path / "out", tmp_path / "whole", _progress.report, []
    again, stop = [*argv, "--out", str(out), "--resume"], [False, False, True]

    def report(label, done, total=None):
        real(label, done, total)
        if label == "moments":
            seen.append(done)
            if done == 800 and stop.pop():
                raise KeyboardInterrupt

    monkeypatch.setattr(_progress, "report", report)
    assert main(again) == 130
    assert capsys.readouterr().err == "jaxunlearn: interrupted; the same command with --resume goes on from here\n"
    assert not out.exists()
    assert main([*again, "--layers", "conv1*"]) == 2
    assert "what was kept is of another request, its settings was" in capsys.readouterr().err
    seen.clear()
    assert main(again) == 0
    assert "resumed" not in capsys.readouterr().out  # quiet
    assert seen[0] == 800  # that chunk was not kept yet
    assert main([*argv, "--out", str(whole)]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    # The same command again finds what it asks for; another one does not.
    seen.clear()
    capsys.readouterr()
    assert main(again) == 0
    assert capsys.readouterr().out == f"{out}: these moments are there already; nothing is left to do.\n"
    assert main([*again, "--layers", "conv1*"]) == 2
    assert "exists: name another file, or ask to --overwrite it" in capsys.readouterr().err
    assert seen == []


def test_without_anything_kept_it_begins(argv, tmp_path, often):
    out = tmp_path / "out"
    assert main([*argv, "--out", str(out), "--resume"]) in (0, 3)
    assert out.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_finished_is_not_done_again(argv, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "out")
    status = main([*argv, "--out", out])
    monkeypatch.setattr(_run, "run", lambda *args, **more: pytest.fail("done again"))
    assert main([*argv, "--out", out, "--resume"]) == status
    assert "this run is finished; nothing is left to do" in capsys.readouterr().out
    assert main([*argv, "--out", out, "--resume", "--seed", "1"]) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def interrupted(argv, monkeypatch, *, error=KeyboardInterrupt, step=3):
    """Run the command and stop it at a step."""
    real = work.Watch.__call__

    def stop(self, event):
        real(self, event)
        if event.steps == step:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(work.Watch, "__call__", stop)
        return main(argv)


def test_after_ctrl_c_there_is_a_result_and_a_way_on(argv, tmp_path, often, monkeypatch, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert interrupted([*argv, "--out", str(out)], monkeypatch) == 130
    assert "--resume goes on from here" in capsys.readouterr().err
    assert read_run(out).results["stop_reason"] == "interrupted"
    assert _resume.folder_of(out).is_dir()
    status = main([*argv, "--out", str(out), "--resume"])
    assert status == main([*argv, "--out", str(whole)])
    assert comparable(out) == comparable(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_seconds_are_those_of_all_processes(argv, tmp_path, often, monkeypatch):
    out, kept = tmp_path / "out", []
    real = work.Watch.put
    monkeypatch.setattr(work.Watch, "put", lambda self, seen: (kept.append(seen["spent"]), real(self, seen)))
    interrupted([*argv, "--out", str(out)], monkeypatch, error=MemoryError)
    interrupted([*argv, "--out", str(out), "--resume"], monkeypatch, error=MemoryError, step=4)
    assert main([*argv, "--out", str(out), "--resume"]) in (0, 3)
    first, *_, last = kept
    assert 0 < first < last
    seconds = read_run(out).results["seconds"]
    assert seconds["earlier processes"] == last
    own = seconds["prepare"] + seconds["unlearn"] + seconds["verify"]
    assert tables.unlearning_seconds(read_run(out).results) == pytest.approx(last + own)
    said = f"compilation included; {last:.1f} of them in processes before the one that went on and finished."
    assert said in (out / "report.md").read_text()
    assert main([*argv, "--out", str(tmp_path / "whole")]) in (0, 3)
    assert "earlier processes" not in read_run(tmp_path / "whole").results["seconds"]


def test_another_request_is_not_mixed_in_and_costs_nothing(argv, tmp_path, often, monkeypatch, capsys):
    out = tmp_path / "out"
    interrupted([*argv, "--out", str(out)], monkeypatch, error=MemoryError)
    capsys.readouterr()
    kept = sorted(path.name for path in _resume.folder_of(out).iterdir())
    assert any(name.endswith(".npz") for name in kept)
    for change, name in [
        (["--seed", "1"], "seed was 0, now 1"),
        (["--forget", "5,57"], "forget set was"),
        (["--learning-rate", "0.5"], "settings was"),
    ]:
        assert main([*argv, "--out", str(out), "--resume", *change]) == 2
        error = capsys.readouterr().err
        assert f"--resume: what was kept is of another request, its {name}" in error
        assert error.count("\n") == 1
        assert sorted(path.name for path in _resume.folder_of(out).iterdir()) == kept
    (_resume.folder_of(out) / resume.ASKED).write_text("{")
    assert main([*argv, "--out", str(out), "--resume"]) == 2
    assert "is damaged: leave out --resume to begin anew" in capsys.readouterr().err
    assert main([*argv, "--out", str(out)]) in (0, 3)  # without --resume: anew
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_version_is_not_mixed_in(argv, tmp_path, often, monkeypatch, capsys):
    out = tmp_path / "out"
    interrupted([*argv, "--out", str(out)], monkeypatch, error=MemoryError)
    asked = _resume.folder_of(out) / resume.ASKED
    content = json.loads(asked.read_text())
    content["versions"]["jax"] = "0.9"
    asked.write_text(json.dumps(content))
    assert main([*argv, "--out", str(out), "--resume"]) == 2
    assert "its versions was" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["unlearn", "train", "moments", "compare"])
def test_the_second_of_two_runs_into_one_folder_is_refused(command, argv, weights, tmp_path, capsys):
    out = tmp_path / "out"
    net = [command, "--arch", ARCH, "--data", "digits", "--quiet"]
    given = {"unlearn": argv, "train": net, "moments": [*net, "--weights", weights]}
    given["compare"] = [*given["moments"], "--forget", "5"]
    folder = _resume.folder_of(out)
    folder.mkdir()
    with filelock.FileLock(folder / "lock"):
        assert main([*given[command], "--out", str(out)]) == 2
    told = f"another process is writing to {out}: wait for it, or choose another output folder"
    assert capsys.readouterr().err == f"jaxunlearn: error: {told}\n"
    assert not out.exists()
    if command == "unlearn":
        assert main([*argv, "--out", str(out)]) in (0, 3)


def test_a_mistake_leaves_nothing(argv, tmp_path, capsys):
    assert main([*argv, "--out", str(tmp_path / "out"), "--forget", "99999"]) == 2
    assert "unknown id" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _resume.folder_of("a/b/") == tmp_path / "a" / ".b.resume"
    assert _resume.folder_of(os.path.join("a", "..", "b")) == tmp_path / ".b.resume"
