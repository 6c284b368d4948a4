"""``jaxunlearn compare``: what its table says is what the runs gave, and a stopped comparison goes on."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn import audits, proxies
from jaxunlearn.cli import _comparison, _errors, compare
from jaxunlearn.cli._comparison import Entry
from jaxunlearn.cli.main import main
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
    assert "(default times" in (tmp_path / "c" / "compare.md").read_text()
    del here[:]
    assert main([*asked, "--trials", "2", "--out", str(tmp_path / "c")]) == 0
    assert not here


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
    assert chosen == {"neggrad": "learning_rate 0.002 (default times 2)"}
    assert compare._tuned(Entry.parse("neggrad"), None, argparse.Namespace(trials=1), chosen) == 1.0


def test_the_retain_accuracy_has_wilsons_interval():
    p, n, z = 0.9, 200, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert comparison._sampled([p], {"retain": n}, "retain") == f"90.00 [{low:.2f}, {high:.2f}]"
    assert comparison._sampled([0.8, 0.9], {"test": 10}, "test") == "85.00 (80.00-90.00)"
    assert comparison._sampled([None], {"retain": 3}, "retain") == "-"


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
