"""Reference networks: the same numbers as PyTorch, built from recipes."""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn import convert, models
from jaxunlearn._types import Model, Recipe
from jaxunlearn.models import _layers
from jaxunlearn.models.resnet import BatchNorm

torch = pytest.importorskip("torch")
from tests.torch_reference import build, randomise  # noqa: E402

LONG = tuple(f"cifar_resnet{n}" for n in ("44", "56", "110", "14b", "32b", "44b", "56b", "110b"))
#: Those of the reference in tests/torch_reference.py; the others have test files of their own.
NAMES = ("digits_cnn", "resnet18", *(name for name in models.names() if name.startswith(("cifar_", "resnet18_"))))


def small(arch: str) -> Recipe:
    """The network on images small enough to test it."""
    size, channels = (8, 1) if arch == "digits_cnn" else (64 if arch == "resnet18" else 16, 3)
    return models.recipe(arch, num_classes=7, input_shape=(size, size, channels))


def pair(arch: str) -> tuple[Model, torch.nn.Module, np.ndarray, torch.Tensor]:
    """A PyTorch network with random statistics, ours with its weights, images for ours and for it."""
    torch.manual_seed(0)
    net = randomise(build(arch, 7), seed=1)
    recipe = small(arch)
    model = convert.from_torch(net.state_dict(), models.from_recipe(recipe, abstract=True))
    x = np.random.default_rng(2).random((4, *model.spec.input_shape), np.float32)
    normal = (x - np.float32(recipe.mean)) / np.float32(recipe.std)
    return model, net, x, torch.from_numpy(normal).permute(0, 3, 1, 2)


@pytest.mark.parametrize("arch", [pytest.param(a, marks=pytest.mark.slow) if a in LONG else a for a in NAMES])
def test_equals_pytorch_in_both_modes(arch: str) -> None:
    model, net, x, x_torch = pair(arch)
    with torch.no_grad():
        np.testing.assert_allclose(model(x), net(x_torch).numpy(), rtol=0, atol=1e-4)
        expected = net.train()(x_torch).numpy()
    logits, state = model.apply_fn(model.params, model.model_state, x, train=True)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    ours = convert.to_torch(model.replace(model_state=state))
    theirs = net.state_dict()  # running statistics moved in place
    assert {*ours} == {name for name in theirs if not name.endswith("num_batches_tracked")}
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    before = convert.to_torch(model)
    assert not np.array_equal(ours["bn1.running_var"], before["bn1.running_var"])


@pytest.mark.parametrize(
    ("arch", "batch", "train"),
    [
        ("digits_cnn", 35, False),
        ("cifar_resnet8b", 3, True),
        pytest.param("digits_cnn", 35, True, marks=pytest.mark.slow),
        pytest.param("cifar_resnet8", 3, True, marks=pytest.mark.slow),
        pytest.param("resnet18", 2, False, marks=pytest.mark.slow),
    ],
)
def test_gradients_equal_pytorch(arch: str, batch: int, train: bool) -> None:
    model, net, _, _ = pair(arch)
    rng = np.random.default_rng(5)
    x = rng.random((batch, *model.spec.input_shape), np.float32)
    std = model.spec.recipe.std
    normal = (x - np.float32(model.spec.recipe.mean)) / np.float32(std)
    x_torch = torch.from_numpy(normal).permute(0, 3, 1, 2).requires_grad_()
    weights = rng.standard_normal((batch, 7)).astype(np.float32)
    (net.train(train)(x_torch) * torch.from_numpy(weights)).sum().backward()

    def loss(params: dict, x: jax.Array) -> jax.Array:
        return jnp.sum(model.apply_fn(params, model.model_state, x, train=train)[0] * weights)

    by_params, by_x = jax.jit(jax.grad(loss, (0, 1)))(model.params, jnp.asarray(x))
    expected = x_torch.grad.permute(0, 2, 3, 1).numpy() / np.float32(std)
    np.testing.assert_allclose(by_x, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    ours = convert.to_torch(model.replace(params=by_params))
    for name, value in net.named_parameters():
        theirs = value.grad.numpy()
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


def test_equal_recipes_share_one_compilation() -> None:
    traces = 0

    def forward(model: Model, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return model(x)

    jitted = jax.jit(forward)
    for value in (0.1, 0.2):
        recipe = Recipe.from_json(models.recipe("digits_cnn").to_json())
        model = models.from_recipe(recipe, abstract=True)
        filled = jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), model)
        jitted(filled, jnp.zeros((1, 8, 8, 1)))
    assert traces == 1


