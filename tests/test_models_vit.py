"""Vision transformers against PyTorch's own encoder layers on the same weights, under torchvision's names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, convert, models

torch = pytest.importorskip("torch")

#: PyTorch's names of a layer's tensors in torchvision -> in `torch.nn.TransformerEncoderLayer`.
LAYER = {
    "self_attention.in_proj_weight": "self_attn.in_proj_weight",
    "self_attention.in_proj_bias": "self_attn.in_proj_bias",
    "self_attention.out_proj": "self_attn.out_proj",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.0": "linear1",
    "mlp.3": "linear2",
}


def reference(w: dict[str, torch.Tensor], x: torch.Tensor, *, heads: int, mean, std) -> torch.Tensor:
    """Logits of images in NHWC and [0, 1], by PyTorch's own convolution, encoder layers and normalisation."""
    x = ((x - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    patch = w["conv_proj.weight"].shape[-1]
    x = torch.nn.functional.conv2d(x, w["conv_proj.weight"], w["conv_proj.bias"], stride=patch).flatten(2).mT
    x = torch.cat([w["class_token"].expand(len(x), -1, -1), x], 1) + w["encoder.pos_embedding"]
    width, depth = x.shape[-1], 1 + max(int(n.split("encoder_layer_")[1].split(".")[0]) for n in w if "_layer_" in n)
    for i in range(depth):
        prefix = f"encoder.layers.encoder_layer_{i}."
        own = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        state = {}
        for name, value in own.items():
            start = next(known for known in LAYER if name.startswith(known))
            state[LAYER[start] + name.removeprefix(start)] = value
        hidden = state["linear1.bias"].shape[0]
        options = dict(dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True)
        layer = torch.nn.TransformerEncoderLayer(width, heads, hidden, **options).train()  # eval has a path of its own
        layer.load_state_dict(state)
        x = layer(x)
    x = torch.nn.functional.layer_norm(x, (width,), w["encoder.ln.weight"], w["encoder.ln.bias"], 1e-6)
    return x[:, 0] @ w["heads.head.weight"].mT + w["heads.head.bias"]


def random_model(arch: str, **more):
    recipe = models.recipe(arch, **more)
    model = models.from_recipe(recipe, key=jax.random.key(0))
    leaves, shape = jax.tree.flatten(model.params)
    rng = np.random.default_rng(0)
    noise = [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return model.replace(params=jax.tree.unflatten(shape, noise))


def test_logits_are_those_of_pytorch():
    model = random_model("vit_tiny_cifar")
    weights = {name: torch.from_numpy(value) for name, value in convert.to_torch(model).items()}
    x = np.random.default_rng(1).uniform(size=(3, 32, 32, 3)).astype(np.float32)
    recipe = model.spec.recipe
    with torch.inference_mode():
        expected = reference(weights, torch.from_numpy(x), heads=3, mean=recipe.mean, std=recipe.std).numpy()
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, atol=1e-4 * np.abs(expected).max())


def test_names_and_shapes_are_torchvisions_both_ways():
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

    small = random_model("vit_tiny_cifar", num_classes=7)
    there = convert.to_torch(small)
    again = convert.from_torch(there, models.from_recipe(small.spec.recipe, abstract=True))
    assert _tree.model_digest(again) == _tree.model_digest(small)
    assert convert.classes(there, small.spec.head) == 7
