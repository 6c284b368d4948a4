"""Transformers' own classifiers against ours on the weights and settings that they save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxunlearn import _tree, convert, models
from jaxunlearn._types import Model, Preprocess, Recipe
from jaxunlearn.cli.main import main

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")  # of the extra "test"; not with every version of torch
from tests.torch_zoo import alive  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VIT = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
)
RESNET = dict(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])
MOBILENET = dict(depth_multiplier=0.25, image_size=40)
#: Kind, its settings, what the preprocessor's file says beside mean and deviation.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit": ("ViT", VIT, {"size": {"height": 16, "width": 16}}),
    "vit without bias": ("ViT", VIT | {"qkv_bias": False, "hidden_act": "gelu_new"}, {"size": 16}),
    "resnet": ("ResNet", RESNET, {"size": {"shortest_edge": 48}, "crop_pct": 0.875, "resample": 3}),
    "resnet of basic blocks": (
        "ResNet",
        RESNET | {"layer_type": "basic", "hidden_sizes": [8, 12], "downsample_in_first_stage": True},
        {"size": {"height": 32, "width": 48}},
    ),
    "resnet as in the paper": ("ResNet", RESNET | {"downsample_in_bottleneck": True}, {"size": 48}),
    "mobilenet": (
        "MobileNetV2",
        MOBILENET,
        {"size": {"shortest_edge": 44}, "do_center_crop": True, "crop_size": {"height": 40, "width": 40}},
    ),
    "mobilenet without tensorflow's padding": ("MobileNetV2", MOBILENET | {"tf_padding": False}, {"size": 40}),
    "mobilenet of other counts": (
        "MobileNetV2",
        dict(depth_multiplier=0.35, finegrained_output=False, expand_ratio=4.0, depth_divisible_by=4, min_depth=4),
        {"size": 33},
    ),
    "vit at its usual size": ("ViT", {}, {"size": 224}),
    "resnet at its usual size": ("ResNet", {}, {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "mobilenet at its usual size": (
        "MobileNetV2",
        {},
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
    ),
}
NORMAL = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def saved(folder: Path, name: str, **more: Any) -> Any:
    """A network of Transformers with random weights that give logits of a few units, saved to a folder."""
    kind, settings, preprocessor = CASES[name]
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **settings | more)
    net = alive(getattr(transformers, f"{kind}ForImageClassification")(config), seed=1)
    side = settings.get("image_size", 48 if settings else 224)
    with torch.no_grad():
        factor = 3 / net(torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))).logits.std()
        for tensor in net.classifier.parameters():
            tensor.mul_(factor)
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor | NORMAL))
    return net


def load(folder: Path) -> Model:
    return convert.load_weights(folder, convert.huggingface.read_recipe(folder), models.from_recipe)


def logits(net: Any, recipe: Recipe, x: np.ndarray) -> np.ndarray:
    normal = (x - np.float32(recipe.mean)) / np.float32(recipe.std)
    with torch.no_grad():
        return net(torch.from_numpy(normal).permute(0, 3, 1, 2)).logits.numpy()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "usual" in n else n for n in CASES])
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    net = saved(tmp_path, name)
    model = load(tmp_path)
    recipe = model.spec.recipe
    assert recipe == Recipe.from_json(recipe.to_json())
    assert (recipe.mean, recipe.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    x = np.random.default_rng(2).random((3, *model.spec.input_shape), np.float32)
    if "usual" in name:
        x = x[:, ::14, ::14].repeat(14, 1).repeat(14, 2)  # noise of single pixels is averaged out, and images are alike
    expected = logits(net, recipe, x)
    assert 1 < np.abs(expected).max() < 100
    assert expected.std(axis=0).max() > 0.05  # the images are told apart
    np.testing.assert_allclose(jax.jit(Model.__call__)(model, x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet"])
def test_state_dicts_in_memory_and_on_disk_are_the_same_network(tmp_path: Path, name: str) -> None:
    net = saved(tmp_path, name)
    model = load(tmp_path)
    again = convert.from_torch(net.state_dict(), models.from_recipe(model.spec.recipe, abstract=True))
    assert _tree.model_digest(again) == _tree.model_digest(model)
    on_disk = {k for k in convert.read_state_dict(tmp_path) if not k.endswith("num_batches_tracked")}
    assert {*convert.to_torch(model)} == on_disk


@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet"])
@pytest.mark.parametrize("edited", [False, True])
def test_folder_in_folder_out(tmp_path: Path, name: str, edited: bool) -> None:
    saved(tmp_path / "in", name)
    model = load(tmp_path / "in")
    if edited:
        model = model.replace(params=jax.tree.map(lambda leaf: leaf * 1.01, model.params))
    done = convert.export(model, tmp_path / "out", like=tmp_path / "in")
    assert done.difference == 0
    before, after = (convert.files.read_raw(tmp_path / side) for side in ("in", "out"))
    assert {*before.tensors} == {*after.tensors}
    assert before.metadata == after.metadata
    same = {
        k
        for k, v in before.tensors.items()
        if v.dtype == after.tensors[k].dtype and np.array_equal(v, after.tensors[k])
    }
    assert {*before.tensors} - same == {*done.changed}
    assert bool(done.changed) is edited
    for file in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "in" / file).read_bytes()
    kind = getattr(transformers, f"{CASES[name][0]}ForImageClassification")
    net, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x = np.random.default_rng(2).random((3, *model.spec.input_shape), np.float32)
    expected = logits(net.eval(), model.spec.recipe, x)
    np.testing.assert_allclose(jax.jit(Model.__call__)(model, x), expected, rtol=0, atol=1e-4)


def test_in_train_mode_batch_norm_and_dropout_are_on(tmp_path: Path) -> None:
    saved(tmp_path, "vit", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    model = load(tmp_path)
    x = np.random.default_rng(2).random((2, 16, 16, 3), np.float32)
    one, two = (
        model.apply_fn(model.params, {}, x, train=True, rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 1)
    )
    assert np.abs(np.asarray(one - two)).max() > 1e-3


def test_commands_take_a_folder_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    net = saved(tmp_path / "net", "resnet")
    recipe = convert.huggingface.read_recipe(tmp_path / "net")
    assert recipe.preprocess == Preprocess(resize=54, crop=(48, 48), resample="bicubic")
    x = np.random.default_rng(3).integers(0, 256, (6, 48, 48, 3), np.uint8)
    y = logits(net, recipe, x.astype(np.float32) / 255).argmax(1)
    np.savez(tmp_path / "x.npz", x=x, y=y, split=np.array(["test"] * 5 + ["train"]))
    argv = ["evaluate", "--weights", str(tmp_path / "net"), "--data", f"npz:{tmp_path / 'x.npz'}", "--json", "--quiet"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    assert main([*argv, "--arch", "resnet50"]) == 2
    assert "--arch is resnet50, but" in capsys.readouterr().err
    assert main([*argv, "--num-classes", "7"]) == 2
    assert "--num-classes and --input-shape go with a file of weights" in capsys.readouterr().err
