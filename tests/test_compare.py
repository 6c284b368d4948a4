"""``jaxunlearn compare``: what its table says is what the runs gave, and a stopped comparison goes on."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import artefacts, audits, proxies
from jaxunlearn._types import Artefact
from jaxunlearn.cli import _comparison, _errors, compare
from jaxunlearn.cli._comparison import Entry
from jaxunlearn.cli.main import main
from jaxunlearn.data import Source, open_source
from jaxunlearn.report import comparison
from tests.digits_net import ARCH, tensors


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    np.savez(path, **tensors())
    return ["compare", "--arch", ARCH, "--weights", str(path), "--data", "digits", "--forget", "5,57", "--quiet"]


@pytest.fixture
def here(monkeypatch):
    """Do the runs in this process; return the names of those that were done."""
    done = []

    def in_process(work, args, path, *more):
        done.append(path.name)
        content = json.loads(json.dumps(work(args, *more)))
        _comparison.write(path, content)
        return content

    monkeypatch.setattr(_comparison, "in_process", in_process)
    return done


FAST = "neggrad:learning_rate=0.01,minimal-edit:proxies=64:steps=1"


def test_one_table_of_what_the_runs_gave_and_nothing_is_done_twice(argv, here, tmp_path, capsys):
    asked = [*argv, "--methods", f"{FAST},correct", "--no-depth", "--retain-limit", "100", "--out", str(tmp_path / "c")]
    assert main(asked) == 0
    assert len(here) == 3
    out = capsys.readouterr().out
    assert "not in the table: correct: cannot pursue the goal misclassify" in out
    assert "\nbeside the network and the forget set, each method was shown: nothing else\n" in out
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert content["before"]["sizes"] == {"forget": 2, "retain": 100, "test": 257}
    for label, (run,) in content["runs"].items():
        assert run["after"]["forget"] == 0
        assert run["after"]["test"] < content["before"]["accuracy"]["test"] + 0.01
        assert f"{100 * run['after']['test']:.2f}" in out
        assert 0 < run["agreement"]["agreement"] <= 1
        assert run["memory"]["process"] > 2**27
        assert run["saw"] == {"forget": 2}, label
    page = (tmp_path / "c" / "compare.md").read_text()
    assert "| neggrad:learning_rate=0.01 | 1 | 0.00 |" in page
    assert "correct: cannot pursue the goal misclassify" in page
    assert not (tmp_path / "c" / "compare.png").exists()  # nothing to draw without depth

    del here[:]
    assert main([*asked, "--seeds", "2"]) == 0
    assert sorted(here) == ["minimal-edit,proxies=64,steps=1-seed1.json", "neggrad,learning_rate=0.01-seed1.json"]
    runs = json.loads((tmp_path / "c" / "compare.json").read_text())["runs"]
    assert [run["seed"] for run in runs["neggrad:learning_rate=0.01"]] == [0, 1]

    capsys.readouterr()
    assert main([*asked, "--forget", "5"]) == 2
    assert "holds a comparison with another --forget (5,57, now 5): choose another folder" in capsys.readouterr().err
    (tmp_path / "c" / "before.json").write_text("{")
    assert main(asked) == 2
    assert "before.json is damaged" in capsys.readouterr().err


def test_trials_look_at_no_test_image_and_are_kept(argv, here, tmp_path, capsys):
    asked = [*argv, "--methods", "neggrad,minimal-edit:proxies=64:steps=1", "--no-depth", "--retain-limit", "50"]
    assert main([*asked, "--trials", "2", "--out", str(tmp_path / "c")]) == 0
    trials = ["neggrad-seed0-trial.json", "neggrad-seed0-x0.5-trial.json"]
    assert here[1:3] == trials  # the network before is measured first
    assert len(here) == 1 + 2 + 1 + 2 + 1
    kept = [json.loads((tmp_path / "c" / "runs" / name).read_text()) for name in trials]
    assert all(set(trial) == {"label", "factor", "config", "forgotten", "agreement"} for trial in kept)
    assert kept[1]["config"]["learning_rate"] == pytest.approx(0.5 * kept[0]["config"]["learning_rate"])
    assert re.search(r"learning_rate [0-9.e-]+ \(0.001 times (1|0.5)\)", (tmp_path / "c" / "compare.md").read_text())
    del here[:]
    assert main([*asked, "--trials", "2", "--out", str(tmp_path / "c")]) == 0
    assert not here


def test_a_trial_reads_the_images_to_forget_and_no_other(argv, tmp_path, monkeypatch):
    read, images = set(), Source.images

    def watched(self, rows):
        read.update(np.atleast_1d(rows).tolist())
        return images(self, rows)

    asked = [*argv[1:], "--no-depth", "--retain-limit", "50", "--out", str(tmp_path / "c")]
    args = compare._parser().parse_args(asked)
    facts = _comparison.before(args)
    source = open_source("digits")
    forget = {source.row_of(name) for name in facts["ids"]}
    assert len(forget) == 2
    monkeypatch.setattr(Source, "images", watched)
    for method in ("neggrad", "mnemonic-free:proxies=20:tries=1"):
        read.clear()
        _comparison.trial(args, Entry.parse(method), 0, 2.0, facts)
        assert read == forget, method
    _comparison.run(args, Entry.parse("neggrad"), 0, 1.0, facts)
    assert len(read) > len(forget), "a run is measured on test and retained images: the watch saw none"


def test_trials_share_the_adversarial_images_and_runs_make_their_own(argv, here, tmp_path, monkeypatch):
    module, made = importlib.import_module("jaxunlearn.attacks.adversarial"), []
    attack = module.attack_batch

    def counted(*args, **more):
        made.append(here[-1])
        return attack(*args, **more)

    monkeypatch.setattr(module, "attack_batch", counted)
    small = ":draws=2:attack_steps=3:max_passes=2"
    asked = [*argv, "--methods", f"adv{small},adv-imp{small}", "--trials", "3", "--no-depth", "--retain-limit", "50"]
    assert main([*asked, "--out", str(tmp_path / "c")]) == 0
    assert len(here) == 1 + 2 * (3 + 1)
    assert [name.endswith("-trial.json") for name in made] == [True, False, False]  # both methods attack alike
    assert not (tmp_path / "c" / "kept").exists()
    args = compare._parser().parse_args([*asked[1:], "--out", str(tmp_path / "alone")])
    facts = json.loads((tmp_path / "c" / "before.json").read_text())
    entry = Entry.parse(f"adv{small}")
    kept = json.loads((tmp_path / "c" / "runs" / entry.name(0, 2.0, trial=True)).read_text())
    assert kept == _comparison.trial(args, entry, 0, 2.0, facts)


def test_what_is_damaged_or_of_other_settings_is_done_again(argv, here, tmp_path):
    asked = [*argv, "--methods", "neggrad", "--no-depth", "--retain-limit", "50", "--out", str(tmp_path / "c")]
    assert main(asked) == 0
    kept = tmp_path / "c" / "runs" / "neggrad-seed0.json"
    whole = kept.read_text()
    other = json.loads(whole)
    other["config"]["learning_rate"] = 7.0
    for text in (whole[:50], "[]", json.dumps(other)):
        kept.write_text(text)
        del here[:]
        assert main(asked) == 0
        assert here == ["neggrad-seed0.json"]
        assert json.loads(kept.read_text())["config"] == json.loads(whole)["config"]


def test_another_network_of_the_same_name_does_not_come_into_the_same_table(argv, here, tmp_path, capsys):
    weights = tmp_path / "w.npz"
    np.savez(weights, **tensors())
    asked = [*argv, "--methods", "neggrad", "--no-depth", "--retain-limit", "50", "--out", str(tmp_path / "c")]
    asked[asked.index("--weights") + 1] = str(weights)
    assert main(asked) == 0
    np.savez(weights, **{**tensors(), "linear.bias": tensors()["linear.bias"] + 1})
    capsys.readouterr()
    assert main([*asked, "--seeds", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "neggrad: --weights holds another network than when this comparison began: choose another folder"
    )


@pytest.mark.parametrize("what", ["forget", "test"])
def test_other_images_of_the_same_names_do_not_come_into_the_same_table(argv, here, tmp_path, capsys, what):
    digits = open_source("digits")
    x = digits.images(np.arange(120))
    split = np.where(np.arange(120) < 60, "train", "test")
    data = tmp_path / "d.npz"
    np.savez(data, x=x, y=digits.labels[:120], split=split)
    asked = [*argv, "--methods", "neggrad:max_passes=1", "--no-depth", "--out", str(tmp_path / "c")]
    asked[asked.index("--data") + 1] = f"npz:{data}"
    assert main(asked) == 0
    if what == "forget":
        x[5] = 1 - x[5]
        told = "--data holds other images under the names of --forget"
    else:
        x, split = x[:100], split[:100]
        told = "--data, --retain-data or --test-data holds other images"
    np.savez(data, x=x, y=digits.labels[: len(x)], split=split)
    capsys.readouterr()
    del here[:]
    assert main([*asked, "--seeds", "2"]) == 2
    assert f"{told} than when this comparison began: choose another folder" in capsys.readouterr().err


def test_every_flag_that_changes_a_number_is_compared(argv, tmp_path):
    args = compare._parser().parse_args([*argv[1:], "--input-shape", "8,8,1", "--out", str(tmp_path)])
    runs = {"out", "methods", "seeds", "trials", "quiet", "json", "compile_cache"}
    asked = _comparison.asked(args)
    assert set(asked) == set(vars(args)) - runs
    assert asked["input_shape"] == (8, 8, 1)


def test_what_a_killed_process_left_aside_is_in_nobodys_way(argv, here, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".before.json.a1.part").write_text("{")
    asked = [*argv, "--methods", "neggrad:max_passes=1", "--no-depth", "--retain-limit", "9"]
    asked += ["--out", str(tmp_path / "c")]
    assert main(asked) == 0
    (tmp_path / "c" / "runs" / ".neggrad-seed0.json.a1.part").write_text("{")
    assert main(asked) == 0
    assert not list((tmp_path / "c").rglob("*.part"))


def test_a_full_disk_ends_a_comparison_before_the_next_run(argv, here, tmp_path, monkeypatch, capsys):
    asked = [*argv, "--methods", "neggrad:max_passes=1,neggrad:max_passes=2", "--no-depth", "--retain-limit", "9"]
    asked += ["--out", str(tmp_path / "c")]
    assert main(asked) == 0

    def full(folder):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("jaxunlearn.cli._run.try_to_write", full)
    capsys.readouterr()
    del here[:]
    assert main([*asked, "--seeds", "2"]) == 2
    assert not here
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("c/runs: No space left on device")


def test_the_terminal_leaves_out_ranges_and_nothing_else(argv, here, tmp_path, monkeypatch, capsys):
    rows = [comparison.HEADER, ("before", "", *["1.00 [0.50, 2.00]"] * 3, *[""] * 6)]
    rows += [("a:layers=x*", "2", *["7.00 (6.00-8.00) [0.50, 9.00]"] * 5, "0.69 (0.69-0.70) +68,160", "3", "1.0", "no")]
    monkeypatch.setenv("COLUMNS", "200")
    compare._show(tmp_path, rows, {})
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("a:layers"))
    assert line.split() == ["a:layers=x*", "2", *["7.00"] * 5, "0.69", "+68,160", "3", "1.0"]
    assert "compare.png" not in out  # there is none


def test_what_a_method_cannot_do_is_told_and_the_others_go_on(argv, here, tmp_path, capsys):
    asked = [*argv, "--methods", "minimal-edit:layers=nope*,none*,neggrad:max_passes=1,mnemonic", "--no-depth"]
    assert main([*asked, "--retain-limit", "9", "--out", str(tmp_path / "c")]) == 0
    out = capsys.readouterr().out
    assert "not in the table: minimal-edit:layers=nope*,none*: no parameter matches 'nope*'; the network has" in out
    assert "not in the table: mnemonic: needs codes: a random image a class, which only training with them" in out
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert list(content["runs"]) == ["neggrad:max_passes=1"]


def test_images_from_the_network_are_made_for_methods_that_use_them(argv, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("jaxunlearn.cli._proxies.inversion", lambda model, n: made.append(n))
    args = compare._parser().parse_args([*argv[1:], "--inversion", "7", "--no-depth", "--out", str(tmp_path / "c")])
    facts = _comparison.before(args)
    for method, wanted in (("neggrad", []), ("minimal-edit", [7])):
        entry = Entry.parse(method)
        _comparison._problem(args, entry.spec, entry.config(), 0, facts)
        assert made == wanted, method


def test_two_artefacts_of_a_kind_are_one_too_many(tmp_path):
    from jaxunlearn import methods
    from jaxunlearn.cli import _model, _request
    from jaxunlearn.testing import tiny_problem

    model = tiny_problem().model
    files = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        made = Artefact(kind="codes", version=1, arrays={"x": np.zeros(2)}, meta={}, model_digest=_digest(model))
        artefacts.save(file, made)
    with pytest.raises(ValueError, match=r"b.safetensors is a second one of kind 'codes': give one of a kind"):
        _model.offered(files, model)
    with pytest.raises(ValueError, match=r"b.safetensors is a second one of kind 'codes': give one of a kind"):
        _request._artefacts(files, methods.get("mnemonic"), model, None)


def _digest(model):
    from jaxunlearn import _tree

    return _tree.model_digest(model)


def test_depth_is_measured_and_drawn(argv, here, tmp_path):
    assert main([*argv, "--methods", "neggrad:learning_rate=0.01", "--out", str(tmp_path / "c")]) == 0
    (run,) = json.loads((tmp_path / "c" / "compare.json").read_text())["runs"]["neggrad:learning_rate=0.01"]
    shares = {name: share for name, share in run["depth"]["recognised"].items() if name != "exact"}
    assert comparison.depth_share(run) == pytest.approx(np.mean([s for s in shares.values() if s is not None]))
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_comparison_keeps_what_is_done(argv, here, tmp_path, monkeypatch, capsys):
    asked = [*argv, "--methods", FAST, "--no-depth", "--retain-limit", "50", "--out", str(tmp_path / "c")]
    work = _comparison.in_process

    def stopped(what, args, path, *more):
        if path.name.startswith("minimal"):
            raise KeyboardInterrupt
        return work(what, args, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(_comparison, "in_process", stopped)
        assert main(asked) == 130
    assert "interrupted; what is done is kept in" in capsys.readouterr().err
    del here[:]
    assert main(asked) == 0
    assert here == ["minimal-edit,proxies=64,steps=1-seed0.json"]


def test_a_run_that_fails_is_told_and_the_others_go_on(argv, here, tmp_path, monkeypatch, capsys):
    work = _comparison.in_process

    def failing(what, args, path, *more):
        if path.name.startswith("minimal"):
            raise _errors.UserError("the process of this run was killed by signal 9 (9: often out of memory)")
        return work(what, args, path, *more)

    monkeypatch.setattr(_comparison, "in_process", failing)
    asked = [*argv, "--methods", FAST, "--no-depth", "--retain-limit", "50", "--out", str(tmp_path / "c")]
    assert main(asked) == 0
    told = capsys.readouterr()
    assert "minimal-edit:proxies=64:steps=1: the process of this run was killed by signal 9" in told.err
    assert "not in the table: minimal-edit:proxies=64:steps=1: the process" in told.out
    assert list(json.loads((tmp_path / "c" / "compare.json").read_text())["runs"]) == ["neggrad:learning_rate=0.01"]


def _write_pid(args):
    return {"pid": os.getpid()}


def _die(args):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_is_a_process_of_its_own(argv, tmp_path):
    args = argparse.Namespace(device="auto", precision="highest", compile_cache=True, quiet=True)
    assert _comparison.in_process(_write_pid, args, tmp_path / "a.json")["pid"] != os.getpid()
    with pytest.raises(_errors.UserError, match=r"the process of this run was killed by signal 9"):
        _comparison.in_process(_die, args, tmp_path / "b.json")
    asked = compare._parser().parse_args([*argv[1:], "--out", str(tmp_path), "--data-dir", str(tmp_path)])
    with pytest.raises(_errors.UserError, match=r"--data-dir is for tfds: "):
        _comparison.in_process(_comparison.before, asked, tmp_path / "c.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match=r"a\.json"):  # what comes next could not be written, either
        _comparison.in_process(_write_pid, args, tmp_path / "a.json" / "d.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "advv"], "unknown method 'advv'; did you mean 'adv'?"),
        (["--methods", "adv:draws"], "--methods adv:draws: write settings as NAME:FIELD=VALUE"),
        (["--methods", "adv:colour=1"], "--methods adv:colour=1: adv has no field 'colour'; it has learning_rate, mom"),
        (["--methods", "adv:draws=x"], "--draws must be a whole number of at least 1; got 'x'"),
        (["--methods", "adv:draws=0"], "--draws must be a whole number of at least 1; got '0'"),
        (["--methods", "adv:preset=best"], "preset must be default or published; got 'best'"),
        (["--methods", "adv-imp:mas_train=yes"], "mas_train must be true or false; got 'yes'"),
        (["--seeds", "0"], "--seeds must be a whole number of at least 1; got '0'"),
        (["--trials", "99"], "--trials must be a whole number from 1 to 9; got '99'"),
        (["--retain-limit", "-1"], "--retain-limit must be a whole number of at least 0; got '-1'"),
        (["--target", "3"], "--target is for --goal relabel"),
        (["--public", "digits", "--inversion", "3"], "give --public or --inversion, not both"),
        (["--methods", "correct"], "no method can run: correct: cannot pursue the goal misclassify"),
    ],
)
def test_each_mistake_is_one_line(argv, here, tmp_path, capsys, more, message):
    assert main([*argv, "--out", str(tmp_path / "c"), *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_with_something_else_is_left_alone(argv, here, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main([*argv, "--out", str(tmp_path)]) == 2
    assert "exists and holds no comparison: choose another folder" in capsys.readouterr().err
    assert main([*argv, "--out", str(tmp_path / "mine.txt")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_an_entry_is_the_config_of_the_same_flags():
    entry = Entry.parse("adv-imp:preset=published:draws=3:mas-train=false")
    config = entry.config()
    assert (config.draws, config.mas_train, config.mas, config.targets) == (3, False, "batch_mean", "published")
    assert entry.config(0.5).learning_rate == pytest.approx(0.5 * config.learning_rate)
    assert entry.name(2, 0.5) == "adv-imp,preset=published,draws=3,mas-train=false-seed2-x0.5.json"


def test_trials_are_of_different_strengths_inside_the_range():
    assert Entry.parse("neggrad").factors(3) == (1.0, 0.5, 2.0)
    assert Entry.parse("prune").factors(5) == (1.0, 0.5, 2.0, 0.25, 0.125)  # 0.5 times 4 is 1, too
    assert Entry.parse("prune").config(8.0).apart == 1
    assert Entry.parse("pgu:learning_rate=1e-12").config(0.5).learning_rate == 1e-12


def test_trials_choose_what_forgets_and_then_what_agrees():
    outcome = {1.0: (2, 0.5), 0.5: (1, 0.9), 2.0: (2, 0.7), 0.25: (0, 1.0), 4.0: (2, 0.6)}

    asked = []

    class Runs:
        def get(self, entry, seed, factor, *, trial):
            assert trial
            asked.append((seed, factor))
            forgotten, agreement = outcome[factor]
            return {"forgotten": forgotten, "agreement": {"agreement": agreement}}

    chosen = {}
    args = argparse.Namespace(trials=5)
    assert compare._tuned(Entry.parse("neggrad"), Runs(), args, chosen) == 2.0
    assert asked == [(0, factor) for factor in (1.0, 0.5, 2.0, 0.25, 4.0)]
    assert chosen == {"neggrad": "learning_rate 0.002 (0.001 times 2)"}
    entry = Entry.parse("neggrad:learning_rate=0.5")
    assert compare._tuned(entry, Runs(), args, chosen) == 2.0
    assert chosen[entry.label] == "learning_rate 1 (0.5 times 2)"
    assert compare._tuned(Entry.parse("neggrad"), None, argparse.Namespace(trials=1), chosen) == 1.0


def test_the_retain_accuracy_has_wilsons_interval():
    p, n, z = 0.9, 200, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert comparison._sampled([p], {"retain": n}, "retain") == f"90.00 [{low:.2f}, {high:.2f}]"
    assert comparison._sampled([0.8, 0.9], {"test": 10}, "test") == "85.00 (80.00-90.00)"
    assert comparison._sampled([None], {"retain": 3}, "retain") == "-"


def outcome(test, recognised, seconds, *, met=True, saw=None):
    """Return as much of a run's results as the table and the picture read."""
    return {
        "after": {"forget": 0.0, "retain": 0.9, "test": test},
        "depth": {"recognised": {"exact": 0.0, "mirrored": recognised, "noisy": recognised + 0.2, "rotated": None}},
        "agreement": {"agreement": 0.75},
        "weights": {"relative_l2": 0.01, "added": 0},
        "goal": "misclassify",
        "stop_reason": "forgotten",
        "forgotten": 2,
        "instances": [{}, {}],
        "seconds": {"load": 100.0, "prepare": 1.0, "unlearn": seconds - 1.0, "measure after": 100.0},
        "memory": {"process": 3 * 2**29},
        "saw": {"forget": 2} | (saw or {}),
        "goal_met": met,
    }


