"""Widespread networks: logits, gradients, statistics, names and sizes are those of PyTorch on the same weights."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, convert, models
from jaxunlearn._types import Model, Recipe
from jaxunlearn.models._layers import adaptive_mean, max_pool

torch = pytest.importorskip("torch")
from tests.torch_zoo import CASES, pair  # noqa: E402


@pytest.mark.parametrize("arch", CASES)
def test_logits_and_statistics_equal_pytorch(arch: str) -> None:
    model, net, x, x_torch = pair(arch, 4)
    with torch.no_grad():
        expected = net(x_torch).numpy()
        in_train = net.train()(x_torch).numpy()
    assert expected.std(axis=0).max() > 0.01  # the images are told apart
    np.testing.assert_allclose(jax.jit(Model.__call__)(model, x), expected, rtol=0, atol=1e-4)
    if not model.model_state:
        return
    logits, state = jax.jit(lambda m, x: m.apply_fn(m.params, m.model_state, x, train=True))(model, x)
    np.testing.assert_allclose(logits, in_train, rtol=0, atol=1e-3)  # BatchNorm of few values magnifies rounding
    ours, theirs = convert.to_torch(model.replace(model_state=state)), net.state_dict()
    assert {*ours} == {name for name in theirs if not name.endswith("num_batches_tracked")}
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name].numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


SLOW_GRADIENTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "squeezenet1_1")]


@pytest.mark.parametrize("arch", ["densenet121", "vgg16", "wrn_28_10", *SLOW_GRADIENTS])
def test_gradients_equal_pytorch(arch: str) -> None:
    model, net, x, x_torch = pair(arch, 2)
    weights = np.random.default_rng(3).standard_normal((2, 7)).astype(np.float32)
    (net(x_torch) * torch.from_numpy(weights)).sum().backward()
    grad = jax.jit(jax.grad(lambda params: jnp.sum(model.replace(params=params)(x) * weights)))(model.params)
    ours = convert.to_torch(model.replace(params=grad))
    for name, value in net.named_parameters():
        theirs = value.grad.numpy()
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=2e-4 * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize(
    ("arch", "tensors"),
    [
        ("densenet121", {"features.denseblock3.denselayer24.norm1.weight": (992,), "classifier.bias": (1000,)}),
        ("densenet121", {"features.transition2.conv.weight": (256, 512, 1, 1), "features.norm5.running_var": (1024,)}),
        ("vgg16", {"features.28.weight": (512, 512, 3, 3), "classifier.0.weight": (4096, 25088)}),
        ("vgg16_bn", {"features.40.weight": (512, 512, 3, 3), "features.41.running_mean": (512,)}),
        ("mobilenet_v2", {"features.1.conv.0.0.weight": (32, 1, 3, 3), "features.17.conv.2.weight": (320, 960, 1, 1)}),
        ("mobilenet_v2", {"features.18.1.bias": (1280,), "features.2.conv.0.0.weight": (96, 16, 1, 1)}),
        ("squeezenet1_1", {"features.12.expand3x3.weight": (256, 64, 3, 3), "classifier.1.weight": (1000, 512, 1, 1)}),
        ("wrn_28_10", {"block2.layer.0.convShortcut.weight": (320, 160, 1, 1), "block3.layer.3.bn2.weight": (640,)}),
        ("wide_resnet50_2", {"layer4.2.conv2.weight": (1024, 1024, 3, 3), "layer1.0.downsample.1.bias": (256,)}),
        ("resnet34", {"layer3.5.conv2.weight": (256, 256, 3, 3), "fc.weight": (1000, 512)}),
    ],
)
def test_some_names_as_the_published_files_have_them(arch: str, tensors: dict[str, tuple[int, ...]]) -> None:
    model = models.from_recipe(models.recipe(arch), abstract=True)
    leaves = {**_tree.flatten_paths(model.params), **_tree.flatten_paths(model.model_state.get("batch_stats", {}))}
    ours = dict(convert.layouts.TORCH.tensors({path: leaf.shape for path, leaf in leaves.items()}, ()).values())
    assert tensors.items() <= ours.items()


def test_names_of_others_stand_for_ours() -> None:
    assert models.recipe("tv_resnet34") == models.recipe("resnet34")
    assert models.recipe("resnet20") == models.recipe("cifar_resnet20")
    assert models.aliases("densenet121") == ("tv_densenet121", "densenet121.tv_in1k")
    names = {name for arch in models.names() for name in models.aliases(arch)}
    assert not names & {*models.names()}
    with pytest.raises(ValueError, match=r"unknown network 'resnet21'; did you mean .*resnet20"):
        models.recipe("resnet21")


@pytest.mark.parametrize("arch", ["vgg16", "wrn_28_10"])
def test_dropout_takes_its_keys_from_the_seam(arch: str) -> None:
    fields = CASES[arch].fields if arch == "vgg16" else dict(depth=10, width=1, dropout=0.3)
    recipe = models.recipe(arch, num_classes=7, input_shape=(16, 16, 3), **fields)
    rng = np.random.default_rng(0)
    abstract = models.from_recipe(recipe, abstract=True)  # fresh weights would be compiled, for longer than all else
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), abstract.params)
    state = jax.tree.map(lambda leaf: jnp.asarray(0.5 + rng.random(leaf.shape, np.float32)), abstract.model_state)
    model, x = abstract.replace(params=params, model_state=state), rng.random((2, 16, 16, 3), np.float32)

    @partial(jax.jit, static_argnames="train")
    def apply(rngs: dict | None, train: bool) -> jax.Array:
        return model.apply_fn(model.params, model.model_state, x, train=train, rngs=rngs)[0]

    def logits(seed: int | None, train: bool = True) -> np.ndarray:
        return np.asarray(apply(None if seed is None else {"dropout": jax.random.key(seed)}, train))

    assert not np.allclose(logits(0), logits(1), atol=1e-5)
    np.testing.assert_array_equal(logits(0), logits(0))
    np.testing.assert_allclose(logits(0, train=False), logits(None, train=False), rtol=1e-6)
    if arch == "vgg16":  # without keys train mode drops nothing; no BatchNorm here that would differ
        np.testing.assert_allclose(logits(None), logits(None, train=False), rtol=1e-6)


@pytest.mark.parametrize("sides", [(7, 7), (14, 14), (3, 5), (1, 1), (16, 9)])
def test_adaptive_mean_is_that_of_pytorch(sides: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((2, *sides, 3), np.float32)
    expected = torch.nn.AdaptiveAvgPool2d(7)(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x), 7), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "stride", "pad", "ceil"), [(3, 2, 0, True), (3, 2, 1, False), (2, 2, 0, False)])
@pytest.mark.parametrize("side", [6, 7, 8, 9])
def test_max_pool_is_that_of_pytorch(size: int, stride: int, pad: int, ceil: bool, side: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, side, side + 1, 3)).astype(np.float32)
    pool = torch.nn.MaxPool2d(size, stride, pad, ceil_mode=ceil)
    expected = pool(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), size, stride, pad=pad, ceil=ceil), expected)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (models.recipe("wrn_28_10", depth=27), r"wrn_28_10 cannot be built for \(32, 32, 3\): depth must be 6 n \+ 4"),
        (models.recipe("vit_tiny_cifar", activation="step"), "vit_tiny_cifar cannot be built for .*step"),
        (
            models.recipe("squeezenet1_1", input_shape=(3, 3, 3)),
            "the images are too small: 1x1 are left where 3x3 are pooled",
        ),
    ],
)
def test_arguments_that_make_no_network(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.from_recipe(recipe, abstract=True)
