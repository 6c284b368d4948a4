"""The Fisher information against closed forms, and PBU against its own gradient and stationary point."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn import _config, loop, losses, testing, transforms
from jaxunlearn._types import Batch, Model, ModelSpec, Problem
from jaxunlearn.importance import fisher
from jaxunlearn.methods import pbu
from tests.tiny import Counting, convolutional, convolutional_variables, linear, linear_params, torch_convolutional

SPEC = pbu.SPEC
KEY = jax.random.key(0)
LINEAR = linear_params(jax.random.key(3), 5, 3)
X = jax.random.normal(jax.random.key(4), (20, 5))


def conv_case(n):
    params, state = convolutional_variables(jax.random.key(0))
    return params, state, jax.random.uniform(jax.random.key(1), (n, 6, 6, 2))


def close(a, b, rtol=1e-5, atol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


# --- the Fisher information ---------------------------------------------------------------------


def test_of_a_linear_network_it_is_p_times_one_less_p():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: a.astype(jnp.float64), LINEAR)
        x = X.astype(jnp.float64)
        p = np.asarray(jax.nn.softmax(x @ params["w"] + params["b"][None]))
        spread = p * (1 - p)
        found = fisher(linear)(params, {}, x)
        np.testing.assert_allclose(found["w"], np.einsum("nj,nc->jc", np.asarray(x) ** 2, spread) / 20, rtol=1e-12)
        np.testing.assert_allclose(found["b"], spread.mean(0), rtol=1e-12)


def test_it_agrees_with_pytorch():
    import torch

    params, state, x = conv_case(3)
    forward, leaves = torch_convolutional(params, state)
    expected = {name: 0.0 for name in leaves}
    for i in range(3):
        log_p = torch.log_softmax(forward(torch.tensor(np.array(x[i : i + 1]))), 1)[0]
        for c in range(4):
            gradients = torch.autograd.grad(log_p[c], list(leaves.values()), retain_graph=True)
            for name, g in zip(leaves, gradients, strict=True):
                expected[name] = expected[name] + (log_p[c].exp() * g**2).detach().numpy() / 3
    for name, leaf in fisher(convolutional, microbatch_size=5)(params, state, x).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-7)
        assert (leaf >= 0).all()


@pytest.mark.parametrize("size", [1, 3, 4, 9, 64])  # of four classes: one at a time, two, all; all of two, all of all
def test_blocks_of_classes_are_the_sum_over_pairs(size):
    params, state, x = conv_case(5)

    def log_p(params, x, c):
        return jax.nn.log_softmax(convolutional(params, state, x[None])[0][0])[c]

    def of_pair(x, c):
        value, g = jax.value_and_grad(log_p)(params, x, c)
        return jax.tree.map(lambda g: jnp.exp(value) * g * g / 5, g)

    pairs = jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(x, jnp.arange(4))
    expected = jax.tree.map(lambda f: f.sum((0, 1)), pairs)
    close(fisher(convolutional, microbatch_size=size)(params, state, x), expected, rtol=1e-5, atol=1e-9)


def test_a_last_block_may_have_fewer_classes():
    params = linear_params(jax.random.key(5), 5, 7)  # in blocks of three, three and one
    close(fisher(linear, microbatch_size=3)(params, {}, X), fisher(linear)(params, {}, X))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_microbatches_and_padding_change_nothing(size):
    x = jnp.concatenate([X[:6], jnp.full((3, 5), jnp.nan)])
    weight = jnp.array([1.0] * 6 + [0.0] * 3)
    close(fisher(linear, microbatch_size=size)(LINEAR, {}, x, weight=weight), fisher(linear)(LINEAR, {}, X[:6]))
    twice = fisher(linear)(LINEAR, {}, jnp.concatenate([X, X[:4]]))
    close(fisher(linear, microbatch_size=size)(LINEAR, {}, X, weight=jnp.ones(20).at[:4].set(2.0)), twice)


def test_loops_lanes_and_shards_agree():
    params, state, x = conv_case(8)
    host = fisher(convolutional, microbatch_size=8, loop="host")(params, state, x)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, P("batch")))
    close(host, jax.jit(fisher(convolutional, microbatch_size=8))(params, state, spread), rtol=1e-4)
    models = jax.vmap(lambda k: linear_params(k, 5, 3))(jax.random.split(KEY, 2))
    together = jax.vmap(lambda p: fisher(linear)(p, {}, X))(models)
    alone = fisher(linear)(jax.tree.map(lambda a: a[1], models), {}, X)
    close(jax.tree.map(lambda a: a[1], together), alone)


def test_another_number_of_instances_does_not_retrace():
    network = Counting(linear)
    run = fisher(network, loop="host")
    run(LINEAR, {}, X[:16])
    before = network.traces
    run(LINEAR, {}, X[:16] + 1)
    assert network.traces == before
    assert run == fisher(network, loop="host")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fisher(linear, loop="gpu"), "loop must be one of 'auto', 'host', 'device'; got 'gpu'"),
        (lambda: fisher(linear, microbatch_size=0), "microbatch_size must be at least 1; got 0"),
        (lambda: fisher(linear)(LINEAR, {}, X[:0]), "no rows"),
        (lambda: fisher(linear)(LINEAR, {}, X, weight=jnp.zeros(20)), "weight must not be all zero"),
        (lambda: fisher(linear)(LINEAR, {}, X, weight=jnp.ones(3)), r"one length; got \{'x': 20, 'weight': 3\}"),
        (lambda: fisher(linear)(LINEAR, {}, X, weight=-jnp.ones(20)), "weight must be at least 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- PBU ----------------------------------------------------------------------------------------


def linear_problem(k=6, goal="misclassify"):
    spec = ModelSpec(num_classes=3, input_shape=(5,), box=(-10.0, 10.0))
    model = Model(params=LINEAR, model_state={}, apply_fn=linear, spec=spec)
    y = np.asarray(model(X[:k])).argmax(-1)
    return Problem(model=model, forget=Batch.of(X[:k], y, (y + 1) % 3 if goal == "relabel" else None), goal=goal)


def prepared(problem, **changes):
    config = dataclasses.replace(SPEC.Config(), **changes)
    unlearner = SPEC.make(_config.static(config))
    return unlearner, unlearner.prepare(KEY, problem, _config.traced(config))


def with_penalties(state, gradient, params):
    """Return a gradient of the loss after the optimiser's first stage, which adds that of the penalties."""
    penalty = transforms.masked_regularization(None, {}, 2.0)
    return penalty.update(gradient, state.opt_state[0], params)[0]


