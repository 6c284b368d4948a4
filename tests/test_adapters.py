"""Linen and NNX modules at the seam: the same numbers as the module itself, in both modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from jaxunlearn import from_linen, from_nnx, normalised
from jaxunlearn._types import ApplyFn, Model

X = np.random.default_rng(0).random((4, 6), np.float32)
IMAGES = np.random.default_rng(1).random((4, 6, 6, 2), np.float32)


class Mlp(nn.Module):
    """Two dense layers with Dropout, switched by ``deterministic``."""

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=deterministic))


class GroupNormNet(nn.Module):
    """No mode, no statistics."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(jnp.mean(x, (1, 2)))


class NormNet(nn.Module):
    """BatchNorm, switched by the argument of one of three names."""

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not training)(x))


class RunningNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
        return nn.Dense(3)(nn.BatchNorm(use_running_average=use_running_average)(x))


def linen(module: nn.Module, x: Any = X, **kwargs: Any) -> tuple[Model, Any]:
    init = {"use_running_average": True} if isinstance(module, RunningNet) else {}
    variables = jax.jit(lambda key: module.init(key, jnp.asarray(x), **init))(jax.random.key(0))
    return from_linen(module, variables, input_shape=x.shape[1:], num_classes=3, **kwargs), variables


def test_modules_satisfy_the_protocol() -> None:
    assert isinstance(linen(Mlp())[0].apply_fn, ApplyFn)


def test_dropout_follows_mode_and_key() -> None:
    model, variables = linen(Mlp())
    assert model.model_state == {}
    np.testing.assert_array_equal(model(X), Mlp().apply(variables, X))

    def train(seed: int) -> Any:
        return model.apply_fn(model.params, {}, X, train=True, rngs={"dropout": jax.random.key(seed)})[0]

    expected = Mlp().apply(variables, X, deterministic=False, rngs={"dropout": jax.random.key(5)})
    np.testing.assert_array_equal(train(5), expected)
    assert not np.array_equal(train(5), train(6))


def test_group_norm_has_one_mode() -> None:
    model, variables = linen(GroupNormNet(), IMAGES)
    logits, state = model.apply_fn(model.params, model.model_state, IMAGES, train=True)
    np.testing.assert_array_equal(logits, GroupNormNet().apply(variables, IMAGES))
    np.testing.assert_array_equal(logits, model(IMAGES))
    assert state == {}


