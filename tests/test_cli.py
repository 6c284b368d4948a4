"""The commands from end to end on the digits, in this process: what they print, write and return."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import checkpoint, methods, models, report
from jaxunlearn._files import Recovered
from jaxunlearn.artefacts import KINDS
from jaxunlearn.cli import _cache, _estimate, _flags, _output, _resume, demo
from jaxunlearn.cli.main import COMMANDS, main
from jaxunlearn.data import open_source
from jaxunlearn.job import digests
from tests.digits_net import ARCH, network, tensors

#: Cheap settings of ADV and ADV+IMP, with a learning rate at which it forgets within seconds.
FAST = [
    "--method",
    "adv-imp",
    "--draws",
    "2",
    "--attack-steps",
    "3",
    "--epsilon",
    "1",
    "--learning-rate",
    "0.003",
    "--companion-batch",
    "32",
]
IDS = "2,57,151,312"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights as a third party would give it."""
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    np.savez(path, **{f"module.{name}": value for name, value in tensors().items()})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights):
    """A finished run of ADV+IMP on four digits."""
    out = tmp_path_factory.mktemp("runs") / "first"
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS]
    assert main([*argv, "--out", str(out), "--seed", "3", "--quiet", *FAST]) == 0
    return out


def results(path):
    """Return a run's results.json."""
    return json.loads((path / "results.json").read_text())


# --- unlearn -----------------------------------------------------------------


def test_a_run_folder_says_what_happened(run, weights):
    found = results(run)
    assert sorted(p.name for p in run.iterdir()) == [
        "adversarial.png", "checkpoint", "curves.png", "forgotten.png", "report.html", "report.md", "results.json",
        "transitions.png",
    ]  # fmt: skip
    assert found["schema_version"] == 1
    assert found["before"]["forget"] == 1.0
    assert found["after"]["forget"] == 0.0
    assert found["before"]["retain"] > 0.9
    assert 0 < found["after"]["test"] <= 1
    assert [instance["id"] for instance in found["instances"]] == IDS.split(",")
    assert all(0 < instance["forgotten_at"] <= found["steps"] for instance in found["instances"])
    assert (found["stop_reason"], found["goal"], found["method"], found["seed"]) == (
        "forgotten", "misclassify", "adv-imp", 3,
    )  # fmt: skip
    assert {"load", "measure before", "prepare", "unlearn", "verify", "measure after"} <= found["seconds"].keys()
    assert {"jax", "numpy", "optax", "flax", "python", "jaxunlearn"} <= found["versions"].keys()
    assert found["config"]["draws"] == 2
    assert found["sizes"] == {"forget": 4, "retain": 1536, "test": 257}
    assert found["command"].startswith(f"jaxunlearn unlearn --arch {ARCH} --weights {weights}")
    assert found["extras"]["forget"] == IDS
    assert found["digests"]["weights before"] != found["digests"]["weights after"]
    source, rows = open_source("digits"), [int(name) for name in IDS.split(",")]
    again = digests.forget_set(source.images(rows), source.labels[rows], IDS.split(","))
    assert found["digests"]["forget set"] == again
    assert found["digests"].keys() == {"weights before", "weights after", "forget set", "retain rows", "test rows"}
    assert again in (run / "report.html").read_text()
    assert f"| forget set | `{again}` |" in (run / "report.md").read_text()


def test_what_is_recorded_is_what_the_checkpoint_does(run):
    from jaxunlearn import inference
    from jaxunlearn.audits.accuracy import accuracy

    source = open_source("digits")
    model = checkpoint.load(run / "checkpoint", models.from_recipe)
    rows = source.splits["test"]
    assert accuracy(inference.logits(model, source.view(rows)), source.labels[rows]) == results(run)["after"]["test"]
    forget = [source.row_of(name) for name in IDS.split(",")]
    predicted = inference.logits(model, source.view(forget)).argmax(axis=1)
    assert predicted.tolist() == [instance["after"] for instance in results(run)["instances"]]