def test_the_table_and_the_picture_show_the_same_runs():
    before = {"accuracy": {"forget": 1.0, "retain": 0.99, "test": 0.95}, "sizes": {"retain": 100, "test": 50}}
    groups = {
        "quick": [outcome(0.8, 0.3, 2.0, saw={"public": 7}), outcome(0.9, 0.5, 4.0, saw={"public": 7})],
        "slow": [outcome(0.7, 0.0, 12.0, met=False, saw={"retain": 1200})],
    }
    rows = comparison.table(before, groups)
    assert [row[0] for row in rows] == ["", "before", "quick", "slow"]
    quick, slow = (dict(zip(comparison.HEADER[1:], row[1:], strict=True)) for row in rows[2:])
    assert quick["seeds"] == "2"
    assert quick["D_test %"] == "85.00 (80.00-90.00)"
    assert quick["recognised %"] == "50.0 (40.0-60.0)"
    assert quick["seconds"] == "3 (2-4)"  # of the unlearning alone
    assert (quick["agreement %"], quick["GiB"]) == ("75.0", "1.5")
    assert quick["saw"] == "7 public"
    assert slow["saw"] == "1,200 retain"
    (axes,) = comparison.picture(before, groups, "title").axes
    dots = [dot for dot in axes.collections if len(dot.get_offsets())]
    np.testing.assert_allclose([dot.get_offsets()[0] for dot in dots], [(50, 85), (90, 70)])
    sizes = [dot.get_sizes()[0] - 30 for dot in dots]
    assert sizes[1] / sizes[0] == pytest.approx(12 / 3)  # area is time
    assert [len(dot.get_facecolor()) for dot in dots] == [1, 0]  # hollow: not every instance is forgotten
    assert comparison.picture(before, {"x": [outcome(0.8, 0.3, 2.0) | {"depth": None}]}, "title") is None


