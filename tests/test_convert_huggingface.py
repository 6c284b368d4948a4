"""What the files of a folder of Transformers say, and what is refused; without Transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn import _tree, convert, models
from jaxunlearn._types import Preprocess
from jaxunlearn.convert import dialects, huggingface

VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 16,
    "patch_size": 8,
    "id2label": {"0": "cat", "1": "dog", "2": "cow"},
}
RESNET = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 4, "num_labels": 3}


def folder(path: Path, config: Any, preprocessor: Any = None) -> Path:
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if preprocessor is not None:
        text = preprocessor if isinstance(preprocessor, str) else json.dumps(preprocessor)
        (path / "preprocessor_config.json").write_text(text)
    return path


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        (None, Preprocess(resize=(224, 224), crop=(224, 224))),
        ({"size": 192}, Preprocess(resize=(192, 192), crop=(192, 192))),
        (
            {"size": {"height": 96, "width": 128}, "resample": 3},
            Preprocess(resize=(96, 128), crop=(96, 128), resample="bicubic"),
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}},
            Preprocess(resize=256, crop=(224, 192)),
        ),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, Preprocess(resize=256, crop=(224, 224))),
        (
            {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 256}},
            Preprocess(resize=256, crop=(224, 224)),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
            Preprocess(resize=256, crop=(224, 224), resample="bicubic"),
        ),
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224},
            Preprocess(resize=256, crop=(224, 224), resample="bicubic"),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor"},
            Preprocess(resize=(384, 384), crop=(384, 384), resample="bicubic"),
        ),
        ({"size": 64, "resample": 0}, Preprocess(resize=(64, 64), crop=(64, 64), resample="nearest")),
    ],
)
def test_how_pictures_are_made_to_fit(tmp_path: Path, preprocessor: Any, expected: Preprocess) -> None:
    recipe = huggingface.read_recipe(folder(tmp_path, RESNET, preprocessor))
    assert recipe.preprocess == expected
    assert dict(recipe.kwargs)["input_shape"] == (*expected.crop, 3)


def test_normalisation_is_read_or_the_usual_one(tmp_path: Path) -> None:
    assert huggingface.read_recipe(folder(tmp_path, RESNET)).mean == (0.485, 0.456, 0.406)
    assert huggingface.read_recipe(folder(tmp_path, VIT)).mean == (0.5, 0.5, 0.5)
    given = {"size": 16, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 0.5], "rescale_factor": 0.00392156862745098}
    recipe = huggingface.read_recipe(folder(tmp_path, VIT, given))
    assert (recipe.mean, recipe.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 0.5))
    none = huggingface.read_recipe(folder(tmp_path, VIT, {"size": 16, "do_normalize": False}))
    assert (none.mean, none.std) == (None, None)
    assert dict(none.kwargs)["num_classes"] == 3


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        ("{", None, "config.json is no JSON"),
        ("[1]", None, "config.json must hold a JSON object; it holds a list"),
        ({}, None, "config.json lacks model_type"),
        ({"model_type": "bert"}, None, "config.json is of a 'bert'; those that fit are resnet, mobilenet_v2, vit"),
        (VIT | {"architectures": ["ViTModel"]}, None, "config.json is of a ViTModel, not of a network for image"),
        (VIT | {"hidden_size": "8"}, None, "hidden_size is '8', which is not what belongs there"),
        (VIT | {"hidden_size": True}, None, "hidden_size is True, which is not what belongs there"),
        (VIT | {"hidden_size": 9}, None, "hidden_size 9 is no multiple of num_attention_heads 2"),
        (VIT | {"hidden_act": "quick_gelu"}, None, "hidden_act is 'quick_gelu'; provided for is 'gelu', "),
        (VIT | {"patch_size": [8, 4]}, None, r"patch_size must be square; got \(8, 4\)"),
        (VIT, {"size": 24}, r"images of \(24, 24\) are made for a network that takes \(16, 16\)"),
        (VIT, {"size": {"shortest_edge": 16}}, "size has a shortest_edge and nothing is cut out"),
        (VIT, {"size": 16, "resample": 5}, "resample is 5; provided for are"),
        (VIT, {"size": 16, "rescale_factor": 1 / 127.5}, "rescale_factor is .*; provided for is 1/255"),
        (VIT, {"size": 16, "do_resize": False}, "do_resize is False; provided for is True"),
        (VIT, {"size": 16, "image_mean": ["x"], "image_std": [1]}, "image_mean must be a list of numbers"),
        (VIT, {"size": {"height": 0, "width": 16}}, "size must be height and width"),
        (VIT, "nonsense", "preprocessor_config.json is no JSON"),
        (
            RESNET | {"hidden_sizes": [8, 18]},
            None,
            r"hidden_sizes of bottlenecks must be multiples of 4; got \(8, 18\)",
        ),
        (RESNET | {"depths": [1]}, None, "hidden_sizes and depths must have one length"),
        (RESNET | {"depths": []}, None, r"depths must be a list of numbers of at least 1; got \[\]"),
        (RESNET | {"layer_type": "wide"}, None, "layer_type is 'wide'; provided for is 'bottleneck', 'basic'"),
        (RESNET | {"embedding_size": 0}, None, "embedding_size must be from 1 to 1,000,000; got 0"),
        ({"model_type": "mobilenet_v2", "output_stride": 8}, None, "output_stride is 8; provided for is 32"),
        ({"model_type": "mobilenet_v2", "depth_multiplier": 0}, None, "depth_multiplier must be above 0; got 0"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, config: Any, preprocessor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        huggingface.read_recipe(folder(tmp_path, config, preprocessor))
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), inner)
    ),
    max_leaves=3,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.mkdir(exist_ok=True)
    base = data.draw(st.sampled_from([VIT, RESNET, {"model_type": "mobilenet_v2"}]))
    names = [*base, "image_size", "num_channels", "layer_norm_eps", "id2label", "num_labels", "depth_multiplier"]
    config = dict(base) | {data.draw(st.sampled_from(names)): data.draw(json_values)}
    sizes = ["size", "crop_size", "crop_pct", "do_center_crop", "image_mean", "image_std", "resample", "rescale_factor"]
    pre = data.draw(st.dictionaries(st.sampled_from([*sizes, "image_processor_type"]), json_values, max_size=3))
    try:
        huggingface.read_recipe(folder(path, config, pre))
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_folders_without_whole_weights(tmp_path: Path) -> None:
    folder(tmp_path, RESNET)
    recipe = huggingface.read_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"has a config.json, but no weights: model.safetensors or pytorch_model.bin"):
        convert.load_weights(tmp_path, recipe, models.from_recipe)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="are in several files: save the model anew in one"):
        convert.load_weights(tmp_path, recipe, models.from_recipe)


def test_a_vit_saved_with_its_pooler_fits(tmp_path: Path) -> None:
    folder(tmp_path, VIT)
    recipe = huggingface.read_recipe(tmp_path)
    rng = np.random.default_rng(0)
    abstract = models.from_recipe(recipe, abstract=True)
    model = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape, np.float32)), abstract)
    tensors = convert.to_torch(model)
    assert {name for name in tensors if "query" in name} == {
        f"vit.encoder.layer.0.attention.attention.query.{leaf}" for leaf in ("weight", "bias")
    }
    again = convert.from_torch(tensors | {"vit.pooler.dense.bias": np.zeros(8, np.float32)}, abstract)
    assert _tree.model_digest(again) == _tree.model_digest(model)
    with pytest.raises(ValueError, match=r"missing vit.layernorm.bias of shape \(8,\)"):
        convert.from_torch({name: value for name, value in tensors.items() if name != "vit.layernorm.bias"}, abstract)


@pytest.mark.parametrize(
    "table", [dialects.RESNET, dialects.MOBILENET_V2, dialects.VIT, dialects.VIT_5, dialects.DENSENET]
)
def test_a_table_gives_each_tensor_a_name_of_its_own(table: tuple[dialects.Rule, ...]) -> None:
    arch = {dialects.RESNET: "hf_resnet", dialects.MOBILENET_V2: "hf_mobilenet_v2", dialects.DENSENET: "densenet121"}
    model = models.from_recipe(models.recipe(arch.get(table, "hf_vit")), abstract=True)
    names = [convert.layouts.torch_name(path) for path in convert.fit.leaves(model)]
    there = [dialects.rename(table, name) for name in names]
    assert len({*there}) == len(names)
    if table is not dialects.DENSENET:
        assert all(name.startswith(("resnet.", "mobilenet_v2.", "vit.", "classifier")) for name in there)
    back = tuple((new, old, tuple(-n for n in shift)) for old, new, shift in table)
    assert [dialects.rename(back, name) for name in there] == names