def test_the_same_command_gives_the_same_weights(run, weights, tmp_path):
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS]
    assert main([*argv, "--out", str(tmp_path / "again"), "--seed", "3", "--quiet", *FAST]) == 0
    assert results(tmp_path / "again")["digests"] == results(run)["digests"]


def test_nothing_but_the_forget_set_reaches_the_method(run, weights, tmp_path, monkeypatch):
    from jaxunlearn import loop

    seen = []
    real = loop.run
    monkeypatch.setattr(loop, "run", lambda problem, **kwargs: seen.append(problem) or real(problem, **kwargs))
    argv = ["unlearn", "--weights", str(run), "--data", "digits", "--forget", "501,640", "--quiet", *FAST]
    main([*argv, "--max-passes", "1", "--out", str(tmp_path / "a")])
    (problem,) = seen
    assert problem.retain is None
    assert problem.public is None
    assert problem.forget.x.shape == (2, 8, 8, 1)


def test_a_method_that_needs_retain_data_gets_all_of_them_but_the_forget_set(weights, tmp_path, monkeypatch):
    from jaxunlearn import loop

    seen = []
    real = loop.run
    monkeypatch.setattr(loop, "run", lambda problem, **kwargs: seen.append(problem) or real(problem, **kwargs))
    argv = ["unlearn", "--method", "oracle", "--arch", ARCH, "--weights", str(weights), "--data", "digits"]
    main([*argv, "--forget", "501,640", "--quiet", "--max-passes", "1", "--out", str(tmp_path / "a")])
    assert seen[0].retain.x.shape[0] == 1538


def test_the_default_method_is_the_minimal_edit(weights, tmp_path, capsys):
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS]
    assert main([*argv, "--proxies", "64", "--out", str(tmp_path / "a"), "--quiet"]) == 0
    found = results(tmp_path / "a")
    assert found["method"] == "minimal-edit"
    assert found["after"]["forget"] == 0
    assert found["after"]["test"] > found["before"]["test"] - 0.1
    assert found["extras"]["proxies"] == {"images": 16}
    assert (tmp_path / "a" / "proxies.png").is_file()
    capsys.readouterr()
    assert main(["unlearn", "--help"]) == 0
    assert "default: minimal-edit" in capsys.readouterr().out


def test_budget_spent_is_exit_status_3_and_the_result_is_kept(weights, tmp_path, capsys):
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", "random:2"]
    out = tmp_path / "kept"
    assert main([*argv, "--method", "neggrad", "--learning-rate", "1e-9", "--max-passes", "2", "--out", str(out)]) == 3
    said = capsys.readouterr()
    assert re.search(r"2 of 2 instances are not forgotten \(\d+, \d+\): step budget is spent after 2 steps", said.err)
    assert str(out) in said.err
    assert results(out)["stop_reason"] == "max_steps"
    assert [instance["forgotten_at"] for instance in results(out)["instances"]] == [-1, -1]


def test_relabel_to_labels_of_a_file(weights, tmp_path):
    (tmp_path / "t.csv").write_text("2,9\n57,0\n")
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", "2,57"]
    argv += ["--goal", "relabel", "--target", f"@{tmp_path / 't.csv'}", "--method", "correct", "--quiet"]
    assert main([*argv, "--learning-rate", "0.003", "--out", str(tmp_path / "r")]) == 0
    assert [(i["target"], i["after"]) for i in results(tmp_path / "r")["instances"]] == [(9, 9), (0, 0)]


