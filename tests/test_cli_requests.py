"""One request after another, and images that stand in for data, from the command line."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxunlearn import _tree, loop, proxies
from jaxunlearn.cli import _cache, _proxies, unlearn
from jaxunlearn.cli.main import main
from jaxunlearn.job import request, work
from tests.digits_net import ARCH, network, tensors

EDIT = ["--data", "digits", "--proxies", "64", "--eval-limit", "100", "--quiet"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    np.savez(path, **tensors())
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory, weights):
    """A run of the minimal edit on four digits."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main([*asked(weights), "--forget", "2,57,151,312", "--out", str(out)]) == 0
    return out


@pytest.fixture
def seen(monkeypatch):
    """What methods are shown, run by run."""
    problems, real = [], loop.run
    monkeypatch.setattr(loop, "run", lambda problem, **kwargs: problems.append(problem) or real(problem, **kwargs))
    return problems


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and inversion that takes a moment."""
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(_proxies, "SETTINGS", proxies.InversionConfig(steps=2, batch_size=4))
    return tmp_path / "cache" / "inversion"


def asked(weights):
    return ["unlearn", "--arch", ARCH, "--weights", str(weights), *EDIT]


def results(path):
    return json.loads((path / "results.json").read_text())


def test_what_earlier_requests_forgot_stays_forgotten_under_either_goal(first, tmp_path, seen, capsys):
    second, third = tmp_path / "second", tmp_path / "third"
    argv = ["unlearn", "--from", str(first), *EDIT, "--forget", "501,640", "--goal", "relabel", "--target", "9"]
    assert main([*argv, "--out", str(second)]) == 0
    assert main(["unlearn", "--from", str(second), *EDIT, "--forget", "666,761", "--out", str(third)]) == 0
    for problem, held in zip(seen, (4, 6), strict=True):
        assert problem.artefacts["held"].x.shape[0] == held
        assert problem.artefacts["original"].params.keys() == network().params.keys()
        assert _tree.digest(problem.artefacts["original"].params) == _tree.digest(network().params)
    assert seen[1].artefacts["held"].target.tolist() == [-1] * 4 + [9, 9]
    found = results(third)
    assert found["saw"] == {"forget": 2, "earlier": 6}
    assert [item["forgotten"] for item in found["earlier"]] == [True] * 6
    assert [item["after"] for item in found["earlier"][4:]] == [9, 9]
    assert found["origin"] == results(first)["origin"]
    assert (found["extras"]["first_network"], results(first)["extras"]["first_network"]) == ("used", None)
    assert found["origin"]["digest"] == results(first)["digests"]["weights before"]
    saw = "The network, the images to forget, 6 images forgotten earlier and the network before the first of these"
    assert f"{saw} requests; nothing else" in (third / "report.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize("gone", ["absent", "another"])
def test_the_first_network_may_be_gone(gone, tmp_path, seen, capsys):
    moved = tmp_path / "digits.npz"
    np.savez(moved, **tensors())
    assert main([*asked(moved), "--forget", "2,57", "--out", str(tmp_path / "a")]) == 0
    if gone == "absent":
        moved.unlink()
    else:
        np.savez(moved, **{name: value * 1.5 for name, value in tensors().items()})
    argv = ["unlearn", "--from", str(tmp_path / "a"), *EDIT[:-1], "--forget", "501", "--out", str(tmp_path / "b")]
    capsys.readouterr()
    assert main(argv) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "2 instances of earlier runs, measured again, not in retain, to stay forgotten; the network before" in said
    assert "original" not in seen[1].artefacts
    assert results(tmp_path / "b")["extras"]["first_network"] == "gone"


def test_weights_exported_into_a_runs_folder_are_no_obstacle(first, tmp_path, capsys):
    shutil.copytree(first, tmp_path / "a")
    assert main(["export", "--run", str(tmp_path / "a"), "--out", str(tmp_path / "a" / "w.safetensors")]) == 0
    argv = ["unlearn", "--from", str(tmp_path / "a"), *EDIT, "--forget", "501"]
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    (tmp_path / "a" / "w.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    assert main([*argv, "--out", str(tmp_path / "c")]) == 2
    assert "w.safetensors is not an artefact of jaxunlearn, or is damaged" in capsys.readouterr().err


def test_an_earlier_instance_that_is_remembered_again_is_exit_status_3(first, tmp_path, monkeypatch, capsys):
    real = work.measure_earlier

    def remembered(model, request):
        return [item | {"forgotten": item["id"] != "57"} for item in real(model, request)]

    monkeypatch.setattr(work, "measure_earlier", remembered)
    argv = ["unlearn", "--from", str(first), *EDIT, "--forget", "501", "--out", str(tmp_path / "b")]
    assert main(argv) == 3
    assert (
        "1 of 4 instances of earlier runs are remembered again (57); the result is kept in" in capsys.readouterr().err
    )


def test_a_method_without_such_constraints_is_said_to_hold_nothing(first, tmp_path, seen, capsys):
    argv = ["unlearn", "--from", str(first), "--data", "digits", "--forget", "501", "--method", "neggrad"]
    main([*argv, "--max-passes", "1", "--eval-limit", "100", "--out", str(tmp_path / "b")])
    assert "not held by this method" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert seen[0].artefacts == {}


def test_public_images_are_proxies_and_named_so(weights, tmp_path, seen, monkeypatch):
    monkeypatch.setattr(request, "MOST_PUBLIC", 10)
    images = np.random.RandomState(0).randint(0, 256, (30, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x=images)
    argv = [*asked(weights), "--forget", "2,57", "--public", f"npz:{tmp_path / 'mine.npz'}"]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    shown = np.asarray(seen[0].public)
    assert shown.shape == (10, 8, 8, 1)
    place = [int(np.flatnonzero((images / np.float32(255) == image).all(axis=(1, 2, 3)))[0]) for image in shown]
    assert place == sorted(set(place))
    assert results(tmp_path / "a")["saw"] == {"forget": 2, "public": 10}
    assert results(tmp_path / "a")["extras"]["public"] == f"npz:{tmp_path / 'mine.npz'}"
    assert "10 unlabelled public images; nothing else" in (tmp_path / "a" / "report.md").read_text()


def test_images_from_inversion_are_made_once_for_a_network(weights, cache, tmp_path, seen, monkeypatch, capsys):
    argv = [*asked(weights), "--forget", "2,57", "--overwrite", "--out", str(tmp_path / "a")]
    assert main([*argv, "--inversion", "8"]) == 0
    assert results(tmp_path / "a")["saw"] == {"forget": 2, "inversion": 8}
    assert results(tmp_path / "a")["seconds"]["inversion"] > 0
    assert "8 images made from the network itself; nothing else" in (tmp_path / "a" / "report.md").read_text()
    (kept,) = cache.iterdir()
    assert main([*argv[:-3], "--inversion", "8", "--dry-run"]) == 0
    assert "8 images of this network are kept from an earlier run" in capsys.readouterr().out

    made = proxies.invert_artefact
    monkeypatch.setattr(proxies, "invert_artefact", None)  # no need to make any
    assert main([*argv, "--inversion", "5"]) == 0
    images = [problem.artefacts["proxies"].arrays["x"] for problem in seen]
    np.testing.assert_array_equal(images[1], images[0][:5])

    monkeypatch.setattr(proxies, "invert_artefact", made)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])  # a damaged file is no obstacle, nor is one of other settings
    assert main([*argv, "--inversion", "8"]) == 0
    np.testing.assert_array_equal(seen[2].artefacts["proxies"].arrays["x"], images[0])
    monkeypatch.setattr(_proxies, "SETTINGS", proxies.InversionConfig(steps=1, batch_size=4))
    assert main([*argv, "--inversion", "8"]) == 0
    assert not np.array_equal(seen[3].artefacts["proxies"].arrays["x"], images[0])
    assert len(list(cache.iterdir())) == 1


def test_a_later_request_takes_the_images_of_the_first_network(first, cache, tmp_path, seen):
    argv = ["unlearn", "--from", str(first), *EDIT, "--inversion", "4", "--forget", "501"]
    assert main([*argv, "--out", str(tmp_path / "second")]) == 0
    assert seen[0].artefacts["proxies"].model_digest == results(first)["digests"]["weights before"]
    assert seen[0].artefacts["proxies"].model_digest != results(first)["digests"]["weights after"]


def test_the_plan_says_what_stands_in_and_what_more_would_buy(weights, cache, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", x=np.zeros((3, 8, 8, 1), np.uint8))
    public = ["--public", f"npz:{tmp_path / 'mine.npz'}"]
    cut = "proxies cut-and-paste images of the forget set"
    for more, line in (
        ([], f"{cut} measured"),
        ([], "metric=kronecker proxies"),  # nothing is said of settings that are empty
        (["--measure-depth"], "257 test, and how deep it goes device"),
        (["--depth", "crops"], f"{cut}; --inversion 500 takes minutes, once for a network, and keeps a little more"),
        (public, f"{cut}, and 3 public images measured"),
        ([*public, "--depth", "mirror"], "proxies 3 public images measured"),
        (["--inversion", "4"], f"{cut}, and 4 images made from the network measured"),
        (["--inversion", "4"], "s for 4 images of 2 steps each, once for this network"),
        (["--method", "adv"], "dry"),
    ):
        main(
            [
                "unlearn",
                "--arch",
                ARCH,
                "--weights",
                str(weights),
                "--data",
                "digits",
                "--forget",
                "2",
                "--dry-run",
                *more,
            ]
        )
        said = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert line in said if line != "dry" else "proxies" not in said


def test_nothing_is_kept_of_an_interrupted_inversion(weights, cache, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    argv = [*asked(weights), "--forget", "2", "--out", str(tmp_path / "a"), "--inversion", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(proxies, "invert_artefact", interrupted)
        assert main(argv) == 130
    with monkeypatch.context() as patch:  # while it is written
        patch.setattr(safetensors.numpy, "save", interrupted)
        assert main(argv) == 130
    assert list(cache.glob("*")) == []
    assert not (tmp_path / "a").exists()
    assert "interrupted; nothing was written" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_told_and_no_obstacle(weights, cache, tmp_path, monkeypatch, capsys):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    argv = [*asked(weights), "--forget", "2", "--out", str(tmp_path / "a"), "--inversion", "4"]
    assert main(argv) == 0
    assert "the images could not be kept in" in capsys.readouterr().err


def test_inversion_is_another_set_of_images_for_another_network(cache):
    model = network()
    one = _proxies.inversion(model, 4).arrays["x"]
    other = model.replace(params=jax.tree.map(lambda leaf: leaf * 1.1, model.params))
    assert not np.array_equal(_proxies.inversion(other, 4).arrays["x"], one)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--public", "mnist"], "unknown data source 'mnist': give digits, folder:DIR, csv:FILE"),
        (["--public", "npz:absent.npz"], "no data file absent.npz"),
        (["--public", "npz:y.npz"], "y.npz has no array 'x', only y"),
        (["--public", "npz:size.npz"], "the images of --public npz:size.npz are 28x28x4, the network takes 8x8x1"),
        (["--public", "npz:scale.npz"], r"x in scale.npz must lie in \[0, 1\]; got values from 0 to 255"),
        (["--public", "npz:size.npz", "--inversion", "4"], "give --public or --inversion, not both"),
        (["--public", "npz:size.npz", "--method", "neggrad"], "method 'neggrad' has no use for --public; leave it out"),
        (["--inversion", "4", "--method", "adv"], "method 'adv' has no use for --inversion; leave it out"),
        (["--inversion", "-1"], "--inversion must be a whole number of at least 0; got '-1'"),
    ],
)
def test_mistakes_about_stand_ins_are_one_line(more, message, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("y.npz", y=np.zeros(3, int))
    np.savez("size.npz", x=np.zeros((3, 28, 28, 4), np.uint8))
    np.savez("scale.npz", x=np.full((3, 8, 8, 1), [[[255.0]]]) * np.arange(3)[:, None, None, None] / 2)
    argv = ["unlearn", "--arch", ARCH, "--weights", str(weights), "--data", "digits", "--quiet", "--forget", "2"]
    assert main([*argv, "--out", "a", *more]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(message, said), said
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (
            {"test": 0.9, "retain": 1.0},
            {"test": 0.83, "retain": 0.2},
            "Accuracy on test images fell by 7.0 points: fewer",
        ),
        (
            {"test": None, "retain": 1.0},
            {"test": None, "retain": 0.2},
            "Accuracy on the other training images fell by 80.0",
        ),
        ({"test": 0.9}, {"test": 0.86}, None),
        ({"test": 0.9}, {"test": None}, None),
    ],
)
def test_much_accuracy_that_went_is_a_line_of_its_own(before, after, line):
    said = unlearn._lost(SimpleNamespace(before=before, after=after))
    assert said is None if line is None else said.startswith(line)