def test_a_label_that_is_gone_is_not_the_one_asked_for_and_what_diverged_is_told_of():
    before = {"accuracy": {"forget": 1.0, "retain": 0.99, "test": 0.95}, "sizes": {"retain": 100, "test": 50}}
    half = outcome(0.8, 0.3, 2.0, met=False) | {"goal": "relabel", "forgotten": 1}
    broken = half | {"stop_reason": "diverged", "forgotten": 0}
    header, start, *rows = comparison.table(before, {"a": [half], "b": [broken, half], "c": [broken]})
    at = header.index("relabelled %")
    assert len({len(row) for row in (header, start, *rows)}) == 1
    assert header[at + 1] == "D_r %"
    assert start[at + 1].startswith("99.00 [")
    assert [row[0] for row in rows] == ["a", "b (1 of 2 diverged)", "c (diverged)"]
    assert [row[at] for row in rows] == ["50.00", "25.00 (0.00-50.00)", "0.00"]
    assert [row[at - 1] for row in rows] == ["0.00"] * 3
    for run, told in ((half, True), (outcome(0.8, 0.3, 2.0), False)):
        page = comparison.page("t", [], comparison.table(before, {"a": [run]}), {}, {}, {}, "c")
        assert ("* **relabelled**: " in page) == told
        assert "* **D_f**: " in page