def test_from_a_run_goes_on_and_measures_its_instances_again(run, tmp_path, capsys):
    out = tmp_path / "second"
    argv = ["unlearn", "--from", str(run), "--forget", "501,640", "--out", str(out), "--eval-limit", "100", *FAST]
    status = main(argv)  # the data are those of the run
    found = results(out)
    assert status == (0 if all(item["forgotten"] for item in found["earlier"]) else 3)
    assert found["digests"]["weights before"] == results(run)["digests"]["weights after"]
    assert [item["id"] for item in found["earlier"]] == IDS.split(",")
    assert {item["run"] for item in found["earlier"]} == {str(run)}
    assert found["sizes"] == {"forget": 2, "retain": 100, "test": 100}
    kept = sum(item["forgotten"] for item in found["earlier"])
    said = capsys.readouterr().out
    assert f"Of 4 instances forgotten in earlier runs, {kept} are still forgotten." in said
    assert "4 instances of earlier runs" in said
    for item in found["earlier"]:
        assert item["forgotten"] == (item["after"] != item["label"])

    third = ["unlearn", "--from", str(out), "--forget", "2,666", "--out", str(tmp_path / "third"), "--quiet", *FAST]
    main(third)
    found = results(tmp_path / "third")  # what is asked for again is no earlier instance any more
    assert [item["id"] for item in found["earlier"]] == ["57", "151", "312", "501", "640"]
    assert [item["run"] for item in found["earlier"]] == [str(run)] * 3 + [str(out)] * 2
    assert found["sizes"]["retain"] == 1540 - 7


def test_overwrite_replaces_an_earlier_run_only_when_asked(run, weights, tmp_path, capsys):
    out = tmp_path / "o"
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--method", "neggrad"]
    argv += ["--learning-rate", "0.003", "--quiet", "--out", str(out)]
    assert main([*argv, "--forget", "2"]) == 0
    assert main([*argv, "--forget", "57"]) == 2
    assert "holds an earlier run" in capsys.readouterr().err
    assert main([*argv, "--forget", "57", "--overwrite"]) == 0
    assert results(out)["instances"][0]["id"] == "57"


def test_depth_is_measured_when_asked(weights, tmp_path, monkeypatch, capsys):
    from jaxunlearn.job import work

    shares = {"exact": 0.0, "mirrored": 0.5, "cropped": None}
    monkeypatch.setattr(work, "depth", lambda model, x, y, **kwargs: {"recognised": shares, "images": len(y)})
    monkeypatch.setattr(report.folder, "_fill", lambda folder, record: seen.append(record))
    seen: list[report.RunRecord] = []
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--method", "neggrad"]
    argv += ["--learning-rate", "0.003", "--forget", "2,57", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "a"), "--measure-depth"]) == 0
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    assert [record.depth for record in seen] == [{"recognised": shares, "images": 2}, None]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("still given the old label") == 1
    assert re.search(r"mirrored % cropped % ─+ still given the old label 50.00 - ", said)
    assert "depth" in seen[0].seconds


def test_a_dry_run_estimates_and_writes_nothing(weights, tmp_path, capsys):
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS]
    assert main([*argv, "--out", str(tmp_path / "never"), "--dry-run", *FAST]) == 0
    said = capsys.readouterr().out
    assert "adv-imp, seed 0, learning_rate=0.003" in said
    assert re.search(r"attack +about .* for 8 images of 3 steps each", said)
    assert re.search(r"steps +about .* a step of 12 images; at most 200 steps", said)
    assert re.search(r"memory +about 115 kB for the data set .* within a step, as compiled", " ".join(said.split()))
    assert "an estimate" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [name for name in methods.names() if not set(methods.get(name).needs) & {*KINDS}])
