"""`jaxunlearn.unlearn` on pictures in files, after an earlier run, and after being killed: as the command line does."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxunlearn
from jaxunlearn import _journal, checkpoint, data, models, report
from jaxunlearn._types import Preprocess
from jaxunlearn.cli.main import main
from jaxunlearn.job import resume, work
from tests.digits_net import ARCH, network, tensors
from tests.picture_files import NAMES, label, write_folder
from tests.test_job import CONFIG, IDS, comparable


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of the command line."""
    base = tmp_path_factory.mktemp("cli")
    np.savez(base / "digits.npz", **tensors())
    argv = ["unlearn", "--arch", ARCH, "--weights", str(base / "digits.npz"), "--data", "digits", "--forget", IDS]
    assert main([*argv, "--method", "neggrad", "--quiet", "--out", str(base / "run")]) == 0
    return base / "run"


# --- pictures in files -------------------------------------------------------


def test_pictures_give_the_numbers_of_the_command_line(tmp_path, monkeypatch, capsys):
    """Three classes of ten, of any size: neither labels nor pixels are guessed."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "three", [3, 4, 5])
    Image.open("three/d3/3.png").resize((20, 30)).save("three/d3/3.png")
    checkpoint.save("net", network())
    Path("classes.txt").write_text("\n".join(NAMES))
    argv = ["unlearn", "--weights", "net", "--data", "folder:three", "--classes", "classes.txt", "--forget", "all"]
    assert main([*argv, "--method", "neggrad", "--quiet", "--out", "run"]) in (0, 3)
    capsys.readouterr()
    record = jaxunlearn.unlearn(network(), "all", data="folder:three", class_names=NAMES, method="neggrad")
    ours, theirs = json.loads(json.dumps(record.results)), report.read_run("run").results
    assert comparable(ours, without=["origin"]) == comparable(theirs, without=["origin"])
    assert [item["label"] for item in ours["instances"]] == [label(3), label(4), label(5)]
    assert ours["extras"]["reading"] == theirs["extras"]["reading"]
    record.save("ours")  # knows how its data are opened again
    assert main(["evaluate", "--run", "ours", "--split", "train", "--json", "--quiet"]) == 0
    assert list(json.loads(capsys.readouterr().out)["by_class"]) == list(NAMES)
    for source in ("folder:three", data.open_source("folder:three", reading=data.Reading(preprocess=_fit(8)))):
        with pytest.raises(ValueError, match=r"folder:three has 3 classes"):
            jaxunlearn.unlearn(network(), "all", data=source, method="neggrad")
    with pytest.raises(ValueError, match="the network 10: give class_names: the names of the network's classes"):
        jaxunlearn.unlearn(network(), "all", data="folder:three", method="neggrad")
    with pytest.raises(ValueError, match=r"class 'd3' of folder:three is not among the 10 of class_names .*: add it"):
        jaxunlearn.unlearn(network(), "all", data="folder:three", class_names=[*"abcdefghij"], method="neggrad")
    Path("three/d3/3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r'leave such pictures out with data.Reading\(on_bad_image="skip"\)'):
        jaxunlearn.unlearn(network(), "all", data="folder:three", class_names=NAMES, method="neggrad")


def _fit(side):
    return Preprocess(resize=side, crop=(side, side))


# --- one after another, and after being killed -------------------------------


def test_a_further_request_is_that_of_the_command_line(first, tmp_path):
    settings = dict(proxies=32, steps=3)
    argv = ["unlearn", "--from", str(first), "--forget", "501,640", "--proxies", "32", "--steps", "3", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "cli")]) in (0, 3)
    model = checkpoint.load(first / "checkpoint", models.from_recipe)
    given = dict(data="digits", config=settings, previous=first)
    ours = json.loads(json.dumps(jaxunlearn.unlearn(model, "501,640", **given).results))
    theirs = report.read_run(tmp_path / "cli").results
    assert comparable(ours) == comparable(theirs)
    assert [item["id"] for item in ours["earlier"]] == IDS.split(",")
    assert ours["extras"]["from"] == theirs["extras"]["from"] == str(first)
    assert ours["extras"]["first_network"] == theirs["extras"]["first_network"] == "used"
    with pytest.raises(ValueError, match=r"model is not the network that .*run made: go on with that one"):
        jaxunlearn.unlearn(network(), "501,640", **given)


def test_of_a_run_in_python_nobody_knows_the_first_network_but_who_gives_it(tmp_path, monkeypatch):
    first = jaxunlearn.unlearn(network(), IDS, data="digits", method="neggrad", limits={"retain": 30})
    given = dict(data="digits", config=dict(proxies=16, steps=1), previous=first.save(tmp_path / "first"))
    for artefacts, word in (({}, "gone"), ({"original": network()}, "used")):
        record = jaxunlearn.unlearn(first.result.model, "501", artefacts=artefacts, **given)
        assert record.extras["first_network"] == word
    argv = ["unlearn", "--from", str(tmp_path / "first"), "--forget", "501", "--proxies", "16", "--steps", "1"]
    assert main([*argv, "--quiet", "--out", str(tmp_path / "second")]) in (0, 3)
    assert report.read_run(tmp_path / "second").results["extras"]["first_network"] == "gone"


def test_killed_and_called_again_is_as_if_it_never_was(tmp_path, monkeypatch):
    monkeypatch.setattr(_journal, "INTERVAL", 0.0)
    real, steps = work.Watch.__call__, []

    def die(self, event):
        real(self, event)
        steps.append(event.steps)
        if len(steps) == 3:
            raise MemoryError

    monkeypatch.setattr(work.Watch, "__call__", die)
    config = CONFIG | dict(max_passes=6, learning_rate=1e-3)
    call = functools.partial(jaxunlearn.unlearn, network(), IDS, data="digits", method="adv-imp", config=config)
    kept = tmp_path / "deep" / "state"
    with pytest.raises(MemoryError):
        call(state_dir=kept)
    before = sorted(path.name for path in kept.iterdir())
    assert [name for name in before if name.endswith(".npz")]
    for change, said in (
        (dict(seed=1), "its seed was 0, now 1"),
        (dict(precision="high"), "its precision was highest"),
    ):
        with pytest.raises(ValueError, match=f"of another request, {said}.*: call it as before, or choose another"):
            call(state_dir=kept, **change)
    assert sorted(path.name for path in kept.iterdir()) == before
    resumed = call(state_dir=kept)
    assert not kept.exists()
    assert steps[2] == 3
    assert steps[3] in (3, 4)  # not from the beginning
    assert comparable(resumed.results) == comparable(call().results)


def test_interrupted_it_keeps_its_state_and_touches_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(_journal, "INTERVAL", 0.0)
    real = work.Watch.__call__

    def stop(self, event):
        real(self, event)
        if event.steps == 2:
            raise KeyboardInterrupt

    call = functools.partial(
        jaxunlearn.unlearn, network(), IDS, data="digits", method="neggrad", state_dir=tmp_path / "s"
    )
    with monkeypatch.context() as patch:
        patch.setattr(work.Watch, "__call__", stop)
        assert call(config=dict(learning_rate=1e-9, max_passes=3)).result.stop_reason == "interrupted"
    assert list((tmp_path / "s").glob("*.npz"))
    assert call(config=dict(learning_rate=1e-9, max_passes=3)).result.steps == 3
    assert not (tmp_path / "s").exists()
    with resume.held(tmp_path / "s"), pytest.raises(BlockingIOError, match="another process keeps its state there"):
        call()
    assert [path.name for path in tmp_path.rglob("*")] in (["s", "lock"], ["s"])
    (tmp_path / "s" / "mine.npz").write_text("mine")
    with pytest.raises(FileExistsError, match=r"s holds something else, mine\.npz: choose another state_dir"):
        call()
    assert [path.name for path in tmp_path.rglob("*.npz")] == ["mine.npz"]
