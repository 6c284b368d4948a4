"""`jaxunlearn unlearn` for machines: one JSON object; curves of its steps, and of a training's epochs, as they come."""

from __future__ import annotations

import csv
import errno
import importlib.util
import json

import jax
import numpy as np
import pytest

from jaxunlearn import _journal, loop
from jaxunlearn.cli import _log, _progress
from jaxunlearn.cli.main import main
from jaxunlearn.job import work
from jaxunlearn.report import read_run
from jaxunlearn.testing import tiny_problem
from tests.digits_net import ARCH, tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    np.savez(path, **tensors())
    return str(path)


@pytest.fixture
def argv(weights, tmp_path):
    """The command, without --json and --log-dir."""
    given = ["unlearn", "--arch", ARCH, "--weights", weights, "--data", "digits", "--eval-limit", "50"]
    return [*given, "--forget", "2,57,151", "--method", "neggrad", "--out", str(tmp_path / "out")]


@pytest.fixture
def often(monkeypatch):
    """Keep the state at every step."""
    monkeypatch.setattr(_journal, "INTERVAL", 0.0)


def rows(folder, file="steps.csv"):
    with (folder / file).open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder):
    """The scalars of all event files: (name, step) -> values, as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[tuple[str, int], list[float]] = {}
    for path in folder.glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def stopped_at(step, argv, monkeypatch, error):
    real = work.Watch.__call__

    def stop(self, event):
        real(self, event)
        if event.steps == step:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(work.Watch, "__call__", stop)
        return main(argv)


# --- --json ------------------------------------------------------------------


def test_one_json_object_and_nothing_else_on_standard_output(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    assert main([*argv, "--json"]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    assert "measuring before" in said.err  # progress stays, beside it
    found, results = json.loads(said.out), read_run(tmp_path / "out").results
    for name in ("method", "goal", "goal_met", "before", "after", "stop_reason", "steps"):
        assert found[name] == results[name]
    assert (found["forgotten"], found["of"], found["not_forgotten"], found["remembered_again"]) == (3, 3, [], [])
    assert (found["exit_status"], found["path"], found["recognised"]) == (0, str(tmp_path / "out"), None)
    assert found["seconds"] == pytest.approx(sum(results["seconds"][n] for n in ("prepare", "unlearn", "verify")))
    # The same command again, to go on: nothing is left to do, and it says the same.
    assert main([*argv, "--json", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_what_is_not_reached_is_named(argv, capsys):
    assert main([*argv, "--json", "--quiet", "--learning-rate", "1e-9", "--max-passes", "2"]) == 3
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["exit_status"], found["goal_met"], found["stop_reason"]) == (3, False, "max_steps")
    assert found["not_forgotten"] == ["2", "57", "151"]
    assert said.err.startswith("jaxunlearn: 3 of 3 instances are not forgotten")


def test_an_interrupted_run_and_a_mistake(argv, monkeypatch, capsys):
    slow = [*argv, "--json", "--quiet", "--learning-rate", "1e-9"]
    assert stopped_at(2, slow, monkeypatch, KeyboardInterrupt) == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["exit_status"], found["stop_reason"], found["steps"]) == (130, "interrupted", 2)
    assert found["after"]["retain"] is None
    assert main([*argv, "--json", "--forget", "99999"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("jaxunlearn: error:")
    assert main([*argv, "--json", "--dry-run"]) == 2
    assert "--dry-run has none: leave one of them out" in capsys.readouterr().err


# --- --log-dir ---------------------------------------------------------------


def test_the_curves_are_those_of_the_results(argv, tmp_path):
    log = tmp_path / "log"
    assert main([*argv, "--quiet", "--log-dir", str(log)]) == 0
    results = read_run(tmp_path / "out").results
    first, *steps = rows(log)
    assert [int(row["step"]) for row in steps] == list(range(1, results["steps"] + 1))
    assert list(first) == ["step", *results["history"], "test_accuracy"]
    for name, values in results["history"].items():
        assert first[name] == ""
        np.testing.assert_allclose([float(row[name]) for row in steps], values, rtol=1e-8)
    watched = [[int(row["step"]), float(row["test_accuracy"])] for row in (first, *steps) if row["test_accuracy"]]
    np.testing.assert_allclose(watched, results["curve"]["test"], rtol=1e-8)
    board = events(log)
    assert all(len(values) == 1 for values in board.values())
    given = {(name, int(row["step"])): float(row[name]) for row in (first, *steps) for name in row if row[name]}
    given = {key: value for key, value in given.items() if key[0] != "step"}
    assert board.keys() == given.keys()
    np.testing.assert_allclose([board[key][0] for key in given], list(given.values()), rtol=1e-6)


def test_they_are_there_while_it_runs(argv, tmp_path, monkeypatch):
    real, seen = _log._Steps.__call__, []

    def look(self, event, points):
        real(self, event, points)
        seen.append((event.steps, int(rows(tmp_path / "log")[-1]["step"])))

    monkeypatch.setattr(_log._Steps, "__call__", look)
    assert main([*argv, "--quiet", "--log-dir", str(tmp_path / "log")]) == 0
    assert len(seen) > 2
    assert all(taken == written for taken, written in seen)


def test_killed_and_resumed_they_have_every_step_once(argv, tmp_path, often, monkeypatch):
    log, whole = tmp_path / "log", tmp_path / "whole"
    settings = [*argv, "--quiet", "--learning-rate", "1e-4", "--max-passes", "12"]
    stopped_at(6, [*settings, "--log-dir", str(log)], monkeypatch, MemoryError)  # told in one line
    half = rows(log)
    assert int(half[-1]["step"]) == 5
    with (log / "steps.csv").open("a") as file:
        file.write("6,1,1")  # half a line, as of a process that was killed in it
    (board,) = log.glob("events.out.*")
    board.rename(log / f"events.out.tfevents.1.host{_log.SUFFIX}")  # of a second that is over
    resumed = main([*settings, "--log-dir", str(log), "--resume"])
    assert resumed == main([*settings, "--log-dir", str(whole), "--overwrite"])
    assert (log / "steps.csv").read_bytes() == (whole / "steps.csv").read_bytes()
    assert int(rows(log)[-1]["step"]) > 6
    assert events(log) == events(whole)
    assert all(len(values) == 1 for values in events(log).values())


def test_a_run_that_was_killed_after_its_last_step_keeps_its_curves(argv, tmp_path, often, monkeypatch):
    log = tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(work, "change", lambda *models: (_ for _ in ()).throw(MemoryError))
        assert main([*argv, "--quiet", "--log-dir", str(log)]) == 2
    before = (log / "steps.csv").read_bytes()
    assert main([*argv, "--quiet", "--log-dir", str(log), "--resume"]) == 0
    assert (log / "steps.csv").read_bytes() == before
    assert before.count(b"\n") == read_run(tmp_path / "out").results["steps"] + 2


def test_segments_of_the_device_loop_are_steps_too(tmp_path):
    problem = tiny_problem()
    for way in ("host", "device"):
        with _log.opened(tmp_path / way, resume=False) as tell:
            call = lambda event, tell=tell: tell(event, [])
            result = loop.run(problem, method="neggrad", key=jax.random.key(0), loop=way, callback=call)
        assert [int(row["step"]) for row in rows(tmp_path / way)] == list(range(1, result.steps + 1))
    assert result.steps > 1
    host, device = ([list(map(float, row.values())) for row in rows(tmp_path / way)] for way in ("host", "device"))
    np.testing.assert_allclose(host, device, rtol=1e-4)


def test_a_phase_with_other_scalars_gets_columns_of_its_own(tmp_path):
    with _log.opened(tmp_path / "log", resume=False) as tell:
        event = loop.Event(None, 1, 9, {}, [{"loss": np.float32(0.1)}])
        tell(event, [(0, 0.5)])
        tell(event._replace(rows=[*event.rows, {"other": np.array([1.0, 2.0])}]), [(0, 0.5), (3, 0.25)])
    text = (tmp_path / "log" / "steps.csv").read_text()
    assert text == "step,loss,other,test_accuracy\n0,,,0.5\n1,0.100000001,,\n2,,1,\n3,,2,0.25\n"


def test_what_was_written_before_goes_even_where_nothing_is_new(tmp_path):
    (tmp_path / "steps.csv").write_text("step,loss\n1,2\n")
    with _log.opened(tmp_path, resume=True) as tell:
        assert (tmp_path / "steps.csv").read_text() == "step,loss\n1,2\n"
        tell(loop.Event(None, 0, 9, {}, []), [])
    assert (tmp_path / "steps.csv").read_text() == "step\n"


def test_without_tensorboard_one_line_says_so(argv, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorboardX" else real(name, *more)
    )
    log = tmp_path / "log"
    assert main([*argv, "--quiet", "--log-dir", str(log)]) == 0
    assert capsys.readouterr().err == (
        f"jaxunlearn: {log} gets steps.csv only; for TensorBoard's files, too: pip install 'jaxunlearn[tensorboard]'\n"
    )
    assert [path.name for path in log.iterdir()] == ["steps.csv"]


def test_a_disk_that_is_full_ends_the_curves_and_not_the_run(argv, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_log._Steps, "_take", full)
    assert main([*argv, "--quiet", "--log-dir", str(tmp_path / "log")]) == 0
    assert capsys.readouterr().err.count("the curves end here, the run goes on") == 1


def test_curves_of_another_run_are_not_written_over(argv, tmp_path, capsys):
    log = tmp_path / "log"
    log.mkdir()
    (log / "steps.csv").write_text("step,loss\n1,2\n")
    assert main([*argv, "--log-dir", str(log)]) == 2
    assert "holds the curves of an earlier run: choose another folder, or --overwrite" in capsys.readouterr().err
    assert main([*argv, "--log-dir", str(log), "--resume"]) == 2  # there is nothing to resume: not this run's
    assert (log / "steps.csv").read_text() == "step,loss\n1,2\n"
    assert main([*argv, "--quiet", "--log-dir", str(log), "--overwrite"]) == 0
    assert len(rows(log)) > 1


def test_a_folder_that_cannot_be_is_refused_before_work(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(work, "perform", lambda *args, **more: pytest.fail("work began"))
    (tmp_path / "file").write_text("mine")
    for name, said in [
        ("file", "file is not a folder"),
        ("file/deeper", "file"),
        ("out", "must lie outside of --out"),
        ("out/log", "must lie outside of --out"),
    ]:
        assert main([*argv, "--log-dir", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_mistake_makes_no_folder(argv, tmp_path):
    assert main([*argv, "--log-dir", str(tmp_path / "log"), "--forget", "99999"]) == 2
    assert not list(tmp_path.iterdir())


# --- --log-dir of train -------------------------------------------------------

TRAIN = ["train", "--arch", ARCH, "--data", "digits", "--batch-size", "256", "--quiet"]


def test_the_curves_of_a_training_are_those_it_keeps(tmp_path):
    log = tmp_path / "log"
    assert main([*TRAIN, "--epochs", "3", "--out", str(tmp_path / "out"), "--log-dir", str(log)]) == 0
    kept, found = json.loads((tmp_path / "out" / "training.json").read_text()), rows(log, "epochs.csv")
    assert [list(row) for row in found] == [["epoch", "loss", "accuracy"]] * 3
    assert [row["epoch"] for row in found] == ["1", "2", "3"]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose([float(row[name]) for row in found], kept["history"][name], atol=1e-6)
    board = events(log)
    assert board.keys() == {(name, epoch) for name in ("loss", "accuracy") for epoch in (1, 2, 3)}
    np.testing.assert_allclose(board["loss", 3], [kept["history"]["loss"][2]], atol=1e-6)
    assert "log_dir" not in kept["settings"]


def test_a_training_that_goes_on_has_every_epoch_once(tmp_path, often, monkeypatch):
    log, whole, seen = tmp_path / "log", tmp_path / "whole", []
    argv = [*TRAIN, "--epochs", "4", "--out", str(tmp_path / "out")]
    real = _log._Epochs.__call__

    def stop(self, history):
        real(self, history)
        seen.append([row["epoch"] for row in rows(log, "epochs.csv")])
        if len(history) == 3:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_log._Epochs, "__call__", stop)
        assert main([*argv, "--log-dir", str(log)]) == 2
    assert seen == [["1"], ["1", "2"], ["1", "2", "3"]]  # as they come
    # Where nothing of the curves is left they are whole again at once, from what is kept.
    for path in log.iterdir():
        path.unlink()
    assert main([*argv, "--resume", "--log-dir", str(log)]) == 0
    assert main([*argv[:-1], str(tmp_path / "other"), "--log-dir", str(whole)]) == 0
    assert (log / "epochs.csv").read_bytes() == (whole / "epochs.csv").read_bytes()
    assert events(log) == events(whole)


def test_the_curves_of_another_training_are_not_written_over(tmp_path, capsys):
    log = tmp_path / "log"
    log.mkdir()
    (log / "epochs.csv").write_text("epoch,loss\n1,2\n")
    for folder, said in ((log, "holds the curves of an earlier run"), (tmp_path / "out" / "log", "must lie outside")):
        assert main([*TRAIN, "--out", str(tmp_path / "out"), "--log-dir", str(folder)]) == 2
        assert said in capsys.readouterr().err
    assert (log / "epochs.csv").read_text() == "epoch,loss\n1,2\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