def test_every_method_can_be_estimated(method, weights, capsys):
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", "2,57"]
    goal = methods.get(method).goals[0]
    assert main([*argv, "--method", method, "--goal", goal, "--dry-run", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert re.search(r"steps +(about|at most)", said.out)


def test_durations_and_sizes_read_well():
    assert [_estimate._time(s) for s in (0.013, 0.7, 45, 300, 9000)] == ["0.01 s", "1 s", "45 s", "5 min", "2.5 h"]
    assert [_estimate._bytes(n) for n in (4e3, 3e6, 2.5e9)] == ["4 kB", "3 MB", "2.5 GB"]


def test_unlearning_is_interrupted_between_steps_and_kept(weights, tmp_path, monkeypatch, capsys):
    from jaxunlearn.job import work

    look = work.Watch.__call__

    def stop_at_3(self, event):
        look(self, event)
        if event.steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(work.Watch, "__call__", stop_at_3)
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS]
    out = tmp_path / "part"
    assert main([*argv, "--method", "neggrad", "--learning-rate", "1e-9", "--out", str(out)]) == 130
    assert f"interrupted after 3 steps, 0 of 4 instances forgotten; the result so far is kept in {out}" in (
        capsys.readouterr().err
    )
    found = results(out)
    assert found["stop_reason"] == "interrupted"
    assert found["steps"] == 3
    assert found["after"] == {"forget": 1.0, "retain": None, "test": None}


def test_interrupted_before_the_first_step_writes_nothing(weights, tmp_path, monkeypatch, capsys):
    from jaxunlearn import inference

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "logits", interrupted)
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr().err == "jaxunlearn: interrupted; nothing was written, the same command begins anew\n"
    assert list(tmp_path.iterdir()) == []


