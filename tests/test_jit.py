"""JiT against its gradient formula and the limits its definition has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _config, loop, testing
from jaxunlearn._types import Batch, Model, ModelSpec, Problem
from jaxunlearn.methods import jit
from tests.tiny import linear, linear_params

SPEC = jit.SPEC
KEY = jax.random.key(0)
OPEN = (-np.inf, np.inf)  # a box that clips nothing


def smooth(params, model_state, x, *, train=False, rngs=None):
    """Two layers with tanh between: curved everywhere."""
    return jnp.tanh(x @ params["a"]) @ params["b"], model_state


def problem(k=4, *, apply_fn=smooth, params=None, box=OPEN, dtype=jnp.float32):
    """A forget set of k rows of 5 features for a network of 3 classes."""
    keys = jax.random.split(jax.random.key(7), 3)
    if params is None:
        params = {"a": jax.random.normal(keys[0], (5, 6), dtype), "b": jax.random.normal(keys[1], (6, 3), dtype)}
    model = Model(
        params=params, model_state={}, apply_fn=apply_fn, spec=ModelSpec(num_classes=3, input_shape=(5,), box=box)
    )
    x = jax.random.uniform(keys[2], (k, 5), dtype)
    return Problem(model=model, forget=Batch.of(x, np.asarray(model(x)).argmax(-1)))


def prepared(given, **changes):
    config = dataclasses.replace(SPEC.Config(), **changes)
    unlearner = SPEC.make(_config.static(config))
    return unlearner, unlearner.prepare(KEY, given, _config.traced(config))


def loss_and_gradient(given, *, key=KEY, rows=None, **changes):
    unlearner, state = prepared(given, **changes)
    rows = state.rows if rows is None else jax.tree.map(lambda leaf: leaf[rows], state.rows)
    loss = lambda params: unlearner.loss(key, given.model.replace(params=params), state, rows)[0]
    return jax.jit(jax.value_and_grad(loss))(given.model.params)


def noise(given, draws):
    """Return the noise of each instance and draw, (draws, k, 5), as the method keys it."""
    one = lambda i, j: jax.random.normal(jax.random.fold_in(jax.random.fold_in(KEY, i), j), (5,), given.forget.x.dtype)
    return jnp.stack([jnp.stack([one(i, j) for i in given.forget.index]) for j in range(draws)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-12)])
def test_the_gradient_is_that_of_the_formula(dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        given = problem(dtype=dtype, box=(0.0, 1.0))
        sigma, draws = 0.3, 3
        value, gradient = loss_and_gradient(given, sigma=sigma, draws=draws)
        sigma = np.float32(sigma)
        x, params = given.forget.x, given.model.params
        jacobian = jax.jacobian(lambda params: smooth(params, {}, x)[0])(params)
        expected, total = jax.tree.map(jnp.zeros_like, params), 0.0
        for n in noise(given, draws):
            there = jnp.clip(x + sigma * n, 0.0, 1.0)
            gap = smooth(params, {}, x)[0] - smooth(params, {}, there)[0]
            scale = np.linalg.norm(gap, axis=1) * np.linalg.norm(x - there, axis=1)
            total += (np.linalg.norm(gap, axis=1) / np.linalg.norm(x - there, axis=1)).sum() / draws
            pull = gap / scale[:, None]
            expected = jax.tree.map(
                lambda e, j, pull=pull: e + jnp.einsum("ic,ic...->...", pull, j) / draws, expected, jacobian
            )
        np.testing.assert_allclose(value, total, rtol=tolerance)
        for name, leaf in gradient.items():
            np.testing.assert_allclose(leaf, expected[name], rtol=20 * tolerance, atol=tolerance)


def test_opposite_noise_does_not_move_a_network_that_is_linear_in_its_input(monkeypatch):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: a.astype(jnp.float64), linear_params(KEY, 5, 3))
        given = problem(apply_fn=linear, params=params, dtype=jnp.float64)
        n = jax.random.normal(KEY, (5,), jnp.float64)
        pulls = []
        for drawn in (n, -n):
            monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype, drawn=drawn: drawn)
            pulls.append(loss_and_gradient(given, sigma=0.5, draws=1)[1])
        largest = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
        assert largest(pulls[0]) > 0.1
        assert largest(jax.tree.map(jnp.add, *pulls)) < 1e-14


def constant(params, model_state, x, *, train=False, rngs=None):
    return jnp.broadcast_to(params["b"][None], (x.shape[0], 3)), model_state


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_pairs_without_a_distance_add_nothing(sigma):
    given = problem(apply_fn=constant, params={"b": jnp.arange(3.0)})
    value, gradient = loss_and_gradient(given, sigma=sigma)
    assert value == 0
    assert not gradient["b"].any()
    value, gradient = loss_and_gradient(problem(), sigma=0.0)
    assert value == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_little_noise_gives_the_slope_along_it():
    with jax.enable_x64(True):
        given = problem(dtype=jnp.float64)
        value, _ = loss_and_gradient(given, sigma=1e-5, draws=4)
        x, params = given.forget.x, given.model.params
        along = lambda n: jax.jvp(lambda x: smooth(params, {}, x)[0], (x,), (n,))[1]
        slopes = [np.linalg.norm(along(n), axis=1) / np.linalg.norm(n, axis=1) for n in noise(given, 4)]
        np.testing.assert_allclose(value, np.sum(slopes) / 4, rtol=1e-4)


def test_a_scaled_network_scales_the_value():
    given = problem()
    larger = given.model.params | {"b": -3 * given.model.params["b"]}
    value, _ = loss_and_gradient(given)
    scaled, _ = loss_and_gradient(dataclasses.replace(given, model=given.model.replace(params=larger)))
    np.testing.assert_allclose(scaled, 3 * value, rtol=1e-5)


def test_with_fixed_bounds_a_batch_is_the_sum_of_its_parts():
    given = problem(box=(0.0, 1.0))
    whole, gradient = loss_and_gradient(given, sigma=0.4)
    parts = [loss_and_gradient(given, sigma=0.4, rows=rows) for rows in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(whole, parts[0][0] + parts[1][0], rtol=1e-5)
    summed = jax.tree.map(jnp.add, parts[0][1], parts[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, summed)
    # as published, the result for an instance depends on its batch
    whole, _ = loss_and_gradient(given, sigma=0.4, bounds="batch")
    parts = [loss_and_gradient(given, sigma=0.4, bounds="batch", rows=rows)[0] for rows in (slice(0, 1), slice(1, 4))]
    assert abs(float(whole - sum(parts))) > 1e-3 * float(whole)


def test_padding_changes_nothing():
    given = testing.tiny_problem(k=5)
    ends = []
    for batch in (2, 3):  # 5 instances: padded to 6 in both, dealt differently
        unlearner, state = prepared(given, forget_batch=batch)
        draws = unlearner.draws(state)
        dealt = [draws.draw(state, t, 0) for t in range(draws.steps_per_pass)]
        ends.append(sum(float(unlearner.loss(KEY, given.model, state, rows)[0]) for rows in dealt))
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_padding_does_not_widen_the_bounds_of_a_batch():
    given = testing.tiny_problem(k=5)
    x = 0.4 + 0.2 * given.forget.x
    x = x.at[0].set(jnp.where(x[0] > 0.5, 1.0, 0.0))  # padding is copies of the first instance
    given = dataclasses.replace(given, forget=given.forget._replace(x=x))
    unlearner, state = prepared(given, forget_batch=3, bounds="batch", sigma=0.5)
    last = unlearner.draws(state).draw(state, 1, 0)
    assert last.forget.weight.tolist() == [1, 1, 0]
    assert float(last.forget.x.max() - last.forget.x[:2].max()) > 0.3
    alone = jax.tree.map(lambda leaf: leaf[:2], last)
    losses = [float(unlearner.loss(KEY, given.model, state, rows)[0]) for rows in (last, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [False, True])
def test_accumulated_gradients_step_by_their_sum(accumulate):
    given = problem(box=(0.0, 1.0))
    unlearner, state = prepared(given, forget_batch=2, accumulate=accumulate, learning_rate=0.01)
    draws = unlearner.draws(state)
    at = [state.model.params]
    gradients = []
    for t in range(2):
        rows = draws.draw(state, t, 0)
        loss = lambda params, rows=rows: unlearner.loss(KEY, given.model.replace(params=params), state, rows)[0]
        gradients.append(jax.grad(loss)(at[-1]))
        state, _ = unlearner.step(KEY, state, rows)
        at.append(state.model.params)
    moved = jax.tree.map(jnp.subtract, at[2], at[1])
    used = jax.tree.map(jnp.add, *gradients) if accumulate else gradients[1]
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, -0.01 * g, rtol=1e-3, atol=1e-6), moved, used)


def dropping(params, model_state, x, *, train=False, rngs=None):
    """A network with dropout on its inputs."""
    if train:
        x = x * 2.0 * jax.random.bernoulli(rngs["dropout"], 0.5, x.shape)
    return smooth(params, model_state, x)


def test_the_published_preset_draws_other_masks_for_the_noisy_images():
    given = problem(apply_fn=dropping)
    quiet, _ = loss_and_gradient(given, sigma=1e-3)
    plain, _ = loss_and_gradient(problem(), sigma=1e-3)
    np.testing.assert_allclose(quiet, plain, rtol=1e-6)
    loud, _ = loss_and_gradient(given, sigma=1e-3, batch_norm="update")
    assert loud > 30 * quiet  # dropout noise over sigma
    config = SPEC.Config.published()
    assert (config.accumulate, config.bounds, config.batch_norm, config.stop) == (True, "batch", "update", "budget")
    result = loop.run(testing.tiny_problem(), method=SPEC, config=config, key=KEY)
    assert result.steps == 1


def test_the_length_of_nothing_has_no_slope():
    value, slope = jax.value_and_grad(lambda v: jit.length(v)[0])(jnp.zeros((1, 4)))
    assert value == 0
    assert not slope.any()
