"""Vision transformers against PyTorch's own attention on the same weights, under torchvision's names."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxunlearn import _tree, convert, models
from jaxunlearn._types import Model

torch = pytest.importorskip("torch")
from tests.torch_zoo import pair  # noqa: E402


def test_logits_are_those_of_pytorch() -> None:
    model, net, x, x_torch = pair("vit_tiny_cifar", 3, full=True)
    with torch.inference_mode():
        expected = net(x_torch).numpy()
    assert 1 < np.abs(expected).max() < 20
    assert expected.std(axis=0).max() > 0.1  # the images are told apart
    np.testing.assert_allclose(jax.jit(Model.__call__)(model, x), expected, rtol=0, atol=1e-4)


def test_names_and_shapes_are_torchvisions() -> None:
    model = models.from_recipe(models.recipe("vit_b_16"), abstract=True)
    assert _tree.size(model.params) == 86_567_656
    assert model.spec.head == ("heads", "head")
    paths = {path: np.shape(leaf) for path, leaf in _tree.flatten_paths(model.params).items()}
    tensors = dict(convert.layouts.TORCH.tensors(paths, ()).values())
    assert len(tensors) == 152
    assert tensors["class_token"] == (1, 1, 768)
    assert tensors["conv_proj.weight"] == (768, 3, 16, 16)
    assert tensors["encoder.pos_embedding"] == (1, 197, 768)
    assert tensors["encoder.layers.encoder_layer_11.self_attention.in_proj_weight"] == (2304, 768)
    assert tensors["encoder.layers.encoder_layer_0.ln_1.weight"] == (768,)
    assert tensors["encoder.layers.encoder_layer_3.mlp.3.weight"] == (768, 3072)
    assert tensors["heads.head.weight"] == (1000, 768)
