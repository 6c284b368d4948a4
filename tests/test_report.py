"""The run folder: its schema, whole or not at all, pictures that show what they should, words that claim no more."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxunlearn import checkpoint, report
from jaxunlearn._types import Batch, Model, ModelSpec, Recipe, Result
from jaxunlearn.report import figures, folder, page, schema, tables, words
from tests import tiny

C = 10
FIELDS = {  # what readers of results.json may count on
    "schema_version", "before", "after", "instances", "stop_reason", "steps", "seconds", "config", "goal", "method",
    "seed", "versions", "extras",
}  # fmt: skip
DEPTH = {
    "recognised": {"exact": 0.0, "mirrored": 1.0, "cropped": 0.5, "shifted": 0.25, "noisy": 0.125, "jpeg": None},
    "restoring_l2": {"median": 0.31, "min": 0.05, "found": 4, "of": 4},
    "relearn": {"steps": 3, "max_steps": 200, "accuracy": 1.0},
}


def make(k=4, missed=0, steps=5, goal="misclassify", shape=(8, 8, 1), **changes):
    """A run that never was: k instances, of which the first ``missed`` are still given their label."""
    rng = np.random.default_rng(k)
    y = rng.integers(0, C, k)
    new = (y + 1 + rng.integers(0, C - 1, k)) % C
    given = np.where(np.arange(k) < missed, y, new)
    forgotten = given != y if goal == "misclassify" else given == new
    x = rng.uniform(size=(k, *shape)).astype(np.float32)
    forget = Batch.of(x, y, new if goal == "relabel" else None)
    near = np.clip(x + rng.normal(size=x.shape) * 0.1, 0, 1).astype(np.float32)
    adversarial = Batch.of(np.concatenate([near, near]), [*y, *y], [*new, *new])
    adversarial = adversarial._replace(index=jnp.concatenate([forget.index, forget.index]))
    model = Model(
        params={"w": jnp.ones((2, C)), "b": jnp.zeros(C)},
        model_state={},
        apply_fn=tiny.linear,
        spec=ModelSpec(num_classes=C, input_shape=(2,), recipe=Recipe(arch="linear")),
    )
    result = Result(
        model=model,
        forgotten=forgotten,
        forgotten_at=np.where(forgotten, np.arange(k) % 4 + 1, -1),
        stop_reason="completed" if not steps else "forgotten" if forgotten.all() else "max_steps",
        steps=steps,
        history={"forget_loss": np.linspace(2, 0, steps), "forgotten": np.linspace(0, forgotten.sum(), steps)},
        seconds={"prepare": 1.0, "unlearn": 2.0, "verify": 0.5},
        extras={"adversarial": adversarial},
    )
    fields = dict(
        method="adv", goal=goal, seed=0, config={"learning_rate": 1e-3, "batch_norm": "frozen"}, forget=forget,
        ids=[f"train_{i}" for i in range(k)], result=result, before={"forget": 1.0, "test": 0.9173},
        after={"forget": float(np.mean(given == y)), "test": 0.7350}, logits_before=np.eye(C)[y] * 5.0,
        logits_after=np.eye(C)[given] * 2.0, sizes={"test": 10000}, seconds={"evaluate": 9.0},
        command="jaxunlearn unlearn --seed 0",
    )  # fmt: skip
    return report.RunRecord(**(fields | changes))


def with_result(run, **changes):
    return dataclasses.replace(run, result=dataclasses.replace(run.result, **changes))


def entries(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


# --- the folder ---


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    run = make(k=4, missed=1)
    return run, report.write_run(tmp_path_factory.mktemp("runs") / "deep" / "run", run)


def test_the_folder_holds_everything_and_nothing_else_beside_it(written):
    _, path = written
    names = {p.name for p in path.iterdir()}
    assert names == {
        "results.json", "checkpoint", "report.md", "report.html",
        "forgotten.png", "curves.png", "transitions.png", "adversarial.png",
    }  # fmt: skip
    assert [p.name for p in path.parent.iterdir()] == ["run"]
    assert report.is_run(path)
    assert checkpoint.describe(report.read_run(path).checkpoint)["recipe"] == Recipe(arch="linear")
    for name in ("forgotten.png", "curves.png", "transitions.png", "adversarial.png"):
        assert f"]({name})" in (path / "report.md").read_text()


def test_results_have_the_promised_fields(written):
    run, path = written
    results = json.loads((path / "results.json").read_text(), parse_constant=pytest.fail)
    assert results.keys() >= FIELDS
    assert results["schema_version"] == 1
    assert results["before"] == {"forget": 1.0, "retain": None, "test": 0.9173}
    assert results["after"] == {"forget": 0.25, "retain": None, "test": 0.735}
    assert results["seconds"] == {"evaluate": 9.0, "prepare": 1.0, "unlearn": 2.0, "verify": 0.5}
    assert (results["stop_reason"], results["steps"], results["goal"]) == ("max_steps", 5, "misclassify")
    assert (results["forgotten"], results["goal_met"]) == (3, False)
    assert results["config"] == run.config
    assert results["versions"].keys() >= {"python", "jax", "jaxunlearn", "device"}
    assert results["extras"] == {"adversarial": {"instances": 8}}
    assert len(results["instances"]) == 4
    first, last = results["instances"][0], results["instances"][3]
    assert first.keys() >= {"id", "label", "before", "after", "forgotten_at"}
    assert (first["id"], first["before"], first["after"], first["forgotten_at"]) == (
        "train_0", first["label"], first["label"], -1,
    )  # fmt: skip
    assert last["after"] != last["label"]
    assert last["forgotten_at"] == 4
    p = np.exp([2.0] + [0.0] * 9)
    assert last["confidence_after"] == pytest.approx(p[0] / p.sum())
    assert report.read_run(path).results == results


def test_results_are_strict_json_whatever_they_hold():
    run = make(extras={"a": np.float32("nan"), "b": [np.int64(3), jnp.array([1.0, jnp.inf])], 4: Path("x"), "d": None})
    run = with_result(run, history={"loss": np.array([1.0, np.nan])})
    results = json.loads(json.dumps(run.results, allow_nan=False))
    assert results["extras"] == {"adversarial": {"instances": 8}, "a": None, "b": [3, [1.0, None]], "4": "x", "d": None}
    assert results["history"] == {"loss": [1.0, None]}
    schema.validate(results)


def test_large_arrays_of_a_method_stay_out_of_the_json():
    run = with_result(make(), extras={"teacher": {"w": np.zeros((64, 64))}, "rank": np.int32(3)})
    assert run.results["extras"] == {"rank": 3}


def test_nothing_is_called_forgotten_that_the_recorded_logits_deny():
    run = make(k=4, missed=1)
    run = with_result(run, forgotten=np.ones(4, bool))  # a result that claims too much
    assert run.forgotten.tolist() == [False, True, True, True]
    assert run.results["instances"][0]["forgotten"] is False
    assert run.results["goal_met"] is False
    broken = make(logits_after=np.full((4, C), np.nan))
    assert not broken.forgotten.any()
    assert [item["after"] for item in broken.results["instances"]] == [None] * 4


# --- whole or not at all ---


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [DISK_FULL, KeyboardInterrupt(), ValueError("odd")], ids=["disk", "ctrl-c", "error"])
@pytest.mark.parametrize("stage", ["checkpoint", "picture", "text", "rename"])
def test_failure_leaves_nothing_behind(tmp_path, monkeypatch, error, stage):
    target = {
        "checkpoint": (checkpoint, "save"),
        "picture": (figures, "forgotten"),
        "text": (words, "claims"),
        "rename": (folder.os, "replace"),
    }[stage]
    if stage != "checkpoint":
        monkeypatch.setattr(checkpoint, "save", lambda path, model: path.mkdir())
    if stage in ("text", "rename"):
        monkeypatch.setattr(figures, "draw", lambda folder, run: {})
    monkeypatch.setattr(*target, fail_with(error))
    with pytest.raises(type(error)):
        report.write_run(tmp_path / "run", make())
    assert entries(tmp_path) == []


@pytest.fixture
def quick(monkeypatch):
    """Neither Orbax nor matplotlib: only the folder is tested."""
    monkeypatch.setattr(checkpoint, "save", lambda path, model: path.mkdir())
    monkeypatch.setattr(figures, "draw", lambda folder, run: {})


def test_an_earlier_run_is_replaced_only_when_asked(tmp_path, quick):
    report.write_run(tmp_path / "run", make(seed=1))
    with pytest.raises(FileExistsError, match=r"run holds an earlier run: choose another output folder or --over"):
        report.write_run(tmp_path / "run", make(seed=2))
    (tmp_path / "run" / "of-the-old-run").touch()
    report.write_run(tmp_path / "run", make(seed=2), overwrite=True)
    assert report.read_run(tmp_path / "run").results["seed"] == 2
    assert entries(tmp_path) == ["run", "run/checkpoint", "run/report.html", "run/report.md", "run/results.json"]


@pytest.mark.parametrize("calls", [0, 1])
def test_an_earlier_run_survives_a_failed_replacement(tmp_path, quick, monkeypatch, calls):
    report.write_run(tmp_path / "run", make(seed=1))
    before, replace, count = entries(tmp_path), os.replace, []

    def fail_once(source, target):
        count.append(target)
        if len(count) == calls + 1:
            raise DISK_FULL
        replace(source, target)

    monkeypatch.setattr(folder.os, "replace", fail_once)
    with pytest.raises(OSError, match="No space left"):
        report.write_run(tmp_path / "run", make(seed=2), overwrite=True)
    assert entries(tmp_path) == before
    assert report.read_run(tmp_path / "run").results["seed"] == 1


class Killed(BaseException):
    """Stands for SIGKILL: nothing that comes after runs."""


def killed_between_the_renames(path, monkeypatch):
    """Replace a run, and stop as if killed when the earlier one is aside and the new one not yet in place."""
    real, count = os.replace, []

    def replace(source, target):
        count.append(target)
        if len(count) > 1:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "replace", replace)
        patch.setattr(folder.shutil, "rmtree", lambda path, **how: None)
        with pytest.raises(Killed):
            report.write_run(path, make(seed=2), overwrite=True)


READERS = {
    "read_run": report.read_run,
    "is_run": report.is_run,
    "check_out": lambda path: report.check_out(path, overwrite=True),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_run_that_was_aside_when_its_process_was_killed_is_put_back_and_told_of(tmp_path, quick, monkeypatch, reader):
    path = tmp_path / "run"
    report.write_run(path, make(seed=1))
    killed_between_the_renames(path, monkeypatch)
    assert [entry.name for entry in tmp_path.iterdir()] != ["run"]
    assert not path.exists()
    told = r"run was about to be replaced when its process was killed: the earlier run is there again, the new one is"
    with pytest.warns(folder._files.Recovered, match=told) as found:
        reader(path)
    assert report.read_run(path).results["seed"] == 1
    new = Path(str(found[0].message).rpartition(" is in ")[2])
    assert report.read_run(new).results["seed"] == 2  # whole, too
    report.write_run(path, make(seed=3), overwrite=True)
    assert report.read_run(path).results["seed"] == 3


def test_only_what_is_this_runs_own_is_put_back(tmp_path, quick, monkeypatch):
    report.write_run(tmp_path / "run.b", make(seed=1))
    killed_between_the_renames(tmp_path / "run.b", monkeypatch)
    assert not report.is_run(tmp_path / "run")
    (aside,) = tmp_path.glob(".run.b.*.part")
    shutil.rmtree(aside / "new")  # as if only the tidying up were not done, and the new run removed by hand
    assert not report.is_run(tmp_path / "run.b")
    assert not (tmp_path / "run.b").exists()


def test_a_reader_between_the_two_renames_costs_nothing(tmp_path, quick, monkeypatch):
    path = tmp_path / "run"
    report.write_run(path, make(seed=1))
    real, read = os.replace, []

    def replace(source, target):
        if Path(target) == path and not read:
            with pytest.warns(folder._files.Recovered):
                read.append(report.read_run(path).results["seed"])
        real(source, target)

    monkeypatch.setattr(folder.os, "replace", replace)
    report.write_run(path, make(seed=2), overwrite=True)
    assert read == [1]
    assert report.read_run(path).results["seed"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_an_empty_folder_is_a_good_place(tmp_path, quick):
    (tmp_path / "run").mkdir()
    report.write_run(tmp_path / "run", make())
    assert report.is_run(tmp_path / "run")


def test_places_that_are_not_ours_are_left_alone(tmp_path, quick):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("notes", "file", "link"):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match=rf"{name} (exists and is not a jaxunlearn run|is a symbolic)"):
                report.write_run(tmp_path / name, make(), overwrite=overwrite)
    with pytest.raises(NotADirectoryError, match=r"cannot make .*: .*file is not a folder"):
        report.check_out(tmp_path / "file" / "run")
    assert entries(tmp_path) == ["file", "link", "notes", "notes/a.txt"]


def test_a_read_only_place_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"cannot make .*run: .* is read-only"):
        report.check_out(tmp_path / "new" / "run")


def test_check_out_returns_an_absolute_path_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report.check_out("a/b") == tmp_path / "a" / "b"
    assert entries(tmp_path) == []


# --- reading ---


def test_reading_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a jaxunlearn run: it has no results\.json"):
        report.read_run(tmp_path / "none")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is no JSON: Expecting"):
        report.read_run(tmp_path)
    assert not report.is_run(tmp_path)
    (tmp_path / "results.json").write_text('{"accuracy": 1}')
    with pytest.raises(ValueError, match=r"results\.json is not that of a jaxunlearn run"):
        report.read_run(tmp_path)
    assert not report.is_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("config"), "lacks the field config"),
        (lambda r: r.update(schema_version=2), "has schema_version 2; this version reads 1"),
        (lambda r: r.update(goal="forget"), "goal must be one of misclassify, relabel; got 'forget'"),
        (lambda r: r.update(stop_reason="bored"), "stop_reason must be one of"),
        (lambda r: r.update(steps=True), "steps is of the wrong kind; got True"),
        (lambda r: r["before"].update(test=91.7), "before.test must be a fraction or null; got 91.7"),
        (lambda r: r["after"].pop("retain"), "after.retain must be a fraction or null; got 'absent'"),
        (lambda r: r["seconds"].update(unlearn=None), "seconds.unlearn must be a number; got None"),
        (lambda r: r.update(digests={"forget set": 7}), "digests.forget set must be text; got 7"),
        (lambda r: r["instances"].append(7), r"instances\[4\] must be an object; got 7"),
        (lambda r: r["instances"][1].pop("label"), r"lacks the field instances\[1\]\.label"),
        (lambda r: r["instances"][0].update(after="cat"), r"instances\[0\]\.after is of the wrong kind; got 'cat'"),
    ],
)
def test_what_is_wrong_with_results_is_named(change, message):
    results = json.loads(json.dumps(make().results))
    schema.validate(results)
    change(results)
    with pytest.raises(ValueError, match=message):
        schema.validate(results)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(logits_after=np.zeros((4, 3))), r"logits_after must have shape \(4, 10\); got \(4, 3\)"),
        (dict(logits_before=np.zeros((3, C))), r"logits_before must have shape \(4, 10\); got \(3, 10\)"),
        (dict(forget=Batch.of(np.zeros((3, 2)), [0, 0, 0])), "forget must hold one instance an id: 3 for 4 ids"),
        (dict(class_names=["cat"]), "class_names must have 10 names; got 1"),
        (dict(before={"train": 1.0}), "before must have accuracies of forget, retain, test; got 'train'"),
    ],
)
def test_a_record_that_does_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


# --- pictures ---


@pytest.mark.parametrize(
    "settings",
    [
        dict(k=1),
        dict(k=4, missed=4, shape=(32, 32, 3)),
        dict(k=60, missed=2, shape=(16, 12, 3), class_names=[f"a long name of a class, number {c}" for c in range(C)]),
        dict(k=3, steps=0, goal="relabel"),
        dict(k=2, shape=(5,)),
        dict(k=2, box=(-1.0, 1.0), curve={"test": [(0, 0.9), (3, 0.8), (5, 0.7)]}),
        dict(k=2, logits_after=np.full((2, C), np.nan)),
    ],
    ids=["one", "colour", "many", "one-shot", "vectors", "curve", "nan"],
)
def test_pictures_are_drawn_in_their_size_and_not_blank(tmp_path, settings):
    run = make(**settings)
    pictures = figures.draw(tmp_path, run)
    assert list(pictures) == ["forgotten.png", "curves.png", "transitions.png", "adversarial.png"]
    for name in pictures:
        shown = pixels(tmp_path / name)
        width, height = getattr(figures, name[:-4])(run).get_size_inches()
        assert shown.shape[:2] == (int(height * figures.DPI), int(width * figures.DPI))
        assert 300 < shown.shape[1] < 1600
        assert shown.std() > 10
        # Nothing is cut off at the border.
        border = np.concatenate([shown[:4].reshape(-1, 3), shown[-4:].reshape(-1, 3), shown[:, :4].reshape(-1, 3),
                                 shown[:, -4:].reshape(-1, 3)])  # fmt: skip
        assert (border == 255).all()


@pytest.mark.parametrize("name", ["$x_{$", "東京", "two\nlines", "a\x1b[31m", "😀", "\\frac$"])
@pytest.mark.parametrize("goal", ["misclassify", "relabel"])
def test_names_of_all_kinds_are_drawn_as_they_are(tmp_path, name, goal):
    names = [f"{name}{c}" for c in range(C)]
    run = make(k=3, goal=goal, ids=[f"{name}{i}" for i in range(3)], class_names=names, arch=name, data=name)
    figures.draw(tmp_path, run)  # no formula, and no warning of letters that the font lacks
    shown = [t.get_text() for f in run.figures().values() for t in f.findobj() if hasattr(t, "get_text")]
    plain = " ".join(name.split()).replace("\x1b", "\\x1b")
    assert shown.count(f"{plain}0") >= 3  # an id, its class in the table, and among the adversarial ones
    assert not any(char in text for text in shown for char in "\n\x1b")


def test_letters_that_the_usual_font_lacks_are_taken_from_others(monkeypatch):
    monkeypatch.setattr(figures, "ALPHABETS", ("No Such Font", "DejaVu Serif"))
    figures._fonts.cache_clear()
    try:
        texts = figures.made(make(k=1))["forgotten"][0].findobj(lambda artist: hasattr(artist, "get_fontfamily"))
        assert {tuple(text.get_fontfamily()) for text in texts} == {("sans-serif", "DejaVu Serif")}
    finally:
        figures._fonts.cache_clear()


def test_images_are_shown_with_hard_pixels_in_their_own_colours(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    run = make(k=1)
    run = dataclasses.replace(run, forget=run.forget._replace(x=jnp.asarray(colours[None] / 255, jnp.float32)))
    figures.forgotten(run).savefig(tmp_path / "forgotten.png", dpi=figures.DPI)
    shown = pixels(tmp_path / "forgotten.png").reshape(-1, 3)
    side = 1.3 * figures.DPI
    for colour in colours.reshape(-1, 3):
        assert (shown == colour).all(axis=1).sum() == pytest.approx((side / 2) ** 2, rel=0.1)


def test_a_frame_says_whether_an_image_is_forgotten(tmp_path):
    def frames(missed):
        figures.forgotten(make(k=4, missed=missed)).savefig(tmp_path / "forgotten.png", dpi=figures.DPI)
        shown = pixels(tmp_path / "forgotten.png").reshape(-1, 3).astype(int)
        return [
            (np.abs(shown - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=1) < 12).sum()
            for colour in (figures.GOOD, figures.BAD)
        ]

    (good, none), (none_either, bad) = frames(0), frames(4)
    assert none < 20 > none_either
    assert min(good, bad) > 4 * 4 * 1.3 * figures.DPI


def test_a_large_forget_set_shows_those_not_forgotten_first():
    run = make(k=60)
    stuck = np.array(run.logits_after)
    stuck[57] = run.logits_before[57]
    texts = [t.get_text() for t in figures.forgotten(dataclasses.replace(run, logits_after=stuck)).findobj()
             if hasattr(t, "get_text")]  # fmt: skip
    assert "train_57" in texts
    assert "train_59" not in texts
    assert any(text.startswith("48 of 60 shown, those not forgotten first") for text in texts)


def lines(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def test_long_ids_are_told_apart_in_pictures():
    names = ["people/a long name/img_0001.jpg", "a rather long name, 1.png", "a rather long name, 2.png", "17", "a/"]
    assert [figures._id(name) for name in names] == [
        "img_0001.jpg", "a rather…me, 1.png", "a rather…me, 2.png", "#17", "a"
    ]  # fmt: skip


def test_few_steps_are_points_and_many_a_staircase():
    for steps, style, marker in ((6, "default", "o"), (figures.FEW_STEPS + 1, "steps-post", "None")):
        accuracy, count, _ = figures.curves(make(steps=steps)).axes
        for line in (lines(accuracy)["forget set $D_f$"], count.get_lines()[0]):
            assert (line.get_drawstyle(), line.get_marker()) == (style, marker)
            assert line.get_xdata().tolist() == list(range(steps + 1))


def test_margins_stand_where_a_method_has_no_loss():
    history = {
        "largest_margin": np.array([9.0, 5.0, 1.0]),
        "predicted_margin": np.array([4.0, 1.5, -0.5]),
        "edit_norm": np.ones(3),
        "forgotten": np.array([0.0, 1.0, 4.0]),
    }
    run = with_result(make(steps=3), history=history)
    _, _, panel = figures.curves(run).axes
    assert panel.get_title(loc="left").startswith("Largest margin, logits")
    measured, predicted = lines(panel)["measured"], lines(panel)["as the step before predicted"]
    assert measured.get_xdata().tolist() == [0, 1, 2]
    assert predicted.get_xdata().tolist() == [1, 2, 3]  # what step t promised is to be seen after it
    assert len(panel.get_lines()) == 3  # and the boundary
    with_loss = with_result(run, history=history | {"forget_loss": np.ones(3)})
    assert figures.curves(with_loss).axes[2].get_title(loc="left") == "Loss"
    assert len(figures.curves(with_result(run, history={"edit_norm": np.ones(3)})).axes) == 2


def test_proxies_are_shown_and_stay_out_of_the_json(tmp_path):
    images = np.random.default_rng(0).uniform(size=(20, 8, 8, 1))
    run = with_result(make(), extras={"proxies": images})
    assert list(figures.draw(tmp_path, run)) == ["forgotten.png", "curves.png", "transitions.png", "proxies.png"]
    assert pixels(tmp_path / "proxies.png").std() > 10
    assert len(figures.proxies(run).axes) == 16
    assert run.results["extras"] == {"proxies": {"images": 20}}
    for none in ({}, {"proxies": np.zeros((4, 5))}, {"proxies": images[:0]}):  # vectors are no pictures
        assert figures.proxies(with_result(make(), extras=none)) is None


def test_no_picture_of_adversarial_examples_where_there_are_none(tmp_path):
    assert "adversarial.png" not in figures.draw(tmp_path, with_result(make(), extras={}))
    padding = make().result.extras["adversarial"]._replace(weight=jnp.zeros(8))
    assert figures.adversarial(with_result(make(), extras={"adversarial": padding})) is None


# --- words ---


def markdown(run):
    return page.markdown(run, {})


def test_the_first_lines_say_what_was_asked_what_happened_and_what_it_cost():
    text = markdown(make(k=4, arch="cifar_resnet20", data="tfds:cifar10"))
    assert text.startswith("# Forgetting 4 training images with adv\n")
    assert "The network `cifar_resnet20` should no longer give the right label to 4 training images of" in text
    assert "All 4 are now misclassified, after 5 steps and 3.5 seconds (why it stopped: every instance" in text
    assert "Accuracy on test images (10,000 of them) fell from 91.73 % to 73.50 %, by 18.23 points." in text
    assert "other training images" not in text  # not measured
    assert "BatchNorm statistics: `frozen`." in text


def test_what_was_so_before_is_no_merit_of_the_run():
    said = "so before this run already."
    assert said not in markdown(make(k=4))
    run = make(k=4)
    logits = np.array(run.logits_before)
    logits[1] = run.logits_after[1]
    assert f"every instance is forgotten). 1 of them was {said}" in markdown(make(k=4, logits_before=logits))
    relabelled = make(k=4, goal="relabel")
    logits = np.array(relabelled.logits_before)
    logits[:2] = relabelled.logits_after[:2]
    assert f" 2 of them were {said}" in markdown(make(k=4, goal="relabel", logits_before=logits))


def test_an_unfinished_job_is_said_to_be_one():
    text = markdown(make(k=4, missed=2))
    assert "2 of 4 are now misclassified, after 5 steps and 3.5 seconds (why it stopped: step budget is spent)." in text
    assert "Not forgotten: train_0, train_1. The cost below is that of an unfinished job" in text


def test_three_claims_are_kept_apart():
    text = markdown(make(k=4))
    assert "| These images are misclassified. | measured: true for 4 of 4 |" in text
    assert "| Images like them are misclassified, too. | not measured in this run;" in text
    assert "| The network cannot be told from one that never saw them. | **not claimed**" in text
    assert "## Depth" not in text


def test_depth_is_told_where_it_was_measured():
    text = markdown(make(k=4, depth=DEPTH))
    assert "measured: 12.50 % to 100.00 % of versions made from them" in text
    assert "are still recognised; see [Depth](#depth) |" in text
    assert "| mirrored | 100.00 |" in text
    assert "| JPEG-compressed | - |" in text
    assert "L2 length 0.31 (median; smallest 0.05) brings the old label back; found for 4 of 4." in text
    assert "3 steps of fine-tuning on the forget set, on a copy, teach it all of them again." in text
    text = markdown(make(k=4, depth=DEPTH | {"relearn": DEPTH["relearn"] | {"steps": 1}}))
    assert "1 step of fine-tuning on the forget set, on a copy, teaches it all of them again." in text
    deep = {
        "recognised": DEPTH["recognised"],
        "restoring_l2": {"median": None, "min": None, "found": 0, "of": 4},
        "relearn": {"steps": None, "max_steps": 200, "accuracy": 0.5},
    }
    text = markdown(make(k=4, depth=deep))
    assert "No small change of the image was found that brings the old label back (tried on 4)." in text
    assert "200 steps of fine-tuning on the forget set, on a copy, do not teach it all of them again (50.00 %" in text


def test_relabelling_names_the_labels_asked_for():
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    text = markdown(make(k=2, goal="relabel", class_names=names))
    assert "should give a chosen other label to 2 training images" in text
    assert "All 2 are now given the new label" in text
    assert "| id | label | asked for | before | after | forgotten | for good since step |" in text
    row = next(line for line in text.splitlines() if line.startswith("| train_0 "))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[5].startswith(cells[3] + ", ")


def test_earlier_requests_are_told():
    earlier = [
        {"run": "a", "id": "x", "label": 1, "after": 2, "forgotten": True},
        {"run": "a", "id": "y", "label": 1, "after": 1, "forgotten": False},
    ]
    text = markdown(make(earlier=earlier))
    known = "Of 2 instances of earlier runs 1 are still forgotten: these images themselves, not versions of them."
    assert f"{known} Remembered again: y.\n" in text
    for what, said in (("used", "held to those of the network before"), ("gone", "not found any more. All other")):
        assert said in markdown(make(earlier=earlier, extras={"first_network": what}))


def test_how_to_do_it_again():
    text = markdown(make(digests={"weights before": "ab" * 32}))
    assert "```\njaxunlearn unlearn --seed 0\n```" in text
    assert f"| weights before | `{'ab' * 32}` |" in text
    assert "| jax | " in text


def test_what_digests_of_data_are_of_is_told_where_there_are_some():
    said = "`forget set`: ids, images and labels of the images to forget, as the network got them"
    assert said in markdown(make(digests={"weights before": "ab" * 32, "forget set": "cd" * 32}))
    assert said not in markdown(make(digests={"weights before": "ab" * 32}))
    for older in ({"weights before": "ab" * 32}, {}):  # runs of before there were any are read as ever
        schema.validate(make(digests=older).results)
    results = dict(make().results)
    del results["digests"]
    schema.validate(results)


def test_long_lists_are_cut_and_say_so():
    text = markdown(make(k=300))
    assert "44 more are in `results.json`." in text
    assert "train_255 " in text
    assert "train_256 " not in text


def test_accuracy_that_stays_or_rises():
    text = markdown(make(after={"test": 0.9173}))
    assert "Accuracy on test images (10,000 of them) stayed at 91.73 %." in text
    assert "rose from 91.73 % to 92.00 %, by 0.27 points." in markdown(make(after={"test": 0.92}))
    assert "**What it cost.** Not measured." in markdown(make(before={}))


# --- table ---


def test_runs_of_one_model_share_the_row_before():
    rows = tables.summary_table([make(k=4), make(k=4, missed=1, method="adv-imp").results])
    assert rows[0] == tables.HEADER
    assert rows[1] == ("before", "100.00", "-", "91.73", "", "", "", "")
    assert rows[2] == ("adv", "0.00", "-", "73.50", "4 of 4", "5", "3.5", "every instance is forgotten")
    assert rows[3] == ("adv-imp", "25.00", "-", "73.50", "3 of 4", "5", "3.5", "step budget is spent")
    assert len(rows) == 4


def test_runs_of_different_models_do_not():
    rows = tables.summary_table([make(), make(before={"test": 0.5})])
    assert [row[0] for row in rows] == ["", "before adv", "adv", "before adv", "adv"]


def test_every_stop_reason_has_words():
    assert set(tables.REASONS) == set(schema.STOP_REASONS)
