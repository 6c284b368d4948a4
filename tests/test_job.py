"""The whole job from Python: the numbers of the command line, a dataframe, figures, a folder; mistakes by name."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re

import numpy as np
import pytest

import jaxunlearn
from jaxunlearn import _tree, checkpoint, data, loop, methods, models, report
from jaxunlearn._types import Artefact
from jaxunlearn.cli.main import main
from jaxunlearn.job import request, work
from jaxunlearn.testing import tiny_problem
from tests.digits_net import ARCH, network, tensors

IDS = "2,57,151,312"
CONFIG = dict(draws=2, attack_steps=3, epsilon=1.0, learning_rate=0.003, companion_batch=32)


def pairs():
    """The digits as arrays: what is to be forgotten, the rest of the training split, the test split."""
    source = data.open_source("digits")
    rows = data.parse_forget(IDS, source, seed=0)
    sets = {"forget": rows, "retain": source.retained(rows), "test": source.splits["test"]}
    return {name: (source.images(some), source.labels[some]) for name, some in sets.items()}


def comparable(results, *, without=()):
    """What a run gave, without what a clock or the memory says, and how it was called."""
    left_out = ("seconds", "memory", "command", "extras", *without)
    return {name: value for name, value in results.items() if name not in left_out}


@pytest.fixture(scope="module")
def record():
    given = pairs()
    return jaxunlearn.unlearn(
        network(),
        given["forget"],
        ids=IDS.split(","),
        retain=given["retain"],
        test=given["test"],
        method="adv-imp",
        config=CONFIG,
        seed=3,
        class_names=[str(digit) for digit in range(10)],
        depth=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same from the command line."""
    base = tmp_path_factory.mktemp("cli")
    np.savez(base / "digits.npz", **tensors())
    argv = ["unlearn", "--arch", ARCH, "--weights", str(base / "digits.npz"), "--data", "digits", "--forget", IDS]
    argv += ["--method", "adv-imp", "--seed", "3", "--measure-depth", "--quiet", "--out", str(base / "run")]
    argv += [word for name, value in CONFIG.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(argv) == 0
    return base / "run"


# --- the numbers -------------------------------------------------------------


def test_arrays_give_the_numbers_of_the_command_line(record, folder):
    ours, theirs = json.loads(json.dumps(record.results)), report.read_run(folder).results
    # The curve watches a sample of the test set that is drawn by ids, which arrays do not have.
    apart = ("curve", "data", "origin")
    for results in (ours, theirs):  # the rows are those of the data set there, and those of the arrays here
        assert {results["digests"].pop(name) for name in ("retain rows", "test rows")}
    assert comparable(ours, without=apart) == comparable(theirs, without=apart)
    assert ours["depth"]["recognised"]["mirrored"] is not None
    assert (ours["data"], ours["command"]) == ("arrays", None)
    assert [step for step, _ in ours["curve"]["test"]] == [step for step, _ in theirs["curve"]["test"]]


@pytest.mark.parametrize("forget", [IDS, np.array([2, 57, 151, 312])], ids=["text", "rows"])
def test_a_data_set_gives_the_curve_too(forget, folder):
    ours = jaxunlearn.unlearn(network(), forget, data="digits", method="adv-imp", config=CONFIG, seed=3, depth=True)
    ours, theirs = json.loads(json.dumps(ours.results)), report.read_run(folder).results
    apart = ("origin",)  # where the weights lie
    assert comparable(ours, without=apart) == comparable(theirs, without=apart)


def test_the_method_sees_no_more_than_it_needs(monkeypatch):
    seen = []
    real = loop.run
    monkeypatch.setattr(loop, "run", lambda problem, **more: seen.append(problem) or real(problem, **more))
    given = pairs()
    few = {name: (x[:50], y[:50]) for name, (x, y) in given.items()}
    jaxunlearn.unlearn(network(), few["forget"], retain=few["retain"], test=few["test"], method="neggrad")
    jaxunlearn.unlearn(network(), few["forget"], retain=few["retain"], test=few["test"], method="oracle")
    blind, sighted = seen
    assert blind.retain is None
    assert len(sighted.retain.y) == 50
    np.testing.assert_array_equal(sighted.retain.x, few["retain"][0])
    np.testing.assert_array_equal(blind.forget.x, few["forget"][0])


def test_bytes_are_pixels():
    given = pairs()["forget"]
    pixels = np.round(given[0] * 255).astype(np.uint8)
    a = jaxunlearn.unlearn(network(), (pixels, given[1]), method="neggrad")
    b = jaxunlearn.unlearn(network(), (pixels.astype(np.float32) / 255, given[1]), method="neggrad")
    assert comparable(a.results) == comparable(b.results)


def test_relabelling_by_array_by_label_and_at_random():
    x, y = pairs()["forget"]
    wanted = (y + 1) % 10
    record = jaxunlearn.unlearn(network(), (x, y), goal="relabel", target=wanted, method="correct")
    assert [item["target"] for item in record.results["instances"]] == wanted.tolist()
    free = next(label for label in range(10) if label not in y)
    record = jaxunlearn.unlearn(network(), (x, y), goal="relabel", target=free, method="correct")
    assert {item["target"] for item in record.results["instances"]} == {free}
    drawn = [
        jaxunlearn.unlearn(network(), (x, y), goal="relabel", method="correct", seed=seed).forget.target.tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_proxies_and_public_images_reach_a_method_that_uses_them(monkeypatch):
    seen = []
    real = loop.run
    monkeypatch.setattr(loop, "run", lambda problem, **more: seen.append(problem) or real(problem, **more))
    given = tiny_problem()
    pair, public = (given.forget.x, given.forget.y), np.asarray(given.forget.x)[::-1].copy()
    jaxunlearn.unlearn(given.model, pair, public=public, config=dict(proxies=16, steps=2))
    np.testing.assert_array_equal(seen[0].public, public)
    record = jaxunlearn.unlearn(
        given.model, pair, artefacts={"original": given.model}, config=dict(proxies=16, steps=2)
    )
    assert seen[1].artefacts["original"] is given.model
    assert record.results["saw"] == {"forget": len(given.forget.y)}
    made = Artefact(
        kind="proxies",
        version=1,
        arrays={"x": public},
        meta={},
        model_digest=_tree.model_digest(given.model),
    )
    record = jaxunlearn.unlearn(given.model, pair, artefacts={"proxies": made}, config=dict(proxies=16, steps=2))
    assert record.results["saw"] == {"forget": len(public), "inversion": len(public)}
    with pytest.raises(ValueError, match="another model"):
        jaxunlearn.unlearn(network(), pairs()["forget"], artefacts={"proxies": made})


def test_as_many_public_images_are_used_as_on_the_command_line(monkeypatch, tmp_path):
    seen = []
    real = loop.run
    monkeypatch.setattr(loop, "run", lambda problem, **more: seen.append(problem) or real(problem, **more))
    monkeypatch.setattr(request, "MOST_PUBLIC", 5)
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    x, config = images.astype(np.float32) / 255, dict(proxies=16, steps=2)
    record = jaxunlearn.unlearn(network(), pairs()["forget"], public=x, config=config, seed=3)
    assert record.results["saw"] == {"forget": 4, "public": 5}
    np.savez(tmp_path / "mine.npz", x=images)
    checkpoint.save(tmp_path / "net", network())
    argv = [
        "unlearn",
        "--weights",
        str(tmp_path / "net"),
        "--data",
        "digits",
        "--forget",
        "5",
        "--seed",
        "3",
        "--quiet",
    ]
    more = ["--proxies", "16", "--steps", "2", "--public", f"npz:{tmp_path / 'mine.npz'}", "--out", str(tmp_path / "a")]
    assert main([*argv, *more]) in (0, 3)
    np.testing.assert_array_equal(seen[0].public, seen[1].public)
    assert 0 < len(np.unique(np.where((x[:, None] == seen[0].public).all((2, 3, 4)))[0])) == 5


def test_only_as_many_are_measured_as_asked():
    given = pairs()
    record = jaxunlearn.unlearn(
        network(), given["forget"], retain=given["retain"], method="neggrad", limits={"retain": 30}
    )
    assert record.results["sizes"] == {"forget": 4, "retain": 30}
    assert record.before["retain"] is not None
    assert "test" not in record.before


def test_progress_is_told():
    told = []
    jaxunlearn.unlearn(network(), pairs()["forget"], method="neggrad", progress=lambda *what: told.append(what))
    labels = list(dict.fromkeys(label for label, _, _ in told))
    assert labels == [
        "measuring before: forget set",
        "unlearning (neggrad)",
        "verifying",
        "measuring after: forget set",
    ]


def test_an_interrupted_run_keeps_what_it_has(monkeypatch):
    real = work.Watch.__call__

    def stop(self, event):
        real(self, event)
        if event.steps == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(work.Watch, "__call__", stop)
    given = pairs()
    settings = dict(learning_rate=1e-9)
    record = jaxunlearn.unlearn(network(), given["forget"], test=given["test"], method="neggrad", config=settings)
    assert (record.result.stop_reason, record.result.steps) == ("interrupted", 2)
    assert not record.forgotten.any()
    assert set(record.after) == {"forget"}


# --- what it gives -----------------------------------------------------------


def test_a_dataframe_has_a_row_an_instance(record):
    frame = record.dataframe()
    assert frame.index.tolist() == IDS.split(",")
    assert frame.index.name == "id"
    instances = record.results["instances"]
    for name in ("label", "before", "after", "forgotten", "forgotten_at", "confidence_after"):
        assert frame[name].tolist() == [item[name] for item in instances]
    assert frame["after_name"].tolist() == [str(item["after"]) for item in instances]
    assert frame["forgotten"].dtype == bool
    assert "target" not in frame
    assert (frame["label"] != frame["after"]).all()


def test_a_dataframe_of_what_is_not_a_number(record):
    logits = np.array(record.logits_after)
    logits[1] = np.nan
    _, y = pairs()["forget"]
    relabelled = record.forget._replace(target=(y + 1) % 10)
    broken = dataclasses.replace(record, logits_after=logits, goal="relabel", forget=relabelled, class_names=())
    frame = broken.dataframe()
    assert frame["after"].isna().tolist() == [False, True, False, False]
    assert np.isnan(frame["confidence_after"].iloc[1])
    assert frame["target"].tolist() == ((y + 1) % 10).tolist()
    assert not [name for name in frame if name.endswith("_name")]


def test_without_pandas_it_is_one_line(record, monkeypatch):
    real = builtins.__import__

    def none(name, *args, **more):
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(ModuleNotFoundError, match=r"^a dataframe needs pandas: pip install 'jaxunlearn\[pandas\]'$"):
        record.dataframe()


def test_figures_are_those_of_the_report(record, tmp_path):
    from matplotlib.figure import Figure

    figures = record.figures()
    assert list(figures) == ["forgotten", "curves", "transitions", "adversarial"]
    assert all(isinstance(figure, Figure) for figure in figures.values())
    figures["curves"].savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_what_is_saved_is_what_the_command_line_writes(record, folder, tmp_path):
    path = record.save(tmp_path / "run")
    assert path == tmp_path / "run"
    assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in folder.iterdir())
    assert report.read_run(path).results == json.loads(json.dumps(record.results))
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        record.save(path)
    record.save(path, overwrite=True)
    back = checkpoint.load(path / "checkpoint", models.from_recipe)
    x = pairs()["forget"][0]
    np.testing.assert_allclose(back(x), record.result.model(x), rtol=1e-6, atol=1e-6)


def test_a_network_without_a_recipe_is_kept_as_its_weights(tmp_path):
    given = tiny_problem()
    record = jaxunlearn.unlearn(given.model, (given.forget.x, given.forget.y), method="neggrad")
    path = record.save(tmp_path / "run")
    assert not (path / "checkpoint").exists()
    with np.load(path / "weights.npz") as arrays:
        kept = dict(arrays)
    model = record.result.model
    assert kept.keys() == _tree.flatten_paths({"params": model.params, "model_state": model.model_state}).keys()
    np.testing.assert_array_equal(kept["params/head/kernel"], model.params["head"]["kernel"])
    assert report.read_run(path).results["goal_met"]
    for name in ("report.md", "report.html"):
        said = re.sub("</?code>", "`", (path / name).read_text())
        assert "`weights.npz` holds the unlearned network, `results.json` every number above." in said
        assert "`checkpoint/`" not in said


# --- mistakes ----------------------------------------------------------------


def mistakes():
    x, y = np.zeros((2, 8, 8, 1), np.float32), np.array([0, 1])
    return [
        (dict(forget=(x, y), method="adv-impp"), r"unknown method 'adv-impp'; did you mean 'adv-imp'\?"),
        (dict(forget=(x, y), config=dict(strenght=1)), "unknown hyper-parameter 'strenght'"),
        (dict(forget=(x, y), config=methods.get("adv").Config()), "config must be the Config of method 'minimal-edit'"),
        (dict(forget=(x, y), goal="forget"), "goal must be one of 'misclassify', 'relabel'; got 'forget'"),
        (dict(forget=(x, y), target=1), "target is for goal 'relabel'"),
        (
            dict(forget=(x, y), goal="relabel", target=[1]),
            r"target must have a label for each of the 2 .*; got int64 of shape \(1,",
        ),
        (dict(forget=(x, y), goal="relabel", target=[0.5, 2.5]), "got float64 of shape"),
        (dict(forget=(x, y), goal="relabel", target=[0, 3]), "forget.target must differ from the true label; row 0"),
        (dict(forget=(x, y), seed=-1), "seed must be a whole number from 0 to 4294967295; got -1"),
        (dict(forget=(x, y), seed=True), "seed must be a whole number"),
        (dict(forget=(x, y), precision="tf32"), "precision must be one of 'highest', 'high', 'default'; got 'tf32'"),
        (dict(forget=x), r"forget must be a pair \(x, y\) of arrays; got ndarray"),
        (dict(forget=(x[..., 0], y)), r"forget.x must have shape \(batch, 8, 8, 1\); got \(2, 8, 8\)"),
        (dict(forget=(x + 2, y)), r"forget.x must lie in \[0, 1\]; got values from 2 to 2"),
        (dict(forget=(x * np.nan, y)), "forget.x has NaN or infinite values in row 0"),
        (dict(forget=(x, y / 2)), r"forget.y must be whole numbers, one an instance; got float64 of shape \(2,\)"),
        (dict(forget=(x, y[:1])), r"forget must have fields of one length; got \{'x': 2, 'y': 1\}"),
        (dict(forget=(x, y + 9)), "forget.y must be labels from 0 to 9; got 10 in row 1"),
        (dict(forget=(x[:0], y[:0])), "forget is empty: leave it out, or give at least one instance"),
        (dict(forget=(x, y), test=(x, y - 1)), "test.y must be labels from 0 to 9; got -1 in row 0"),
        (dict(forget=(x, y), ids=["a"]), "ids must name each instance of the forget set; got 1 for 2"),
        (dict(forget=(x, y), ids=["a", "a"]), "ids of arrays must not repeat; 'a' occurs 2 times"),
        (dict(forget=(x, y), class_names=["a"]), "class_names must have 10 names; got 1"),
        (dict(forget=(x, y), method="neggrad", public=x), "method 'neggrad' has no use for public; leave it out"),
        (dict(forget=(x, y), public=x[..., 0]), "public must have shape"),
        (dict(forget=(x, y), artefacts={"codes": 1}), "method 'minimal-edit' has no use for codes; leave it out"),
        (
            dict(forget=(x, y), artefacts={"proxies": x}),
            r"artefacts\['proxies'\] must be of type Artefact; got ndarray",
        ),
        (
            dict(forget=(x, y), artefacts={"public": x}),
            "public is no artefact: it has an argument of its own",
        ),
        (dict(forget=(x, y), artefacts={"held": x}), "held is no artefact"),
        (
            dict(forget=(x, y), method="pgu", artefacts={"moments": 1}),
            r"artefacts\['moments'\] must be of type Artefact",
        ),
        (dict(forget=(x, y), method="oracle"), "method 'oracle' needs 'retain', which the problem does not have"),
        (dict(forget=(x, y), limits={"forget": 1}), "limits must be one of 'retain', 'test'; got 'forget'"),
        (dict(forget=(x, y), limits={"test": 0}), r"limits\['test'\] must be at least 1; got 0"),
        (dict(forget="5,57"), "forget='5,57' names instances of a data set: give data, too"),
        (dict(forget="5,57", data="digits", test=(x, y)), "test goes with arrays: digits has its own"),
        (dict(forget="99999", data="digits"), "unknown id '99999'"),
        (dict(forget=[5, 5], data="digits"), "instance 5 is named 2 times"),
        (dict(forget=(x, y), data="digits"), "forget must be numbers of rows of digits, or text; got tuple"),
        (dict(forget=[], data="digits"), "forget must be numbers of rows"),
        (dict(forget=[True], data="digits"), "forget must be numbers of rows"),
        (dict(forget=[5], data=5), "data must be a Source or text; got int"),
        (
            dict(forget=[5], data="digits", class_names="abcdefghij"),
            "class_names goes with arrays and files: digits",
        ),
        (dict(forget=(x, y), previous="absent"), "previous goes with data: arrays have no names"),
        (dict(forget=[7], data="digits"), "instance 7 is in the split 'test'"),
    ]


@pytest.mark.parametrize(("given", "message"), mistakes(), ids=[message[:40] for _, message in mistakes()])
def test_a_mistake_is_named_before_any_work(given, message, monkeypatch):
    monkeypatch.setattr(work, "perform", lambda *args, **more: pytest.fail("work began"))
    monkeypatch.setattr(jaxunlearn.job.call, "perform", work.perform)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        jaxunlearn.unlearn(network(), **given)
    assert "\n" not in str(caught.value)


def test_depth_and_bytes_need_images_in_the_usual_box():
    given = tiny_problem()
    flat = given.model.replace(spec=_spec(given.model.spec, input_shape=(9,)))
    with pytest.raises(ValueError, match=r"depth is measured on images; the network takes inputs of shape \(9,\)"):
        jaxunlearn.unlearn(flat, (np.zeros((1, 9)), np.array([0])), depth=True)
    other = given.model.replace(spec=_spec(given.model.spec, box=(-1.0, 1.0)))
    with pytest.raises(ValueError, match=r"forget\.x has pixels of 0 to 255; give floats in the network's box"):
        jaxunlearn.unlearn(other, (np.zeros((1, 3, 3, 1), np.uint8), np.array([0])))
    digits = data.open_source("digits")
    with pytest.raises(ValueError, match="the images of digits are 8x8x1, the network takes 3x3x1"):
        jaxunlearn.unlearn(given.model, "5", data=digits)


def _spec(spec, **changes):
    return dataclasses.replace(spec, **changes)


def test_what_cannot_be_names_the_instances():
    x, y = pairs()["forget"]
    twice = (np.concatenate([x[:1], x[:1]]), np.array([y[0], y[0]]))
    with pytest.raises(jaxunlearn.curvature.InfeasibleError, match="by id: first, second"):
        jaxunlearn.unlearn(
            network(), twice, goal="relabel", target=[(y[0] + 1) % 10, (y[0] + 2) % 10], ids=["first", "second"]
        )