def test_demo_interrupted_while_it_writes_says_which_folders_there_are(tmp_path, monkeypatch, capsys):
    from jaxunlearn.cli import _run, main as program

    def write(folder, record, *, overwrite):
        if record.method == "c":
            raise KeyboardInterrupt
        return folder

    def interrupted(arguments):
        records = [SimpleNamespace(method=method) for method in "abcd"]
        demo._tell(SimpleNamespace(out=str(tmp_path), overwrite=False), records)

    monkeypatch.setattr(_run, "write", write)
    monkeypatch.setattr(program, "_dispatch", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == f"jaxunlearn: interrupted; of 4 folders in {tmp_path} there are a, b\n"


@pytest.mark.parametrize("flags", [["--run"], ["--data", "digits", "--weights"]], ids=["run", "weights"])
def test_a_run_whose_replacement_was_killed_is_put_back_in_one_line(run, tmp_path, capsys, flags):
    aside, path = tmp_path / ".a.k1ll3d_0.part", tmp_path / "a"
    (aside / "new").mkdir(parents=True)
    shutil.copytree(run, aside / "old")
    with warnings.catch_warnings():
        warnings.simplefilter("default", Recovered)
        assert main(["evaluate", *flags, str(path), "--quiet"]) == 0
    told = f"jaxunlearn: {path} was about to be replaced when its process was killed: the earlier run is there again, "
    assert capsys.readouterr().err == f"{told}the new one is in {aside / 'new'}\n"
    assert results(path) == results(run)


# --- no images ---------------------------------------------------------------


@pytest.mark.parametrize("method", [FAST, ["--method", "minimal-edit", "--proxies", "64"]], ids=["adv-imp", "edit"])
def test_without_images_nobody_is_seen(weights, tmp_path, method):
    out = tmp_path / "run"
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", IDS, *method]
    assert main([*argv, "--out", str(out), "--no-images", "--quiet"]) in (0, 3)
    pictures = {
        file.name: file.read_bytes() for file in out.rglob("*") if Image.registered_extensions().get(file.suffix)
    }
    assert pictures.keys() == {"curves.png", "transitions.png"}
    page = (out / "report.html").read_text()
    shown = [base64.b64decode(text) for text in re.findall(r"data:image/[a-z+]+;base64,([^\"]*)", page)]
    assert shown == list(pictures.values()) or shown == list(pictures.values())[::-1]
    assert page.count("<img") == 2
    assert 'class="thumb' not in page
    assert "The images themselves are left out of this report, as was asked." in page
    assert re.findall(r"!\[.*\]\((.*)\)", (out / "report.md").read_text()) == ["curves.png", "transitions.png"]


# --- evaluate ----------------------------------------------------------------


def test_evaluate_a_run_prints_one_json_object(run, capsys):
    assert main(["evaluate", "--run", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"accuracy", "n", "by_class", "split"}
    assert found["split"] == "test"
    assert found["accuracy"] == results(run)["after"]["test"]
    assert found["n"] == 257
    source = open_source("digits")
    counts = np.bincount(source.labels[source.splits["test"]])
    mean = sum(found["by_class"][str(c)] * counts[c] for c in range(10)) / 257
    assert mean == pytest.approx(found["accuracy"])


def test_evaluate_weights_on_another_split_prints_a_table(weights, capsys):
    argv = ["evaluate", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--split", "train"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert re.search(r"all of train +1540 +9\d\.\d\d", said)
    assert len(re.findall(r"^\d +1\d\d ", said, re.MULTILINE)) == 10


def test_evaluate_a_checkpoint_folder_and_a_model_of_more_classes_than_the_data(run, tmp_path, capsys):
    source = open_source("digits")
    rows = source.splits["test"][source.labels[source.splits["test"]] < 3]
    split = np.full(len(rows), "test", "U5")
    split[0] = "train"
    np.savez(tmp_path / "d.npz", x=source.images(rows), y=source.labels[rows], split=split)
    argv = ["evaluate", "--weights", str(run / "checkpoint"), "--data", f"npz:{tmp_path / 'd.npz'}", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == len(rows) - 1
    assert found["by_class"]["7"] is None


def test_weights_say_how_many_classes_there_are(tmp_path, capsys):
    few = dict(tensors())
    few["linear.weight"], few["linear.bias"] = few["linear.weight"][:6], few["linear.bias"][:6]
    np.savez(tmp_path / "six.npz", **few)
    np.savez(tmp_path / "d.npz", x=np.zeros((6, 8, 8)), y=np.arange(6))
    argv = ["evaluate", "--arch", ARCH, "--weights", str(tmp_path / "six.npz"), "--json", "--split", "train"]
    assert main([*argv, "--data", f"npz:{tmp_path / 'd.npz'}"]) == 0
    assert len(json.loads(capsys.readouterr().out)["by_class"]) == 6


def test_mean_and_std_go_inside_the_network(weights, capsys):
    argv = ["evaluate", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--json"]
    accuracies = []
    for more in ([], ["--mean", "0", "--std", "1"], ["--mean", "0", "--std", "0.01"]):
        assert main([*argv, *more]) == 0
        accuracies.append(json.loads(capsys.readouterr().out)["accuracy"])
    assert accuracies[0] == accuracies[1] > accuracies[2]


def test_a_plan_stands_in_a_log_before_what_takes_long(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="utf-8"))
    _output.facts([("data", "digits")])
    assert written.getvalue() == b"data  digits\n"


# --- methods and flags -------------------------------------------------------


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    for spec in methods.all_specs().values():
        assert re.search(rf"^{spec.name}\n  does ", said, re.MULTILINE)
    assert main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == list(methods.names())
    for entry in found:
        assert {"goals", "needs", "cost", "paper", "summary", "hyper_parameters"} <= entry.keys()


@pytest.mark.parametrize("method", methods.names())
def test_help_shows_every_hyper_parameter_of_a_method(method, capsys, monkeypatch):
    import dataclasses

    monkeypatch.setenv("COLUMNS", "80")
    assert main(["unlearn", "--method", method, "--help"]) == 0
    said = capsys.readouterr().out
    Config = methods.get(method).Config
    for field in dataclasses.fields(Config):
        assert f"\n  {_flags.flag(field.name)}" in said
        if field.metadata["deviation"]:
            assert field.metadata["deviation"] in said
    assert "default" in said
    assert not re.search(r"default\s*\)", said)
    assert max(map(len, said.splitlines())) <= 130


def test_flags_win_over_the_preset_and_the_preset_over_defaults(weights, tmp_path):
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--forget", "2,57"]
    argv += [
        "--method",
        "adv-imp",
        "--preset",
        "published",
        "--batch-norm",
        "frozen",
        "--no-mas-train",
        "--mas-accumulate",
        "clean",
        "--quiet",
    ]
    main([*argv, "--out", str(tmp_path / "p"), *FAST, "--max-passes", "3"])
    config = results(tmp_path / "p")["config"]
    published = methods.get("adv-imp").Config.published()
    assert config["batch_norm"] == "frozen"
    assert config["mas_train"] is False
    assert config["targets"] == published.targets == "published"
    assert config["forget_loss"] == published.forget_loss == "cross_entropy"
    assert config["max_passes"] == 3


# --- demo --------------------------------------------------------------------


def test_the_demos_digits_are_training_digits_of_every_class():
    from jaxunlearn.data import parse_forget

    source = open_source("digits")
    rows = parse_forget(demo.IDS, source, seed=0)
    assert len(rows) == 16
    assert set(source.labels[rows]) == set(range(10))


def test_demo_trains_once_and_writes_a_run_folder_a_method(tmp_path, monkeypatch, capsys):
    from jaxunlearn import training

    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(demo, "METHODS", ("neggrad", "minimal-edit"))
    trained: list[dict] = []
    model = network()

    def train(*args, **kwargs):
        trained.append(kwargs)
        return training.TrainResult(model, {})

    monkeypatch.setattr(training, "train", train)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^before +100.00 ", said, re.MULTILINE) or re.search(r"^before +9\d.\d\d ", said, re.MULTILINE)
    assert re.search(r"^neggrad +0.00 .* 16 of 16 .* all forgotten", said, re.MULTILINE)
    assert re.search(r"^minimal-edit +0.00 .* 16 of 16 .* all forgotten", said, re.MULTILINE)
    assert "not that shifted or" in said
    first, second = said.rstrip().splitlines()[-2:]  # the one to look at first
    assert first == f"  {out}/minimal-edit/report.html"
    assert second == f"  {out}/neggrad/report.html"
    assert results(out / "neggrad")["after"]["forget"] == 0.0

    assert main(["demo", "--out", str(out)]) == 2  # an earlier run is there
    assert main(["demo", "--out", str(out), "--overwrite", "--quiet"]) == 0
    assert len(trained) == 1
    for manifest in (tmp_path / "cache").rglob("checkpoint.json"):
        manifest.write_text("{")
    assert main(["demo", "--out", str(out), "--overwrite", "--quiet"]) == 0  # a damaged cache is no obstacle
    assert len(trained) == 2


def test_the_second_of_two_demos_into_one_folder_is_refused(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    monkeypatch.setattr(demo, "_network", lambda *args, **more: pytest.fail("began"))
    with _resume.only_run(out / demo.METHODS[0]):
        assert main(["demo", "--out", str(out)]) == 2
    told = f"another process is writing to {out}/neggrad: wait for it, or choose another output folder"
    assert capsys.readouterr().err == f"jaxunlearn: error: {told}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "cache")
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quiet"]) == 0
    found = {name: results(tmp_path / "demo" / name) for name in demo.METHODS}
    assert all(run["after"]["forget"] == 0 for run in found.values())
    assert list(found) == ["neggrad", "adv", "adv-imp", "minimal-edit"]
    assert found["neggrad"]["after"]["retain"] < found["adv"]["after"]["retain"] - 0.2
    assert found["minimal-edit"]["after"]["retain"] > found["adv-imp"]["after"]["retain"]


# --- the entry point ---------------------------------------------------------


def test_help_and_version(capsys):
    from jaxunlearn import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxunlearn {__version__}\n"
    for argv in (["--help"], []):
        assert main(argv) == 0
        said = capsys.readouterr().out
        assert all(f"\n  {name} " in said for name in COMMANDS)
        assert max(map(len, said.splitlines())) <= 90
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"usage: jaxunlearn {name}" in capsys.readouterr().out