@pytest.mark.parametrize("module", [NormNet(), RunningNet()])
def test_statistics_move_in_train_mode_only(module: nn.Module) -> None:
    model, _ = linen(module)
    logits, state = model.apply_fn(model.params, model.model_state, X)
    assert state is model.model_state
    trained, moved = model.apply_fn(model.params, model.model_state, X, train=True)
    assert not np.allclose(trained, logits)
    assert jax.tree.structure(moved) == jax.tree.structure(model.model_state)
    np.testing.assert_allclose(moved["batch_stats"]["BatchNorm_0"]["mean"], 0.01 * X.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(model.model_state["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(6))


def test_equal_modules_make_equal_functions_and_one_trace() -> None:
    one, two = linen(Mlp(), mean=0.5 * np.ones(6), std=np.ones(6))[0], linen(Mlp(), mean=[0.5] * 6, std=[1] * 6)[0]
    assert one.apply_fn == two.apply_fn
    assert hash(one.apply_fn) == hash(two.apply_fn)
    assert one.spec == two.spec
    assert one.apply_fn != linen(Mlp())[0].apply_fn
    traces = 0

    @jax.jit
    def forward(model: Model, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return model(x)

    forward(one, X)
    forward(two, X)
    assert traces == 1


def test_lists_in_a_module_do_not_keep_it_from_being_hashed() -> None:
    module = nn.Sequential([nn.Dense(4), nn.relu, nn.Sequential([nn.Dense(3)])])
    model, variables = linen(module)
    hash(model.apply_fn)
    np.testing.assert_array_equal(model(X), module.apply(variables, X))


def test_normalisation_happens_inside() -> None:
    mean, std = np.linspace(0.1, 0.6, 6), np.linspace(0.5, 2.0, 6)
    model, variables = linen(Mlp(), mean=mean, std=std)
    expected = Mlp().apply(variables, ((X - mean) / std).astype(np.float32))
    np.testing.assert_allclose(model(X), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.01, 5)), min_size=1, max_size=4), st.integers(0, 99))
def test_normalised_wraps_any_function(channels: list[tuple[float, float]], seed: int) -> None:
    mean, std = zip(*channels, strict=True)

    def echo(params: Any, state: Any, x: Any, *, train: bool = False, rngs: Any = None) -> Any:
        return (x, train, rngs), state

    wrapped = normalised(echo, mean, std)
    x = np.random.default_rng(seed).random((2, 3, len(mean)))
    (seen, train, rngs), state = wrapped({}, "state", jnp.asarray(x, jnp.float32), train=True, rngs={"a": 1})
    np.testing.assert_allclose(seen, (x - np.array(mean)) / np.array(std), rtol=1e-4, atol=1e-4)
    assert (train, rngs, state) == (True, {"a": 1}, "state")
    assert wrapped == normalised(echo, np.array(mean), np.array(std))
    assert hash(wrapped) == hash(normalised(echo, mean, std))


def test_taps_name_the_inputs_and_outputs_of_layers() -> None:
    model, variables = linen(Mlp(), head=("Dense_1",))
    taps = jax.jit(model.spec.taps_fn)(model.params, model.model_state, X)
    hidden = X @ variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(taps["Dense_0"], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(taps["Dense_1:in"], np.maximum(taps["Dense_0"], 0))
    np.testing.assert_allclose(taps["/".join(model.spec.head)], model(X), rtol=1e-5)
    np.testing.assert_array_equal(taps["Dense_0:in"], X)


def test_taps_number_the_calls_of_a_shared_layer() -> None:
    class Twice(nn.Module):
        def setup(self) -> None:
            self.layer = nn.Dense(3)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layer(nn.relu(self.layer(x)))

    x = X[:, :3]
    model, _ = linen(Twice(), x)
    taps = model.spec.taps_fn(model.params, {}, x)
    assert sorted(taps) == ["layer", "layer#1", "layer#1:in", "layer:in"]
    np.testing.assert_array_equal(taps["layer#1"], model(x))


def test_init_gives_the_structure_of_the_variables() -> None:
    model, variables = linen(NormNet())
    params, state = model.spec.init_fn(jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(dict(variables["params"]))
    assert jax.tree.structure(state) == jax.tree.structure(model.model_state)
    many = jax.vmap(model.spec.init_fn)(jax.random.split(jax.random.key(1), 2))[0]["Dense_0"]["kernel"]
    assert many.shape == (2, 6, 3)
    assert not np.array_equal(many[0], many[1])


def test_vmap_over_weights_and_gradients() -> None:
    model, _ = linen(NormNet())
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), (model.params, model.model_state))
    logits = jax.vmap(lambda p, s: model.apply_fn(p, s, X)[0])(*two)
    np.testing.assert_allclose(logits[0], model(X), rtol=1e-5)
    gradients = jax.vmap(jax.grad(lambda x: model(x[None]).sum()))(jnp.asarray(X))
    assert gradients.shape == X.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_classes=4), r"logits of 2 inputs must have shape \(2, 4\) \(num_classes=4\); got \(2, 3\)"),
        (dict(num_classes=0), "num_classes must be at least 1; got 0"),
        (dict(input_shape=(5,)), r"cannot be applied to inputs of shape \(batch, 5\)"),
        (dict(input_shape=(2, 6)), r"must have shape \(2, 3\) .* got \(2, 2, 3\)"),
        (dict(input_shape=()), "input_shape must be sizes of at least 1"),
        (dict(box=(1.0, 0.0)), r"box must be \(low, high\) with low < high"),
        (dict(mean=[0.0] * 6), "mean and std go together; got mean=.*, std=None"),
        (dict(mean=[0.0] * 6, std=[1.0] * 5), "mean and std must have one length; got 6 and 5"),
        (dict(mean=[0.0], std=[1.0]), "mean must have one value for each of the 6 channels"),
        (dict(mean=[0.0] * 6, std=[1.0] * 5 + [0.0]), "std must be above 0"),
        (dict(mean=[0.0] * 6, std=[1.0] * 5 + [-1.0]), "std must be above 0"),
        (dict(mean=[0.0] * 5 + [np.nan], std=[1.0] * 6), "mean must be finite"),
        (
            dict(head=("Dense_7",)),
            r"head must be the path of a layer in params; got \('Dense_7',\), there are Dense_0, D",
        ),
        (dict(variables={"batch_stats": {}}), r"variables must hold 'params'; got collections \['batch_stats'\]"),
    ],
)
def test_linen_errors(changes: dict[str, Any], message: str) -> None:
    module = Mlp()
    variables = module.init(jax.random.key(0), X)
    arguments = dict(variables=variables, input_shape=(6,), num_classes=3) | changes
    with pytest.raises(ValueError, match=message):
        from_linen(module, **arguments)


