"""``jaxunlearn models``: what it lists is what ``--arch`` takes."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

from jaxunlearn import convert, models
from jaxunlearn.cli.main import main


def test_every_network_is_listed(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(models.names())
    by_name = {row["name"]: row for row in rows}
    assert by_name["densenet121"]["parameters"] == 7_978_856
    assert by_name["vgg16"]["layout"] == "torchvision"
    assert by_name["cifar_resnet20"]["aliases"] == ["resnet20"]
    assert by_name["cifar_resnet20"]["input"] == [32, 32, 3]
    assert by_name["mobilenet_v1_025"]["files"] == [".npz", ".safetensors"]
    assert by_name["hf_vit"]["files"] == ["folder"]
    for row in rows:
        for name in (row["name"], *row["aliases"]):
            assert models.recipe(name).arch == row["name"]


@pytest.mark.parametrize("columns", ["70", "80", "120"])
def test_the_table(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    for name in models.names():
        assert re.search(rf"^{name} +{models.known(name).parameters:,} +\d+x\d+x\d ", said, re.MULTILINE)
    assert re.search(r"^  resnet50 +tv_resnet50, resnet50.tv_in1k$", said, re.MULTILINE)


def test_a_tag_of_timm_is_an_alias_where_the_layout_is_the_same() -> None:
    for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "densenet121"):
        for tag in ("a1_in1k", "tv2_in1k", "fb_swsl_ig1b_ft_in1k"):
            assert models.recipe(f"{name}.{tag}") == models.recipe(name)
    for arch in ("vgg16.tv_in1k", "cifar_resnet20.a1_in1k", "resnet20.x", "resnet50.", "resnet50.a.b", "resnet50.a1:N"):
        with pytest.raises(ValueError):
            models.recipe(arch)


def test_weights_of_another_network_say_which(tmp_path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = models.recipe("cifar_resnet8", num_classes=7)
    np.savez("w.npz", **convert.to_torch(models.from_recipe(recipe, key=jax.random.key(0))))  # type: ignore[arg-type]
    argv = ["evaluate", "--weights", "w.npz", "--data", "digits"]
    for arch, said in (
        (["--arch", "cifar_resnet14"], "do not fit cifar_resnet14: missing .*; they fit cifar_resnet8$"),
        ([], r"which network are the weights of w.npz for\? They fit cifar_resnet8$"),
    ):
        assert main([*argv, *arch]) == 2
        assert re.search(said, capsys.readouterr().err.rstrip())


def test_unknown_flags_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "--all"]) == 2
    assert "unrecognized arguments: --all" in capsys.readouterr().err
