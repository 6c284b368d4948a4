"""MAS against closed forms and PyTorch, its published variants, and the holding weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn import _progress
from jaxunlearn.importance import holding_weight, mas, normalise
from tests.tiny import Counting, convolutional, convolutional_variables, linear, linear_params, torch_convolutional

KEY = jax.random.key(3)
LINEAR = linear_params(KEY, 5, 3)
X = jax.random.normal(jax.random.key(4), (20, 5))


def closed_form(x):
    """Return logits z, their norms and the rows z / ||z|| in float64."""
    w, b, x = (np.asarray(a, np.float64) for a in (LINEAR["w"], LINEAR["b"], x))
    z = x @ w + b
    return x, z, z / np.linalg.norm(z, axis=1, keepdims=True)


def conv_case(n):
    params, state = convolutional_variables(jax.random.key(0))
    return params, state, jax.random.uniform(jax.random.key(1), (n, 6, 6, 2))


# --- closed forms (self-check 3 of l2ul) --------------------------------------------------------


def test_the_default_is_the_mean_of_absolute_gradients():
    x, z, unit = closed_form(X)
    omega = mas(linear)(LINEAR, {}, X)
    np.testing.assert_allclose(omega["w"], np.abs(x[:, :, None] * unit[:, None]).mean(0), rtol=1e-5)
    np.testing.assert_allclose(omega["b"], np.abs(unit).mean(0), rtol=1e-5)
    omega = mas(linear, squared=True)(LINEAR, {}, X)
    np.testing.assert_allclose(omega["w"], np.abs(2 * x[:, :, None] * z[:, None]).mean(0), rtol=1e-5)


def test_batch_mean_is_the_absolute_gradient_of_the_mean_norm():
    x, _, unit = closed_form(X)
    omega = mas(linear, variant="batch_mean")(LINEAR, {}, X)
    np.testing.assert_allclose(omega["w"], np.abs(x.T @ unit / 20), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(omega["b"], np.abs(unit.mean(0)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loop", ["host", "device"])
@pytest.mark.parametrize("train", [False, True])
def test_two_batches_clean_and_released(loop, train):
    _, _, unit = closed_form(X)
    g1, g2 = unit[:12].mean(0), unit[12:].mean(0)
    run = lambda accumulate: mas(
        linear, variant="batch_mean", batch_size=12, accumulate=accumulate, train=train, loop=loop
    )(LINEAR, {}, X)["b"]
    np.testing.assert_allclose(20 * run("clean"), 12 * np.abs(g1) + 8 * np.abs(g2), rtol=1e-5)
    np.testing.assert_allclose(20 * run("released"), 12 * np.abs(g1) + 8 * np.abs(g1 + g2), rtol=1e-5)


def test_the_gradient_at_zero_logits_is_zero():
    nothing = jax.tree.map(jnp.zeros_like, LINEAR)
    for variant in ("per_example", "batch_mean"):
        omega = mas(linear, variant=variant)(nothing, {}, X)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(omega))
    one_zero = X.at[0].set(0)  # with b = 0, one instance of twenty has zero logits
    params = LINEAR | {"b": jnp.zeros(3)}
    rest = mas(linear)(params, {}, one_zero[1:])
    for name, leaf in mas(linear)(params, {}, one_zero).items():
        np.testing.assert_allclose(20 * leaf, 19 * rest[name], rtol=1e-5)


# --- parity with PyTorch ------------------------------------------------------------------------


def torch_gradient(forward, leaves, x, *, train=False):
    """Return the gradient of the mean logit norm of a batch by parameter."""
    import torch

    norm = forward(torch.tensor(np.array(x)), train=train).norm(dim=1).mean()
    return {name: g.numpy() for name, g in zip(leaves, torch.autograd.grad(norm, list(leaves.values())), strict=True)}


def test_per_example_agrees_with_pytorch():
    params, state, x = conv_case(9)
    forward, leaves = torch_convolutional(params, state)
    rows = [torch_gradient(forward, leaves, x[i : i + 1]) for i in range(9)]
    for name, leaf in mas(convolutional, microbatch_size=4)(params, state, x).items():
        np.testing.assert_allclose(leaf, np.mean([np.abs(row[name]) for row in rows], 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_released_batch_mean_agrees_with_pytorch(train):
    params, state, x = conv_case(11)  # batches of 8 and 3: the last is not padded in train mode
    forward, leaves = torch_convolutional(params, state)
    first, second = (torch_gradient(forward, leaves, part, train=train) for part in (x[:8], x[8:]))
    omega = mas(convolutional, variant="batch_mean", accumulate="released", batch_size=8, train=train)(params, state, x)
    for name, leaf in omega.items():
        expected = (8 * np.abs(first[name]) + 3 * np.abs(first[name] + second[name])) / 11
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)


def test_train_mode_differs_and_throws_the_moved_statistics_away():
    params, state, x = conv_case(8)
    before = jax.tree.map(np.array, state)
    in_train = mas(convolutional, variant="batch_mean", train=True)(params, state, x)
    in_eval = mas(convolutional, variant="batch_mean")(params, state, x)
    assert not np.allclose(in_train["conv1"], in_eval["conv1"], rtol=0.05)
    jax.tree.map(np.testing.assert_array_equal, before, state)


# --- weights, microbatches, loops ---------------------------------------------------------------


@given(n=st.integers(1, 20), padding=st.integers(0, 7), size=st.integers(1, 24))
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("variant", ["per_example", "batch_mean"])
def test_microbatches_and_padding_change_nothing(variant, n, padding, size):
    junk = jnp.nan if variant == "per_example" else 9.0  # there rows are dropped, here they get weight 0
    x = jnp.concatenate([X[:n], jnp.full((padding, 5), junk)])
    weight = jnp.concatenate([jnp.ones(n), jnp.zeros(padding)])
    omega = mas(linear, variant=variant, microbatch_size=size)(LINEAR, {}, x, weight=weight)
    expected = mas(linear, variant=variant)(LINEAR, {}, X[:n])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), omega, expected)


def test_weights_are_the_weights_of_a_mean():
    twice = jnp.concatenate([X, X[:4]])
    weight = jnp.ones(20).at[:4].set(2.0)
    expected, omega = mas(linear)(LINEAR, {}, twice), mas(linear)(LINEAR, {}, X, weight=weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), omega, expected)
    omega = mas(linear)(LINEAR, {}, X, weight=7 * weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), omega, expected)
    integers = mas(linear)(LINEAR, {}, X, weight=weight.astype(int))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), integers, expected)


@pytest.mark.parametrize("variant", ["per_example", "batch_mean"])
def test_host_and_device_loops_agree(variant):
    params, state, x = conv_case(16)
    run = lambda loop: mas(convolutional, variant=variant, microbatch_size=8, batch_size=8, loop=loop)
    host = run("host")(params, state, x)
    for other in (run("device")(params, state, x), jax.jit(run("auto"))(params, state, x)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), host, other)


@pytest.mark.parametrize("microbatch_size", [8, 16])
@pytest.mark.parametrize("jit", [False, True])
def test_instances_sharded_over_eight_devices_give_the_same(jit, microbatch_size):
    # Not to be taken for granted: sharded per-example convolution gradients come out wrong, see `_repeat.microbatch`.
    params, state, x = conv_case(16)
    run = mas(pointwise_and_convolutional, microbatch_size=microbatch_size)
    params = params | {"pointwise": jnp.array([[1.0, 0.5], [-0.3, 1.0]])[None, None]}
    single = run(params, state, x)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = (jax.jit(run) if jit else run)(params, state, jax.device_put(x, NamedSharding(mesh, P("batch"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), single, sharded)


def pointwise_and_convolutional(params, model_state, x, *, train=False, rngs=None):
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["pointwise"], (1, 1), "VALID", dimension_numbers=dims)
    return convolutional(params, model_state, x, train=train)


def test_vmap_over_models_equals_one_by_one():
    models = jax.vmap(lambda k: linear_params(k, 5, 3))(jax.random.split(KEY, 3))
    together = jax.vmap(lambda p, x: mas(linear)(p, {}, x), in_axes=(0, None))(models, X)
    for i in range(3):
        alone = mas(linear)(jax.tree.map(lambda a: a[i], models), {}, X)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-5), together, alone)


def test_another_number_of_instances_does_not_retrace():
    network = Counting(linear)
    for n in (16, 17, 20, 9):
        mas(network, microbatch_size=16, loop="host")(LINEAR, {}, X[:n])
    assert network.traces == 1
    assert mas(network) == mas(network)
    assert hash(mas(network)) == hash(mas(network))


def test_measuring_tells_how_far_it_is():
    seen = []
    with _progress.listening(lambda *told: seen.append(told)):
        mas(linear, microbatch_size=8, loop="host")(LINEAR, {}, X)
    assert seen == [("importance", 1, 3), ("importance", 2, 3), ("importance", 3, 3)]


# --- normalisation ------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 2**60, width=32, allow_subnormal=False), min_size=2, max_size=12).filter(
        lambda o: len(set(o)) > 1
    )
)
@settings(max_examples=40, deadline=None)
def test_a_tensor_is_scaled_to_zero_and_one(values):
    o = jnp.array(values, jnp.float32)
    scaled = np.asarray(normalise({"a": o})["a"])
    assert scaled.min() == 0
    if scaled.max() > 0:
        exact = np.asarray(o, np.float64)
        np.testing.assert_allclose(scaled, (exact - exact.min()) / (exact.max() - exact.min()), atol=1e-6)
    else:
        assert max(values) - min(values) < np.finfo(np.float32).tiny
    np.testing.assert_array_equal(holding_weight({"a": o})["a"], 1 - scaled)


@pytest.mark.parametrize(
    "tensor", [np.full((2, 2), 3.0), np.zeros(3), np.float32(2), [1.0, np.nan], [0.0, np.inf], [0.0, 1e-40], []]
)
def test_a_tensor_without_order_is_held_everywhere(tensor):
    o = {"odd": jnp.array(tensor, jnp.float32), "even": jnp.array([1.0, 3.0])}
    held = holding_weight(o)
    np.testing.assert_array_equal(held["odd"], np.ones(np.shape(tensor)))
    assert held["even"].tolist() == [1.0, 0.0]  # tensor by tensor
    np.testing.assert_array_equal(jax.vmap(holding_weight)({"a": jnp.ones((2, 3))})["a"], np.ones((2, 3)))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(variant="sum"), "variant must be one of 'per_example', 'batch_mean'; got 'sum'"),
        (dict(accumulate="dirty"), "accumulate must be one of 'clean', 'released'; got 'dirty'"),
        (dict(loop="gpu"), "loop must be one of 'auto', 'host', 'device'; got 'gpu'"),
        (dict(microbatch_size=0), "microbatch_size must be at least 1; got 0"),
        (dict(batch_size=0), "batch_size must be at least 1; got 0"),
        (dict(accumulate="released"), "accumulate='released' needs variant='batch_mean'; got variant='per_example'"),
        (dict(train=True), "train=True needs variant='batch_mean'; got variant='per_example'"),
    ],
)
def test_errors_of_the_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        mas(linear, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(x=X[:0]), "no rows"),
        (
            dict(x=X, weight=jnp.ones(3)),
            r"the importance's arguments must have fields of one length; got \{'x': 20, 'weight': 3\}",
        ),
        (dict(x=X, weight=jnp.zeros(20)), "weight must not be all zero: there is no instance"),
        (dict(x=X, weight=jnp.ones(20).at[2].set(-1)), "weight must be at least 0; got"),
    ],
)
def test_errors_of_a_call(arguments, message):
    x, weight = arguments["x"], arguments.get("weight")
    with pytest.raises(ValueError, match=message):
        mas(linear)(LINEAR, {}, x, weight=weight)


def test_train_mode_refuses_padding():
    with pytest.raises(ValueError, match="weight must have no zeros with train=True: padding would enter the batch"):
        mas(linear, variant="batch_mean", train=True)(LINEAR, {}, X, weight=jnp.ones(20).at[3].set(0))