def whole_gradient(unlearner, state, params):
    loss = lambda p: unlearner.loss(KEY, state.model.replace(params=p), state, state.rows)[0]
    return with_penalties(state, jax.grad(loss)(params), params)


def test_the_gradient_is_that_of_the_written_objective():
    problem = linear_problem()
    alpha, beta, gamma = 1.5, 0.7, 0.3
    unlearner, state = prepared(problem, alpha=alpha, beta=beta, gamma=gamma)
    information = fisher(linear)(LINEAR, {}, problem.forget.x)

    def objective(params):
        ce = losses.cross_entropy(linear(params, {}, problem.forget.x)[0], problem.forget.y)
        far = jax.tree.map(lambda p, a: (p - a) ** 2, params, LINEAR)
        held = jax.tree.map(lambda f, d: jnp.sum(beta * f * d + gamma * d), information, far)
        return -alpha * jnp.mean(ce) + sum(jax.tree.leaves(held))

    elsewhere = jax.tree.map(lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size, dtype=a.dtype).reshape(a.shape)), LINEAR)
    close(whole_gradient(unlearner, state, elsewhere), jax.grad(objective)(elsewhere), rtol=1e-4, atol=1e-6)
    ascent = jax.grad(
        lambda p: -alpha * jnp.mean(losses.cross_entropy(linear(p, {}, problem.forget.x)[0], problem.forget.y))
    )(LINEAR)
    close(whole_gradient(unlearner, state, LINEAR), ascent, rtol=1e-5)  # at the start both penalties are flat


def test_the_stationary_point_of_a_linear_forget_loss():
    alpha, beta, gamma = 2.0, 3.0, 0.5
    _, state = prepared(linear_problem(), alpha=alpha, beta=beta, gamma=gamma)
    information = fisher(linear)(LINEAR, {}, linear_problem().forget.x)
    g = jax.tree.map(jnp.cos, LINEAR)  # of a cross-entropy that is a plane
    there = jax.tree.map(lambda a, g, f: a + alpha * g / (2 * (beta * f + gamma)), LINEAR, g, information)
    slope = with_penalties(state, jax.tree.map(lambda g: -alpha * g, g), there)
    close(slope, jax.tree.map(jnp.zeros_like, LINEAR), atol=1e-5)


def run(problem, **changes):
    config = dataclasses.replace(SPEC.Config(), **changes)
    return loop.run(problem, method=SPEC, config=config, key=KEY)


def test_strong_penalties_hold_the_weights():
    problem = linear_problem()
    free = dict(learning_rate=1e-3, max_passes=20, stop="budget")
    distance = lambda result: float(optax.tree.norm(jax.tree.map(jnp.subtract, result.model.params, LINEAR)))
    loose = distance(run(problem, beta=0.0, gamma=0.0, **free))
    assert distance(run(problem, beta=0.0, gamma=1e6, **free)) < 0.2 * loose
    assert distance(run(problem, beta=1e7, gamma=0.0, **free)) < 0.2 * loose
    assert distance(run(problem, alpha=0.0, **free)) == 0.0


def test_without_penalties_it_is_ascent_by_adam():
    problem = linear_problem()
    ours = run(problem, alpha=1.0, beta=0.0, gamma=0.0, learning_rate=1e-2, max_passes=5, stop="budget").model.params
    adam, params = optax.adam(1e-2), LINEAR
    state = adam.init(params)
    ce = lambda p: -jnp.mean(losses.cross_entropy(linear(p, {}, problem.forget.x)[0], problem.forget.y))
    for _ in range(5):
        updates, state = adam.update(jax.grad(ce)(params), state)
        params = optax.apply_updates(params, updates)
    close(ours, params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("goal", ["misclassify", "relabel"])
def test_it_forgets_by_the_bounded_loss(goal):
    problem = testing.tiny_problem(goal=goal)
    result = run(problem, learning_rate=3e-2, gamma=1e-3, beta=1e-3, forget_loss="margin")
    assert result.stop_reason == "forgotten"
    assert result.forgotten.all()


def test_the_published_preset_moves_statistics_and_takes_every_pass():
    config = SPEC.Config.published()
    assert (config.alpha, config.beta, config.gamma) == (721.0, 90.0, 4001.0)
    problem = testing.tiny_problem()
    result = loop.run(problem, method=SPEC, config=config, key=KEY)
    assert result.steps == 5
    assert not np.array_equal(result.model.model_state["norm"]["mean"], problem.model.model_state["norm"]["mean"])