def test_fresh_weights_fit_the_network_and_differ_by_key() -> None:
    recipe = models.recipe("digits_cnn")
    one, two = (models.from_recipe(recipe, key=jax.random.key(seed)) for seed in (0, 1))
    template = models.from_recipe(recipe, abstract=True)
    assert jax.tree.structure(one) == jax.tree.structure(template)
    assert jax.tree.map(jnp.shape, one.params) == jax.tree.map(jnp.shape, template.params)
    kernel = np.asarray(one.params["layer1_0"]["conv1"]["kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 16)), rtol=0.05)  # He et al. 2015: 2 over the fan-out
    assert not np.array_equal(kernel, two.params["layer1_0"]["conv1"]["kernel"])
    assert float(one.model_state["batch_stats"]["bn1"]["var"].min()) == 1.0  # not moved by the init pass


def test_vmap_over_weights_equals_single_models() -> None:
    model = models.from_recipe(models.recipe("digits_cnn"), abstract=True)
    rng = np.random.default_rng(0)
    many = jax.tree.map(lambda leaf: jnp.asarray(0.2 + 0.1 * rng.random((2, *leaf.shape), np.float32)), model)
    x = jnp.asarray(rng.random((2, 3, 8, 8, 1), np.float32))
    logits = jax.vmap(lambda m, v: m(v))(many, x)
    for lane in range(2):
        single = jax.tree.map(lambda leaf: leaf[lane], many)
        np.testing.assert_allclose(logits[lane], single(x[lane]), rtol=1e-4)


def test_batch_norm_survives_one_value_per_channel() -> None:
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.ones((1, 3)))
    y, updated = layer.apply(variables, jnp.full((1, 3), 5.0), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, 0.0)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.5)


def test_batch_norm_keeps_wide_statistics_of_narrow_inputs() -> None:
    x = (300.0 + jax.random.normal(jax.random.key(0), (512, 2))).astype(jnp.bfloat16)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(1), x)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["var"].dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-3)


def plain_batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
    """The formula as it is written, for autodiff."""
    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean.reshape(scale.shape), var.reshape(scale.shape)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 99))
def test_batch_norm_has_the_gradients_of_its_formula(sides: list[int], channels: int, seed: int) -> None:
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.normal(3.0, 2.0, (*sides, channels)))
        scale, bias, a, b, c = jnp.asarray(rng.normal(size=(5, channels)))

        def total(form: Any, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            # Through all three outputs, as a user who differentiates the statistics would.
            y, mean, var = form(x, scale, bias, 0.1)
            return jnp.sum(jnp.sin(y) * a) + jnp.sum(mean * b) + jnp.sum(jnp.cos(var) * c)

        ours, plain = partial(total, _layers._normalised_by_batch), partial(total, plain_batch_norm)
        for order in (ours, plain), (slope(ours), slope(plain)):
            got, wanted = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(x, scale, bias) for f in order)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9), got, wanted)
        stacked = jnp.stack([x, 2 * x])
        each = jax.jit(jax.vmap(jax.grad(ours), in_axes=(0, None, None)))(stacked, scale, bias)
        np.testing.assert_allclose(each[1], jax.jit(jax.grad(plain))(2 * x, scale, bias), rtol=1e-8, atol=1e-9)


def slope(fn: Any) -> Any:
    """A function of the gradient, whose own gradient takes second derivatives."""
    return lambda *at: sum(jnp.sum(jnp.square(g)) for g in jax.grad(fn, argnums=(0, 1, 2))(*at))


