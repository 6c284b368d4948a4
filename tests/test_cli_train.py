"""``jaxunlearn train`` and ``jaxunlearn moments`` on the digits: what they keep, and that methods can work from it."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from jaxunlearn import artefacts, checkpoint, curvature, inference, models, training
from jaxunlearn.cli import train
from jaxunlearn.cli.main import main
from jaxunlearn.data import open_source
from tests.digits_net import ARCH, tensors

TRAIN = ["train", "--arch", ARCH, "--data", "digits", "--epochs", "6", "--batch-size", "64", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training with codes and moments."""
    out = tmp_path_factory.mktemp("train") / "net"
    assert main([*TRAIN, "--codes", "0.3", "--moments", "--seed", "5", "--out", str(out)]) == 0
    return out


def load(folder):
    return checkpoint.load(folder / "checkpoint", models.from_recipe)


def facts(folder):
    return json.loads((folder / "training.json").read_text())


def error(argv, capsys):
    """Return the one line that a command with a mistake prints."""
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("jaxunlearn: error: ")


def test_a_training_folder_has_the_network_and_what_stands_beside_it(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoint", "codes.safetensors", "moments.safetensors", "training.json",
    ]  # fmt: skip
    model, digits, found = load(trained), open_source("digits"), facts(trained)
    codes = artefacts.load(trained / "codes.safetensors", kind="codes", model=model)
    test = digits.splits["test"]
    right = inference.logits(model, digits.view(test)).argmax(axis=1) == digits.labels[test]
    assert found["accuracy"] == {"test": right.mean(), "codes": 1.0}
    assert right.mean() > 0.9
    assert (inference.logits(model, codes.arrays["codes"]).argmax(axis=1) == np.arange(10)).all()
    train = digits.splits["train"]
    assert codes.arrays["instances"].tolist() == np.bincount(digits.labels[train]).tolist()
    assert codes.meta == {"mix": 0.3}
    assert len(found["history"]["loss"]) == len(found["history"]["accuracy"]) == 6
    assert found["history"]["loss"][-1] < found["history"]["loss"][0]
    assert found["settings"]["learning_rate"] == 0.05
    assert found["command"].startswith(f"jaxunlearn train --arch {ARCH} --data digits")


def test_the_moments_beside_it_are_those_of_the_training_images(trained):
    model, digits = load(trained), open_source("digits")
    artefact = artefacts.load(trained / "moments.safetensors", kind="moments", model=model)
    images = digits.images(digits.splits["train"])
    assert set(curvature.layers_of(artefact)) == {"conv1/kernel", "linear/kernel"}
    wanted = curvature.input_moments(model, images, curvature.layers_of(artefact))
    for path, matrix in wanted.items():
        np.testing.assert_array_equal(curvature.moment(artefact, path), matrix)


def test_the_command_is_the_library_call(trained, tmp_path):
    out = tmp_path / "plain"
    assert main([*TRAIN, "--seed", "5", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "training.json"]
    import jax

    digits, keys = open_source("digits"), [jax.random.fold_in(jax.random.key(5), i) for i in range(2)]
    fresh = models.from_recipe(models.recipe(ARCH, num_classes=10, input_shape=(8, 8, 1)), key=keys[0])
    rows = digits.splits["train"]
    settings = dict(epochs=6, batch_size=64, learning_rate=0.05)
    done = training.train(fresh, keys[1], digits.images(rows), digits.labels[rows], **settings)
    jax.tree.map(np.testing.assert_array_equal, done.model.params, load(out).params)
    assert not np.array_equal(load(trained).params["linear"]["kernel"], load(out).params["linear"]["kernel"])


def test_a_class_is_forgotten_from_its_code_alone_and_the_next_one_from_what_is_left(trained, tmp_path):
    forget = ["unlearn", "--data", "digits", "--method", "mnemonic", "--lambda1", "0.001", "--lambda2", "10", "--quiet"]
    start = ["--weights", str(trained), "--artefact", str(trained / "codes.safetensors")]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*forget, *start, "--forget", "class:3", "--out", str(first)]) in (0, 3)
    found = json.loads((first / "results.json").read_text())
    assert found["stop_reason"] == "completed"
    assert set(found["extras"]["scores"]) == {"plus", "minus"}
    assert main([*forget, "--from", str(first), "--forget", "class:5", "--out", str(second)]) in (0, 3)
    left = artefacts.load(second / "codes.safetensors", kind="codes", model=load(second))
    assert left.arrays["classes"].tolist() == [0, 1, 2, 4, 6, 7, 8, 9]