def test_linen_type_errors() -> None:
    with pytest.raises(TypeError, match=r"module must be a flax.linen.Module; got function"):
        from_linen(lambda x: x, {"params": {}}, input_shape=(6,), num_classes=3)

    class Unhashable(nn.Module):
        weights: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(x * self.weights)

    module = Unhashable(np.ones(6, np.float32))
    with pytest.raises(TypeError, match="Unhashable cannot be hashed: give it fields that can"):
        from_linen(module, module.init(jax.random.key(0), X), input_shape=(6,), num_classes=3)


def test_normalised_errors() -> None:
    with pytest.raises(ValueError, match="mean and std must both be given; got None"):
        normalised(lambda *a: a, None, None)
    with pytest.raises(ValueError, match="std must be above 0"):
        normalised(lambda *a: a, (0.0,), (0.0,))


# NNX ------------------------------------------------------------------------


class Cnn(nnx.Module):
    """Convolutions in a list, BatchNorm, Dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.Conv(4, 4, (3, 3), rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.dropout(jnp.mean(self.norm(x), (1, 2))))


@pytest.fixture(params=[True, False], ids=["graph", "tree"])
def graph_mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both defaults of NNX: objects as a graph, and (soon) as a tree."""
    before = flax.config.nnx_graph_mode
    flax.config.update("nnx_graph_mode", request.param)
    yield request.param
    flax.config.update("nnx_graph_mode", before)


def cnn(seed: int = 0) -> tuple[Model, Cnn]:
    module = Cnn(nnx.Rngs(seed))
    return from_nnx(module, input_shape=(6, 6, 2), num_classes=3, head=("head",)), module


def test_nnx_equals_the_module_in_eval_mode(graph_mode: bool) -> None:
    model, module = cnn()
    assert sorted(model.params["layers"]) == ["0", "1"]
    assert sorted(model.model_state) == ["norm"]  # no random state
    logits, state = model.apply_fn(model.params, model.model_state, IMAGES)
    assert state is model.model_state
    assert not module.dropout.deterministic  # the user's module is left as it was
    module.eval()
    np.testing.assert_allclose(logits, module(IMAGES), rtol=1e-5, atol=1e-6)