class OwnNet(nn.Module):
    """A user's own network, found by module and class name."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes)(x)


def test_own_module_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_nets", types.SimpleNamespace(OwnNet=OwnNet, call=print))
    recipe = models.recipe("own_nets:OwnNet", num_classes=3, input_shape=(4,))
    assert models.from_recipe(recipe, key=jax.random.key(0))(jnp.ones((2, 4))).shape == (2, 3)
    with pytest.raises(ValueError, match="'own_nets:call' is a function, which is called only where you name it"):
        models.from_recipe(models.recipe("own_nets:call", num_classes=3, input_shape=(4,)), abstract=True)


def test_a_recipe_of_a_stranger_calls_nothing_but_linen_classes(tmp_path: object) -> None:
    recipe = Recipe(arch="os:system", kwargs=(("input_shape", (1,)), ("num_classes", 2), ("command", "false")))
    with pytest.raises(ValueError, match="'os:system' is not a class of Linen modules"):
        models.from_recipe(recipe, abstract=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="cifar_resnet21"), "unknown network 'cifar_resnet21'; did you mean cifar_resnet"),
        (dict(arch="zzz"), "unknown network 'zzz'; there are digits_cnn, cifar_resnet8"),
        (dict(arch="a.b:C"), "give num_classes and input_shape"),
        (dict(arch="digits_cnn", num_classes=0), "num_classes must be at least 1; got 0"),
        (dict(arch="digits_cnn", input_shape=(8, 8)), r"input_shape must be \(height, width, channels\); got \(8, 8\)"),
    ],
)
def test_recipe_errors(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.recipe(**kwargs)


def test_from_recipe_errors() -> None:
    recipe = models.recipe("digits_cnn")
    with pytest.raises(ValueError, match="exactly one of variables, key, abstract"):
        models.from_recipe(recipe)
    with pytest.raises(ValueError, match="exactly one of variables, key, abstract"):
        models.from_recipe(recipe, key=jax.random.key(0), abstract=True)
    with pytest.raises(ValueError, match="unknown network 'nonesuch'"):
        models.from_recipe(Recipe(arch="nonesuch", kwargs=recipe.kwargs), abstract=True)
    with pytest.raises(ValueError, match="digits_cnn lacks input_shape"):
        models.from_recipe(Recipe(arch="digits_cnn", kwargs=(("num_classes", 3),)), abstract=True)
    with pytest.raises(ValueError, match=r"recipe of digits_cnn does not fit it: .*'depht'"):
        models.from_recipe(Recipe(arch="digits_cnn", kwargs=(*recipe.kwargs, ("depht", 3))), abstract=True)
    wrapped = Recipe(arch="digits_cnn", kwargs=recipe.kwargs, wrappers=(("nonesuch", ()),))
    with pytest.raises(ValueError, match="unknown wrapper 'nonesuch'; there are patch"):
        models.from_recipe(wrapped, abstract=True)
    with pytest.raises(ValueError, match="a network inside nonesuch needs abstract=True"):
        models.from_recipe(wrapped, key=jax.random.key(0))
    with pytest.raises(ValueError, match="cannot import the network 'no_such_module:Net'"):
        models.from_recipe(Recipe(arch="no_such_module:Net", kwargs=recipe.kwargs), abstract=True)
    with pytest.raises(ValueError, match="one value for each of the 1 channels"):
        models.from_recipe(models.recipe("digits_cnn", mean=(0.1, 0.2), std=(1, 1)), abstract=True)
    with pytest.raises(ValueError, match="mean and std go together"):
        models.from_recipe(models.recipe("digits_cnn", mean=(0.1,)), abstract=True)


def test_variables_of_another_network_are_refused() -> None:
    other = models.from_recipe(models.recipe("digits_cnn", num_classes=3), abstract=True)
    with pytest.raises(ValueError, match="cannot be applied to inputs of shape"):
        models.from_recipe(models.recipe("digits_cnn"), variables={"params": other.params, **other.model_state})
    deeper = models.from_recipe(models.recipe("cifar_resnet14"), abstract=True)
    said = r"not those of cifar_resnet8: model_state/batch_stats/layer1_1/bn1/mean is \(16,\), there absent"
    with pytest.raises(ValueError, match=said):
        models.from_recipe(models.recipe("cifar_resnet8"), variables={"params": deeper.params, **deeper.model_state})


@pytest.mark.parametrize("shape", [(30, 32, 3), (32, 33, 3), (2, 2, 3)])
def test_patches_must_cover_the_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"cannot be built for .*: patches of 4 pixels do not cover"):
        models.from_recipe(models.recipe("vit_tiny_cifar", input_shape=shape), abstract=True)