def test_pgu_works_from_the_moments_and_hands_on_what_is_left(trained, tmp_path, capsys):
    forget = ["unlearn", "--data", "digits", "--method", "pgu", "--max-passes", "2", "--quiet"]
    start = ["--weights", str(trained), "--artefact", str(trained / "moments.safetensors")]
    assert main([*forget, *start, "--forget", "2,57", "--out", str(tmp_path / "a")]) in (0, 3)
    left = artefacts.load(tmp_path / "a" / "moments.safetensors", kind="moments", model=load(tmp_path / "a"))
    assert len(left.arrays["instances"]) == 1538
    assert main([*forget, "--from", str(tmp_path / "a"), "--forget", "151", "--out", str(tmp_path / "b")]) in (0, 3)
    capsys.readouterr()
    message = error([*forget, *start[:2], "--forget", "2", "--out", str(tmp_path / "c")], capsys)
    assert "method 'pgu' needs 'moments', which the problem does not have: second moments of every layer's" in message


def test_moments_of_a_network_that_somebody_else_trained(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", **tensors())
    out = tmp_path / "deep" / "m.safetensors"
    argv = ["moments", "--arch", ARCH, "--weights", str(tmp_path / "w.npz"), "--data", "digits", "--out", str(out)]
    assert main([*argv, "--layers", "linear*", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "1 layer of up to 256 inputs, 1,540 images" in said
    assert set(curvature.layers_of(artefacts.load(out, kind="moments"))) == {"linear/kernel"}
    assert "m.safetensors: exists: name another file, or ask to --overwrite it" in error(argv, capsys)
    assert "no layer matches 'conv9'; there are conv1/kernel" in error(
        [*argv, "--overwrite", "--layers", "conv9", "--quiet"], capsys
    )
    assert set(curvature.layers_of(artefacts.load(out, kind="moments"))) == {"linear/kernel"}  # as it was
    assert "--out is missing: the file to keep the moments in" in error(argv[:-2], capsys)
    assert f"{tmp_path}: is a folder: name a file" in error([*argv[:-1], str(tmp_path)], capsys)
    assert "--data is missing" in error([*argv[:5], "--out", str(tmp_path / "n")], capsys)


def test_a_head_wider_than_the_data_has_codes_of_the_classes_that_there_are(tmp_path):
    """MNEM-4: as a pre-trained network with its 1,000 outputs."""
    import jax

    wide = models.from_recipe(models.recipe(ARCH, num_classes=12, input_shape=(8, 8, 1)), key=jax.random.key(0))
    checkpoint.save(tmp_path / "wide", wide)
    argv = [*TRAIN[3:], "--weights", str(tmp_path / "wide"), "--codes", "0.5", "--out", str(tmp_path / "net")]
    assert main(["train", *argv]) == 0
    codes = artefacts.load(tmp_path / "net" / "codes.safetensors", kind="codes").arrays
    assert codes["classes"].tolist() == list(range(10))
    answers = inference.logits(load(tmp_path / "net"), codes["codes"])
    assert answers.shape == (10, 12)
    assert (answers.argmax(axis=1) == np.arange(10)).mean() == facts(tmp_path / "net")["accuracy"]["codes"] == 1


def test_images_of_other_channels_than_a_networks_usual_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8), y=np.arange(8) % 3)
    argv = ["train", "--arch", "digits_cnn", "--data", "npz:a.npz", "--epochs", "1", "--batch-size", "4"]
    assert main([*argv, "--out", "net"]) == 0
    assert "inputs normalised by mean 0.3053 0.3053 0.3053" in " ".join(capsys.readouterr().out.split())
    assert checkpoint.describe("net/checkpoint")["recipe"].std == (0.376,) * 3


@pytest.mark.parametrize(
    ("flags", "channels", "expected"),
    [
        ({"arch": "cifar_resnet8"}, 1, ((0.449,), (0.226,))),
        ({"arch": "resnet20"}, 3, (None, None)),
        ({"arch": "cifar_resnet8", "mean": (0.0,), "std": (1.0,)}, 1, ((0.0,), (1.0,))),
        ({"arch": ARCH}, 3, (None, None)),
    ],
    ids=str,
)
def test_normalisation_of_fresh_networks(flags, channels, expected):
    assert train._normalisation(argparse.Namespace(**{"mean": None, "std": None} | flags), channels) == expected


def test_labels_that_are_no_labels_build_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.zeros((2, 8, 8, 1), np.uint8), y=np.array([0, 47_110_815]))
    found = error(["train", "--arch", "digits_cnn", "--data", "npz:a.npz", "--out", "net"], capsys)
    assert found == "a digits_cnn of 47,110,816 classes, more than 1,048,576: labels are 0, 1, 2, ..."
    assert not (tmp_path / "net").exists()