def test_globs_do_not_become_italics():
    label, why = "minimal-edit:layers=conv1*,x|y*", "no parameter matches '*_*'"
    rows = [("", "D_f %", "saw"), (label, "0.00", "nothing else")]
    page = comparison.page("t", [], rows, {label: "damping 1"}, {label: why}, {}, "c")
    assert "\n| minimal-edit:layers=conv1\\*,x\\|y\\* | 0.00 | nothing else |\n" in page
    assert "\n* minimal-edit:layers=conv1\\*,x|y\\*: damping 1\n" in page
    assert "\n* minimal-edit:layers=conv1\\*,x|y\\*: no parameter matches '\\*\\_\\*'\n" in page


def test_the_table_says_what_training_time_gave():
    from jaxunlearn.job import work
    from jaxunlearn.testing import tiny_problem

    seen = work.seen(tiny_problem(needs=("codes", "moments")))
    assert seen == {"forget": 8, "retain": 16, "public": 16, "codes": 5, "moments": 24}
    assert comparison._saw(seen) == "16 retain, 16 public, codes of 5 classes, moments of 24 images"


def test_agreement_against_its_definition():
    from jaxunlearn.testing import tiny_problem

    one, other = tiny_problem(0).model, tiny_problem(1).model
    x = proxies.cutmix(jax.random.key(0), tiny_problem(0).forget.x, 40)
    p, q = (np.exp(np.asarray(m(x), np.float64)) for m in (other, one))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    found = audits.agreement(one, other.replace(apply_fn=other.apply_fn), x)
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert found["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert found["images"] == 40


def test_answers_that_are_no_numbers_agree_with_nothing():
    from jaxunlearn.testing import tiny_problem

    problem = tiny_problem()
    said = np.asarray(problem.model(problem.public)).argmax(axis=1)
    params = problem.model.params
    bias = params["head"]["bias"].at[int(said[0])].set(jnp.inf)
    broken = problem.model.replace(params={**params, "head": {**params["head"], "bias": bias}})
    assert (np.asarray(broken(problem.public)).argmax(axis=1) == said).any()
    found = audits.agreement(broken, problem.model, problem.public)
    assert found["agreement"] == 0
    assert math.isnan(found["kl"])


KILLED = """
import argparse, os, sys, time
from pathlib import Path
from jaxunlearn.cli import _comparison

def work(args):
    Path(sys.argv[1], "child").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    args = argparse.Namespace(device="cpu", precision="highest", compile_cache=False, quiet=True)
    _comparison.in_process(work, args, Path(sys.argv[1], "run.json"))
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_run_does_not_outlive_the_comparison(tmp_path: Path):
    (tmp_path / "script.py").write_text(KILLED)
    told = tmp_path / "child"
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)])
    while not told.exists() or not told.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    child = int(told.read_text())
    parent.kill()
    parent.wait()
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return  # ended; nobody here has waited for it
        time.sleep(0.05)
    os.kill(child, 9)
    pytest.fail("the run goes on without the comparison that started it")
