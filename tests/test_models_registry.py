"""Every network of the registry at its usual size: recipe, head, tensors as their original has them, in and out."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, convert, models
from jaxunlearn._types import Model, Recipe
from jaxunlearn.convert.files import read_raw
from jaxunlearn.convert.fit import named

torch = pytest.importorskip("torch")
import safetensors.numpy  # noqa: E402

from tests.test_models_imagenet import keras_shapes, mobilenet, on_torch, random_weights  # noqa: E402
from tests.torch_zoo import CASES, RESIDUAL, pair  # noqa: E402

KERAS = {f"mobilenet_v1_{percent:03d}": percent / 100 for percent in (25, 50, 75, 100)}
#: What ``config.json`` says of a network of Transformers; ``test_models_huggingface.py`` has their own code, smaller.
TRANSFORMERS = {
    "hf_resnet": ("ResNet", {"model_type": "resnet", "num_labels": 1000}),
    "hf_mobilenet_v2": ("MobileNetV2", {"model_type": "mobilenet_v2", "num_labels": 1001}),
    "hf_vit": ("ViT", {"model_type": "vit", "num_labels": 1000}),
}
#: Of more than 500 MB; `tests.test_export` has small ones of their kind.
LARGE = ("vgg16", "vgg16_bn")


@functools.cache
def template(arch: str) -> Model:
    return models.from_recipe(models.recipe(arch), abstract=True)


def shapes(arch: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each tensor of a network's file, as its original's own code has them."""
    if arch in KERAS:
        return {name: (shape, np.float32) for name, shape in keras_shapes(KERAS[arch], 1000).items()}
    if arch in TRANSFORMERS:  # by our table of names
        zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template(arch))
        tensors = named(convert.layouts.of_arch(arch), zeros)
        counters = {name.removesuffix("var") for name in tensors if name.endswith("running_var")}
        found = {name: (value.shape, np.float32) for name, value in tensors.items()}
        return found | {name.removesuffix("running_") + "num_batches_tracked": ((), np.int64) for name in counters}
    with torch.device("meta"):
        state = (CASES | RESIDUAL)[arch].full().state_dict()
    return {n: (tuple(v.shape), np.float32 if v.is_floating_point() else np.int64) for n, v in state.items()}


def test_every_network_has_an_original() -> None:
    assert sorted([*CASES, *RESIDUAL, *KERAS, *TRANSFORMERS]) == sorted(models.names())


@pytest.mark.parametrize("arch", models.names())
def test_recipe_size_and_head(arch: str) -> None:
    model = template(arch)
    assert model.spec.recipe == models.recipe(arch) == Recipe.from_json(model.spec.recipe.to_json())
    assert _tree.size(model.params) == models.known(arch).parameters
    head = model.params
    for name in models.classifier(model.spec.recipe) or ():
        head = head[name]
    assert head["kernel"].shape[-1] == model.spec.num_classes
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize("arch", [*CASES, *RESIDUAL])
def test_names_shapes_and_number_of_parameters(arch: str) -> None:
    model = template(arch)
    leaves = {**_tree.flatten_paths(model.params), **_tree.flatten_paths(model.model_state.get("batch_stats", {}))}
    ours = dict(convert.layouts.TORCH.tensors({path: leaf.shape for path, leaf in leaves.items()}, ()).values())
    theirs = {name: shape for name, (shape, _) in shapes(arch).items() if not name.endswith("num_batches_tracked")}
    assert ours == theirs
    with torch.device("meta"):
        net = (CASES | RESIDUAL)[arch].full()
    assert sum(value.numel() for value in net.parameters()) == models.known(arch).parameters


def write(folder: Path, arch: str) -> Path:
    """Write a file of every tensor of a network, with values of all signs and sizes, or a folder of Transformers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (shape, dtype) in shapes(arch).items():
        if dtype is np.int64:
            tensors[name] = np.array(rng.integers(1, 10_000), np.int64)
            continue
        value = rng.random(shape, np.float32) - np.float32(0.5)
        value.reshape(-1)[:4] = (-0.0, 1e-42, -3e38, 1.0)[: value.size]
        tensors[name] = value
    if arch not in TRANSFORMERS:
        safetensors.numpy.save_file(tensors, folder / "in.safetensors", {"format": "pt"})
        return folder / "in.safetensors"
    kind, config = TRANSFORMERS[arch]
    path = folder / "in"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config | {"architectures": [f"{kind}ForImageClassification"]}))
    safetensors.numpy.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize("arch", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in models.names()])
def test_every_tensor_in_and_out_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    # What is written is read back and compared all the same; only logits of values as wild as these say nothing.
    monkeypatch.setattr(Model, "__call__", lambda self, x: jnp.zeros(()))
    path, recipe = write(tmp_path, arch), models.recipe(arch)
    if arch in TRANSFORMERS:
        recipe = convert.huggingface.read_recipe(path)
        assert recipe.arch == arch
    out = tmp_path / f"out{path.suffix}"
    model = convert.load_weights(path, recipe, lambda recipe, abstract: template(arch))
    assert _tree.size(model.params) == models.known(arch).parameters
    assert convert.export(model, out, like=path).changed == ()
    before, after = read_raw(path), read_raw(out)
    assert {*before.tensors} == {*after.tensors} == {*shapes(arch)}
    for name, tensor in before.tensors.items():
        there = after.tensors[name]
        assert (there.dtype, there.shape) == (tensor.dtype, tensor.shape), name
        assert there.tobytes() == tensor.tobytes(), name
    assert before.metadata == after.metadata


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*CASES, *RESIDUAL, *KERAS])
def test_logits_at_the_usual_size_equal_pytorch(arch: str) -> None:
    if arch in KERAS:
        weights = random_weights(keras_shapes(KERAS[arch], 1000))
        model = convert.from_keras(weights, template(arch))
        x = np.random.default_rng(1).random((2, 224, 224, 3), np.float32)
        expected = mobilenet(on_torch(weights), torch.from_numpy(x)).numpy()
    else:
        model, net, x, x_torch = pair(arch, 2, full=True)
        with torch.inference_mode():
            expected = net(x_torch).numpy()
    assert 1 < np.abs(expected).max() < 50
    assert expected.std(axis=0).max() > 0.01  # the images are told apart
    np.testing.assert_allclose(jax.jit(Model.__call__)(model, x), expected, rtol=0, atol=1e-4)