def test_nnx_train_mode_moves_statistics_inside_jit_and_grad(graph_mode: bool) -> None:
    model, module = cnn()
    key = jax.random.key(3)

    @jax.jit
    def loss(params: Any, state: Any) -> Any:
        logits, state = model.apply_fn(params, state, IMAGES, train=True, rngs={"dropout": key})
        return jnp.sum(logits**2), (logits, state)

    gradient, (logits, state) = jax.grad(loss, has_aux=True)(model.params, model.model_state)
    assert jax.tree.structure(gradient) == jax.tree.structure(model.params)
    module.train()
    module(IMAGES)
    np.testing.assert_allclose(state["norm"]["mean"], module.norm.mean[...], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["norm"]["var"], module.norm.var[...], rtol=1e-5)
    np.testing.assert_array_equal(model.model_state["norm"]["mean"], np.zeros(4))
    again = model.apply_fn(model.params, model.model_state, IMAGES, train=True, rngs={"dropout": key})[0]
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)
    other = model.apply_fn(model.params, model.model_state, IMAGES, train=True, rngs={"dropout": jax.random.key(4)})[0]
    assert not np.allclose(other, logits)


def test_nnx_dropout_drops_the_stated_share(graph_mode: bool) -> None:
    module = nnx.Sequential(nnx.Dropout(0.25, rngs=nnx.Rngs(0)), nnx.Linear(6, 6, use_bias=False, rngs=nnx.Rngs(1)))
    model = from_nnx(module, input_shape=(6,), num_classes=6)
    params = jax.tree.map(lambda leaf: jnp.eye(6), model.params)
    x = jnp.ones((2000, 6))
    out = model.apply_fn(params, {}, x, train=True, rngs={"default": jax.random.key(0)})[0]
    np.testing.assert_allclose(np.mean(np.asarray(out) == 0), 0.25, atol=0.02)
    np.testing.assert_array_equal(model.apply_fn(params, {}, x)[0], x)


def test_nnx_equal_graphs_make_equal_functions(graph_mode: bool) -> None:
    one, two = cnn(0)[0], cnn(1)[0]
    assert one.apply_fn == two.apply_fn
    assert hash(one.apply_fn) == hash(two.apply_fn)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert not np.array_equal(one(IMAGES), two(IMAGES))
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    logits = jax.vmap(lambda m: m(IMAGES))(stacked)
    np.testing.assert_allclose(logits[1], two(IMAGES), rtol=1e-4, atol=1e-5)


def test_nnx_takes_a_mode_argument_and_normalisation() -> None:
    class Switched(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
            return self.linear(x) * (2.0 if training else 1.0)

    module = Switched()
    model = from_nnx(module, input_shape=(6,), num_classes=3, mean=[0.5] * 6, std=[2.0] * 6)
    expected = module((X - 0.5) / 2, training=False)
    np.testing.assert_allclose(model(X), expected, rtol=1e-5)
    np.testing.assert_allclose(model.apply_fn(model.params, {}, X, train=True)[0], 2 * expected, rtol=1e-5)


def test_nnx_errors() -> None:
    model, module = cnn()
    with pytest.raises(
        ValueError, match=r"random layers in train mode need rngs with 'dropout' or 'default'; got None"
    ):
        model.apply_fn(model.params, model.model_state, IMAGES, train=True)
    with pytest.raises(ValueError, match=r"need rngs with .*; got \['params'\]"):
        model.apply_fn(model.params, model.model_state, IMAGES, train=True, rngs={"params": jax.random.key(0)})
    with pytest.raises(TypeError, match=r"model must be a flax.nnx.Module; got Mlp"):
        from_nnx(Mlp(), input_shape=(6,), num_classes=3)
    with pytest.raises(ValueError, match=r"must have shape \(2, 4\) \(num_classes=4\)"):
        from_nnx(module, input_shape=(6, 6, 2), num_classes=4)
    with pytest.raises(ValueError, match=r"cannot be applied to inputs of shape \(batch, 6, 6, 3\)"):
        from_nnx(module, input_shape=(6, 6, 3), num_classes=3)
    with pytest.raises(ValueError, match="head must be the path of a layer"):
        from_nnx(module, input_shape=(6, 6, 2), num_classes=3, head=("fc",))
    with pytest.raises(ValueError, match=r"model must have flax.nnx.Param variables; Dropout has none"):
        from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), input_shape=(6,), num_classes=6)
