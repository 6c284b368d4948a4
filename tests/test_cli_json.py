"""``--json`` of every command: strict JSON on standard output and nothing else, nothing at all after a mistake."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxunlearn import training
from jaxunlearn.cli import _cache, _comparison, _output, _progress, demo
from jaxunlearn.cli.main import COMMANDS, main
from tests.digits_net import ARCH, network, tensors

DATA = ["--data", "digits"]
SETS = {"forget", "retain", "test"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    np.savez(path, **tensors())
    return str(path)


@pytest.fixture(scope="module")
def runs(weights, tmp_path_factory):
    """A folder with two runs, one of which has a certificate."""
    folder = tmp_path_factory.mktemp("runs")
    argv = ["unlearn", "--arch", ARCH, "--weights", weights, *DATA, "--forget", "2", "--eval-limit", "50"]
    for method in ("prune", "neggrad"):
        more = ["--method", method, "--no-images", "--quiet", "--out", str(folder / method)]
        assert main([*argv, *more]) == 0
    return folder


@pytest.fixture
def asked(weights, runs, monkeypatch, tmp_path):
    """The arguments of each command; the demo is cut short, and runs of a comparison are done in this process."""
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(demo, "METHODS", ("neggrad",))

    def in_process(work, args, path, *more):
        with _progress.shown(quiet=args.quiet):
            content = json.loads(json.dumps(work(args, *more)))
        _comparison.write(path, content)
        return content

    monkeypatch.setattr(_comparison, "in_process", in_process)
    net, out = ["--arch", ARCH, "--weights", weights, *DATA], ["--out", str(tmp_path / "out")]
    methods = ["--methods", "neggrad:learning_rate=0.01,correct", "--no-depth", "--retain-limit", "50"]
    return {
        "demo": out,
        "train": ["--arch", ARCH, *DATA, "--epochs", "2", "--batch-size", "512", "--codes", "0.5", *out],
        "moments": [*net, "--layers", "linear*", *out],
        "unlearn": [*net, "--forget", "2", "--method", "neggrad", "--eval-limit", "50", *out],
        "evaluate": net,
        "verify": [str(runs / "prune" / "certificate.safetensors"), "--arch", ARCH, "--weights", weights],
        "compare": [*net, "--forget", "2", *methods, *out],
        "export": ["--run", str(runs / "neggrad"), "--out", str(tmp_path / "w.npz")],
        "methods": [],
        "models": [],
    }


def strict(text: str):
    """Return what a line of JSON says; not of JSON are NaN and infinities."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("command", COMMANDS)
def test_one_value_on_standard_output(command, asked, monkeypatch, capsys):
    if command == "demo":
        monkeypatch.setattr(training, "train", lambda *args, **more: training.TrainResult(network(), {}))
    capsys.readouterr()
    status = main([command, *asked[command], "--json"])
    said = capsys.readouterr()
    assert status == 0, said.err
    found = strict(said.out)
    if command in ("methods", "models"):  # lists, to be read by people, too
        assert len(found) > 5
        return
    assert said.out.count("\n") == 1
    assert found.get("exit_status", 0) == status
    assert KEYS[command] <= found.keys()
    if command not in ("verify", "export"):
        assert " of " in said.err  # progress stays, beside it
    assert main([command, *asked[command], "--json", "--quiet", *AGAIN.get(command, [])]) == 0
    again = capsys.readouterr()
    assert strict(again.out).keys() == found.keys()
    assert again.err == ""


#: What makes it possible to give a command twice.
AGAIN = {
    "demo": ["--overwrite"],
    "train": ["--resume"],
    "moments": ["--resume"],
    "unlearn": ["--resume"],
    "export": ["--overwrite"],
}
KEYS = {
    "demo": {"path", "exit_status", "runs"},
    "train": {"path", "exit_status", "accuracy", "history", "seconds", "digest", "artefacts"},
    "moments": {"path", "exit_status", "layers", "images", "bytes", "seconds"},
    "unlearn": {"path", "exit_status", "method", "goal_met", "before", "after", "seconds"},
    "evaluate": {"accuracy", "n", "by_class"},
    "verify": {"holds", "certified", "points", "regions", "shared", "checks"},
    "compare": {"path", "exit_status", "before", "runs", "chosen", "left_out"},
    "export": {"path", "like", "tensors", "changed"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_leaves_standard_output_empty(command, asked, capsys):
    capsys.readouterr()
    assert main([command, *asked[command], "--json", "--quiet", "--device=abacus"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("jaxunlearn: error: ")
    assert said.err.count("\n") == 1


def test_what_they_say_is_what_there_is(asked, tmp_path, capsys):
    assert main(["train", *asked["train"], "--json", "--quiet"]) == 0
    found = strict(capsys.readouterr().out)
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    assert all(found[name] == kept[name] for name in ("accuracy", "history", "seconds", "digest"))
    assert found["artefacts"] == [str(tmp_path / "out" / "codes.safetensors")]
    assert main(["train", *asked["train"], "--json", "--quiet", "--resume"]) == 0
    assert strict(capsys.readouterr().out) == found
    moments = [word if word != str(tmp_path / "out") else str(tmp_path / "m") for word in asked["moments"]]
    assert main(["moments", *moments, "--json", "--quiet"]) == 0
    found = strict(capsys.readouterr().out)
    assert (found["layers"], found["images"]) == ({"linear/kernel": 256}, 1540)
    assert found["bytes"] == (tmp_path / "m").stat().st_size
    compare = [word if word != str(tmp_path / "out") else str(tmp_path / "c") for word in asked["compare"]]
    assert main(["compare", *compare, "--json", "--quiet"]) == 0
    found = strict(capsys.readouterr().out)
    ((run,),) = found["runs"].values()
    (kept,) = json.loads((tmp_path / "c" / "compare.json").read_text())["runs"]["neggrad:learning_rate=0.01"]
    assert all(run[name] == kept[name] for name in ("method", "seed", "goal_met", "after", "steps", "agreement"))
    assert found["left_out"] == {"correct": "cannot pursue the goal misclassify"}
    assert found["before"].keys() >= SETS


def test_what_is_no_finite_number_is_null(capsys):
    _output.machine({"a": math.nan, "b": [1.5, math.inf], "c": ({"d": -math.inf},)})
    assert strict(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": [{"d": None}]}
