"""Every mistake a user can make: exit status 2, one line on standard error that names it, nothing written."""

from __future__ import annotations

import errno
import os
import pickle
import re

import numpy as np
import pytest

from jaxunlearn import checkpoint
from jaxunlearn.cli.main import main
from jaxunlearn.data import open_source
from tests.digits_net import ARCH, network, tensors


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of good and bad files, where the mistakes are made."""
    folder = tmp_path_factory.mktemp("files")
    good = tensors()
    np.savez(folder / "good.npz", **good)
    np.savez(folder / "shape.npz", **{**good, "conv1.weight": np.zeros((16, 3, 5, 5), np.float32)})
    np.savez(folder / "extra.npz", **{**good, "conv9.bias": np.zeros(3, np.float32)})
    np.savez(folder / "nan.npz", **{**good, "bn1.bias": np.full(16, np.nan, np.float32)})
    whole = (folder / "good.npz").read_bytes()
    (folder / "short.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "weights.txt").write_text("hello")
    with (folder / "objects.pth").open("wb") as stream:
        pickle.dump({"weight": Bomb()}, stream)
    source = open_source("digits")
    x, y = source.images(np.arange(40)), source.labels[:40]
    np.savez(folder / "data_nan.npz", x=np.where(np.arange(40)[:, None, None, None] == 7, np.nan, x), y=y)
    np.savez(folder / "data_scaled.npz", x=x * 255, y=y)
    np.savez(folder / "data_size.npz", x=np.zeros((40, 28, 28, 1)), y=y)
    np.savez(folder / "data_labels.npz", x=x, y=y + 5)
    np.savez(folder / "data_test.npz", x=x, y=y)
    (folder / "empty.txt").write_text("# nobody\n")
    (folder / "t.csv").write_text("2,2\n")
    checkpoint.save(folder / "checkpoint", network())
    checkpoint.save(folder / "cut", network())
    for part in (folder / "cut" / "arrays").rglob("*"):
        if part.is_file() and part.stat().st_size > 2000:
            part.write_bytes(part.read_bytes()[:1000])
    (folder / "theirs").mkdir()
    (folder / "theirs" / "thesis.tex").write_text("mine")
    (folder / "plain").write_text("a file")
    return folder


class Bomb:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (os.system, ("touch exploded",))


#: Where a flag of ADV+IMP is what is wrong.
IMP = f"unlearn --arch {ARCH} --weights good.npz --data digits --out out --method adv-imp"
BASE = f"unlearn --arch {ARCH} --weights good.npz --data digits --out out"
# What is typed -> what the line must say (a regular expression).
LINES = {
    # forget specs
    f"{BASE} --forget 99999": "unknown id '99999': ids of digits look like 1 or 1796",
    f"{BASE} --forget 2,3,2": "instance 2 is named 2 times",
    f"{BASE} --forget ,": "the forget set is empty",
    f"{BASE} --forget @empty.txt": "empty.txt is empty",
    f"{BASE} --forget @absent.txt": "cannot read absent.txt: No such file or directory",
    f"{BASE} --forget 14": "instance 14 is in the split 'test'",
    f"{BASE} --forget class:12": "label 12 is out of range: digits has labels 0 to 9",
    f"{BASE} --forget random:5000": "asks for more than the 1540 training instances",
    # goals and targets
    f"{BASE} --forget 2,3 --goal relabel --target 3": "the target of instance 3 is its true label, 3",
    f"{BASE} --forget 2 --goal relabel --target @t.csv": "the target of instance 2 is its true label, 2",
    f"{BASE} --forget 2 --goal relabel --target 10": "label 10 is out of range",
    # weights
    "unlearn --arch digits_cnn --weights good.npz --data digits --forget 2 --out out": (
        r"good.npz: the weights do not fit digits_cnn: linear.weight has shape \(10, 256\), the network needs \(10, 3"
    ),
    f"{BASE} --forget 2 --weights shape.npz": (
        r"shape.npz: the weights do not fit .*: conv1.weight has shape \(16, 3, 5, 5\), the network needs \(16, 1, 3"
    ),
    f"{BASE} --forget 2 --weights extra.npz": r"unexpected conv9.bias of shape \(3,\)",
    f"{BASE} --forget 2 --weights nan.npz": "tensor 'bn1.bias' has 16 NaN or infinite values of 16",
    f"{BASE} --forget 2 --weights short.npz": "short.npz is no complete npz file",
    f"{BASE} --forget 2 --weights weights.txt": r"weights.txt is no weights, or damaged \(it begins with b'hello'\)",
    f"{BASE} --forget 2 --weights absent.npz": "absent.npz: No such file or directory",
    f"{BASE} --forget 2 --weights objects.pth": "objects.pth is no plain state dict .* was not run",
    f"{BASE} --forget 2 --weights theirs": "theirs is not a checkpoint",
    "unlearn --weights cut --data digits --forget 2 --out out": "cut is damaged",
    "unlearn --weights checkpoint --arch cifar_resnet20 --data digits --forget 2 --out out": (
        "--arch is cifar_resnet20, but checkpoint holds a tests.digits_net:Tiny"
    ),
    "unlearn --weights checkpoint --mean 0 --std 1 --data digits --forget 2 --out out": "--mean and --std go with",
    f"{BASE} --forget 2 --arch cifar_resnet21": "unknown network 'cifar_resnet21'; did you mean .*cifar_resnet20",
    f"{BASE} --forget 2 --arch tests.digits_net:Tiny2": "tests.digits_net has no 'Tiny2'; did you mean Tiny[?]",
    f"{BASE} --forget 2 --arch nowhere:Tiny": "cannot import the network 'nowhere:Tiny'",
    f"{BASE} --forget 2 --mean 0.5": "mean and std go together",
    f"{BASE} --forget 2 --mean 0,0,0 --std 1,1,1": "mean must have one value for each of the 1 channels",
    f"{BASE} --forget 2 --mean 0 --std 0": "std must be above 0",
    "unlearn --data digits --forget 2 --out out": "--weights is missing",
    "unlearn --weights good.npz --data digits --forget 2 --out out": "--arch is missing",
    # data
    f"{BASE} --forget 2 --data mnist": "unknown data source 'mnist'",
    f"unlearn --arch {ARCH} --weights good.npz --forget 2 --out out": "--data is missing",
    f"{BASE} --forget 2 --data tfds:cifar10 --data-dir absent": "no data directory absent",
    f"{BASE} --forget 2 --data tfds:mnist --data-dir theirs": "is not prepared: .*download_and_prepare()",
    f"{BASE} --forget 2 --data npz:absent.npz": "no data file absent.npz",
    f"{BASE} --forget 2 --data npz:data_nan.npz": "x in data_nan.npz has NaN or infinite values in row 7",
    f"{BASE} --forget 2 --data npz:data_scaled.npz": r"must lie in \[0, 1\]; got values from 0 to 255",
    "unlearn --weights checkpoint --data npz:data_size.npz --forget 2 --out out": (
        "x in data_size.npz holds floats of 28x28x1, the network takes 8x8x1: save them as uint8"
    ),
    "unlearn --weights checkpoint --data npz:data_labels.npz --forget 2 --out out": (
        "npz:data_labels.npz has labels up to 14, tests.digits_net:Tiny has only 10 classes"
    ),
    # output folders
    # methods and hyper-parameters
    f"{IMP} --forget 2 --zzz": "unknown flag --zzz; the flags of method 'adv-imp': --learning-rate",
    f"{BASE} --forget 2 --learning-rate 1": "method 'minimal-edit' has no flag --learning-rate, a flag of adv, adv-imp",
    f"{BASE} --forget 2 --depth deep": r"argument --depth: invalid choice: 'deep' \(choose from",
    f"{BASE} --forget 2 --layers nowhere*": "--layers: no parameter matches 'nowhere[*]'; the network has bn1/bias",
    f"{IMP} --forget 2 --batch-norm off": "argument --batch-norm: invalid choice: 'off'",
    f"{BASE}": "the following arguments are required: --forget",
    # runs
    "unlearn --from absent --forget 2 --out out": "absent is not a jaxunlearn run: it has no results.json",
    "unlearn --from theirs --forget 2 --out out": "theirs is not a jaxunlearn run",
    "evaluate --run theirs": "theirs is not a jaxunlearn run",
    "evaluate --weights checkpoint": "--data is missing",
    "evaluate --weights checkpoint --data digits --split dev": "digits has no split 'dev', only train, test",
    "evaluate --weights checkpoint --data npz:data_test.npz --split test": "npz:data_test.npz has no split 'test'",
    "evaluate --weights checkpoint --data digits --data-dir theirs": "--data-dir is for tfds: and csv: sources only",
    # commands and devices
    "frobnicate": "unknown command 'frobnicate'; there are demo, train, moments, unlearn",
    "train": "--data is missing: digits, folder:DIR, csv:FILE, npz:FILE",
    "--frob": "unrecognized arguments: --frob",
    f"{BASE} --forget 2 --device abacus": "argument --device: invalid choice: 'abacus'",
}


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_is_one_line_and_writes_nothing(line, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("jaxunlearn: error: ")
    assert len(said.err.splitlines()) == 1
    assert re.search(LINES[line], said.err), said.err
    assert said.out == ""
    assert sorted(files.rglob("*")) == before


def test_both_a_run_and_weights(files, monkeypatch, capsys):
    from jaxunlearn import report

    monkeypatch.chdir(files)
    monkeypatch.setattr(report, "read_run", lambda path: report.Run(files, {"data": "digits"}))
    assert main(["unlearn", "--from", "r", "--weights", "good.npz", "--forget", "2", "--out", "out"]) == 2
    assert "give a run or --weights, not both" in capsys.readouterr().err


def test_going_on_with_other_data_than_the_runs(files, monkeypatch, capsys):
    from jaxunlearn import report
    from jaxunlearn.cli import _model

    monkeypatch.chdir(files)
    for label, split in ((9, "train"), (1, "test")):
        instance = {"id": "1", "label": label, "target": None}
        run = report.Run(files, {"data": "digits", "goal": "misclassify", "instances": [instance], "earlier": []})
        monkeypatch.setattr(report, "read_run", lambda path, run=run: run)
        monkeypatch.setattr(_model, "load", lambda args, source, run: network())
        split = np.where(np.arange(40) == 1, split, "train")
        source = open_source("digits")
        np.savez(files / "other.npz", x=source.images(np.arange(40)), y=source.labels[:40], split=split)
        assert main(["unlearn", "--from", "r", "--data", "npz:other.npz", "--forget", "2", "--out", "out"]) == 2
        assert f"forgot the instance 1 with label {label} of digits, which npz:other.npz does not have" in (
            capsys.readouterr().err
        )


ARGV = f"unlearn --arch {ARCH} --weights good.npz --data digits --forget 2 --method neggrad --learning-rate 0.01 --out"


def test_a_folder_that_cannot_be_written_is_found_before_the_work(files, monkeypatch, capsys):
    import tempfile

    from jaxunlearn.cli import _run

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    def never(*args, **kwargs):
        raise AssertionError("worked first")

    monkeypatch.chdir(files)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr(_run, "Measured", never)
    assert main([*ARGV.split(), "deep/er/out"]) == 2
    assert capsys.readouterr().err == f"jaxunlearn: error: {files}: Read-only file system\n"


def test_a_disk_that_fills_up_while_writing_leaves_nothing(files, monkeypatch, capsys):
    def full(folder, record):
        (folder / "results.json").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "results.json"))

    from jaxunlearn.report import folder

    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    monkeypatch.setattr(folder, "_fill", full)
    assert main([*ARGV.split(), "out", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "jaxunlearn: error: cannot write out: No space left on device"
    assert sorted(files.rglob("*")) == before


def test_a_request_that_contradicts_itself_names_the_instances(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    source = open_source("digits")
    x = source.images(np.arange(40))
    x[7] = x[3]
    np.savez(files / "twins.npz", x=x, y=source.labels[:40], id=[f"img_{i}" for i in range(40)])
    (files / "twins.csv").write_text("img_1,2\nimg_3,5\nimg_7,6\n")
    argv = "unlearn --weights checkpoint --data npz:twins.npz --forget img_1,img_3,img_7 --goal relabel"
    assert main([*argv.split(), "--target", "@twins.csv", "--quiet", "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "instances 1 and 2 of the forget set are the same image" in line
    assert line.endswith("; by id: img_3, img_7")
    assert not (files / "out").exists()


def test_a_missing_extra_is_named(files, monkeypatch, capsys):
    import sys

    monkeypatch.chdir(files)
    monkeypatch.setitem(sys.modules, "jaxunlearn.cli.evaluate", None)
    assert main(["evaluate"]) == 2
    assert "this needs the Python package jaxunlearn.cli.evaluate" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback(files, monkeypatch):
    from jaxunlearn.cli import _run

    def broken(*args, **kwargs):
        raise ValueError("a bug of ours")

    monkeypatch.chdir(files)
    monkeypatch.setattr(_run, "Measured", broken)
    with pytest.raises(ValueError, match="a bug of ours"):
        main([*ARGV.split(), "out"])


def test_running_out_of_memory_is_one_line(files, monkeypatch, capsys):
    import jax

    from jaxunlearn import loop

    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")

    monkeypatch.chdir(files)
    monkeypatch.setattr(loop, "run", full)
    assert main([*ARGV.split(), "out", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("out of memory .*Out of memory allocating 99 bytes. more", line)