def test_training_goes_on_from_given_weights(trained, tmp_path):
    out = tmp_path / "on"
    argv = ["train", "--weights", str(trained), "--data", "digits", "--epochs", "1", "--learning-rate", "0", "--quiet"]
    assert main([*argv, "--weight-decay", "0", "--augment", "--out", str(out)]) == 0
    import jax

    jax.tree.map(np.testing.assert_array_equal, load(out).params, load(trained).params)


def test_what_is_told(tmp_path, capsys):
    out = tmp_path / "net"
    argv = [word for word in TRAIN if word != "--quiet"]
    argv[argv.index("6")] = "1"
    assert main([*argv, "--codes", "0.5", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "fresh weights",
        "1 epoch, batches of 64",
        "codes in the place of 50 % of images",
        "right in the last",
    ):
        assert words in said
    assert f"{out}: checkpoint, training.json, codes.safetensors; use it as --weights {out}" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--epochs", "0"], "--epochs must be a whole number of at least 1; got '0'"),
        (["--batch-size", "x"], "--batch-size must be a whole number of at least 1; got 'x'"),
        (["--codes", "1.5"], "--codes must be a finite number from 0 to 1; got '1.5'"),
        (["--learning-rate", "-1"], "--learning-rate must be a finite number of at least 0; got '-1'"),
        (["--data", "digit"], "unknown data source 'digit'"),
        (["--arch", "digits_cn"], "unknown network 'digits_cn'; did you mean digits_cnn"),
        (["--mean", "0,0,0", "--std", "1,1,1"], "mean must have one value for each of the 1 channels; got (0.0, 0.0,"),
        (["--learning-rate", "1e30"], "training diverged: the loss is nan at step"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(changes, message, tmp_path, capsys):
    found = error([*TRAIN, "--out", str(tmp_path / "net"), *changes], capsys)
    assert message in found
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_in_the_way_is_said_before_any_work(trained, tmp_path, capsys):
    assert "--out is missing: the folder to keep the result in" in error(TRAIN, capsys)
    assert "--arch is missing: the network to train" in error(["train", "--data", "digits", "--out", "a"], capsys)
    assert "--data is missing" in error(["train", "--arch", ARCH, "--out", "a"], capsys)
    assert "holds an earlier run" in error([*TRAIN, "--out", str(trained)], capsys)
    (tmp_path / "mine").write_text("x")
    assert "exists and is not a jaxunlearn run" in error([*TRAIN, "--out", str(tmp_path), "--overwrite"], capsys)


def test_an_interrupted_training_leaves_the_earlier_one(trained, tmp_path, capsys, monkeypatch):
    before = facts(trained)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    assert main([*TRAIN, "--overwrite", "--out", str(trained)]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert facts(trained) == before
    assert not [path for path in trained.parent.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_the_earlier_one(trained, capsys, monkeypatch):
    before = facts(trained)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "codes.safetensors")

    monkeypatch.setattr(artefacts, "save", full)
    argv = [*TRAIN, "--codes", "0.1", "--overwrite", "--out", str(trained)]
    argv[argv.index("6")] = "1"
    assert "No space left on device" in error(argv, capsys)
    assert facts(trained) == before
    assert not [path for path in trained.parent.iterdir() if path.name.startswith(".")]
