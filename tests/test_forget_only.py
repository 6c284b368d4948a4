"""The forget-only baselines against closed forms, autodiff and PyTorch."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _config, loop, testing
from jaxunlearn._types import Batch, Model, ModelSpec, Problem
from jaxunlearn.methods import delete
from tests.tiny import convolutional, convolutional_variables, linear, linear_params, torch_convolutional

KEY = jax.random.key(0)


def prepared(spec, problem, **changes):
    """Return the unlearner and its starting state."""
    config = dataclasses.replace(spec.Config(), **changes)
    unlearner = spec.make(_config.static(config))
    return unlearner, unlearner.prepare(KEY, problem, _config.traced(config))


def loss_and_gradient(unlearner, state, key=KEY):
    """Return value and gradient of the objective on the whole forget set at the weights of the state."""
    loss = lambda params: unlearner.loss(key, state.model.replace(params=params), state, state.rows)[0]
    return jax.jit(jax.value_and_grad(loss))(state.model.params)


def linear_problem(seed=0, *, k=6, features=4, classes=3, dtype=jnp.float32, scale=1.0, box=(0.0, 1.0)):
    """z = W x + b on k instances that it gets right."""
    params = jax.tree.map(lambda a: (scale * a).astype(dtype), linear_params(jax.random.key(seed), features, classes))
    x = jax.random.uniform(jax.random.key(seed + 1), (k, features), dtype)
    spec = ModelSpec(num_classes=classes, input_shape=(features,), box=box)
    model = Model(params=params, model_state={}, apply_fn=linear, spec=spec)
    return Problem(model=model, forget=Batch.of(x, np.asarray(model(x)).argmax(-1)))


def conv_problem(k=6):
    params, model_state = convolutional_variables(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (k, 6, 6, 2))
    spec = ModelSpec(num_classes=4, input_shape=(6, 6, 2))
    model = Model(params=params, model_state=model_state, apply_fn=convolutional, spec=spec)
    return Problem(model=model, forget=Batch.of(x, np.arange(k) % 4))


def torch_problem(problem):
    """Return (forward, leaf tensors, x, y) of a problem in PyTorch."""
    import torch

    forward, leaves = torch_convolutional(problem.model.params, problem.model.model_state)
    return forward, leaves, torch.tensor(np.array(problem.forget.x)), torch.tensor(np.array(problem.forget.y)).long()


def assert_same_gradient(loss, leaves, gradient, rtol=2e-4):
    import torch

    theirs = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for name, g in zip(leaves, theirs, strict=True):
        want = np.zeros(gradient[name].shape) if g is None else g.numpy()
        np.testing.assert_allclose(gradient[name], want, rtol=rtol, atol=1e-5, err_msg=name)


# --- the engine ---------------------------------------------------------------------------------


def test_batches_are_consecutive_and_padding_changes_nothing():
    problem = testing.tiny_problem(k=7)
    unlearner, state = prepared(delete.SPEC, problem, forget_batch=3)
    draws = unlearner.draws(state)
    assert draws.steps_per_pass == 3
    assert draws.period == (0, 0, 0)
    seen = [draws.draw(state, t, 0).forget for t in range(4)]
    assert [b.index.tolist() for b in seen] == [[0, 1, 2], [3, 4, 5], [6, 0, 0], [0, 1, 2]]
    assert seen[2].weight.tolist() == [1, 0, 0]
    last = draws.draw(state, 2, 0)
    loss = unlearner.loss(KEY, state.model, state, last)[0]
    alone = unlearner.loss(KEY, state.model, state, jax.tree.map(lambda leaf: leaf[:1], last))[0]
    np.testing.assert_allclose(loss, alone, rtol=1e-6)


def test_in_train_mode_batches_are_exact_and_statistics_move():
    problem = testing.tiny_problem(k=7)
    unlearner, state = prepared(delete.SPEC, problem, forget_batch=3, batch_norm="update")
    draws = unlearner.draws(state)
    assert draws.period == (0, 0, 1)
    assert [len(draws.draw(state, t, p).forget.y) for t, p in enumerate(draws.period)] == [3, 3, 1]
    moved = {}
    for mode in ("frozen", "update"):
        config = delete.Config(forget_batch=3, batch_norm=mode, max_passes=2, learning_rate=1e-3)
        moved[mode] = loop.unlearn(problem, method=delete.SPEC, config=config, key=KEY).model.model_state
    before = problem.model.model_state["norm"]["mean"]
    assert np.array_equal(moved["frozen"]["norm"]["mean"], before)
    assert not np.allclose(moved["update"]["norm"]["mean"], before, atol=1e-3)


def test_a_run_ends_when_all_are_forgotten_or_with_its_budget():
    problem = testing.tiny_problem()
    run = partial(loop.unlearn, problem, method=delete.SPEC, key=KEY)
    Config = partial(delete.Config, learning_rate=0.1, max_passes=40)
    soon, late = run(config=Config()), run(config=Config(stop="budget"))
    assert soon.stop_reason == "forgotten"
    assert soon.steps < late.steps == 40
    assert late.stop_reason == "max_steps"
    assert late.forgotten.all()


def test_sgd_with_momentum_is_pytorchs():
    import torch

    problem = conv_problem()
    config = delete.Config(learning_rate=0.01, momentum=0.9, max_passes=4, stop="budget")
    ours = loop.unlearn(problem, method=delete.SPEC, config=config, key=KEY).model.params
    forward, leaves, x, y = torch_problem(problem)
    with torch.no_grad():
        z0 = forward(x)
        target = torch.softmax(z0.scatter(1, y[:, None], -1e10), 1)
    optimiser = torch.optim.SGD(leaves.values(), lr=0.01, momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        torch.nn.functional.kl_div(torch.log_softmax(forward(x), 1), target, reduction="batchmean").backward()
        optimiser.step()
    for name, leaf in leaves.items():
        np.testing.assert_allclose(ours[name], leaf.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


# --- DELETE -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "scale", "tolerance"), [(jnp.float32, 1.0, 1e-6), (jnp.float64, 8.0, 1e-12)])
def test_delete_starts_at_minus_log_of_what_the_label_leaves(dtype, scale, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        problem = linear_problem(dtype=dtype, scale=scale)
        unlearner, state = prepared(delete.SPEC, problem)
        loss, gradient = loss_and_gradient(unlearner, state)
        z = np.asarray(problem.model(problem.forget.x), np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        y = np.asarray(problem.forget.y)
        others = np.where(np.eye(3, dtype=bool)[y], 0, p)
        np.testing.assert_allclose(loss, -np.log(others.sum(1)).mean(), rtol=tolerance)
        q = others / others.sum(1, keepdims=True)
        # over z the gradient is p - q, over b its mean
        np.testing.assert_allclose(gradient["b"], (p - q).mean(0), rtol=20 * tolerance, atol=tolerance)


def test_delete_is_finite_where_the_label_is_certain():
    logits = jnp.array([[200.0, 0.0, -200.0]])
    target = delete.without_label(logits, jnp.array([0]))
    assert target.tolist() == [[0.0, 1.0, 0.0]]
    value, gradient = jax.value_and_grad(lambda z: delete.divergence(target, z)[0])(logits)
    np.testing.assert_allclose(value, 200.0)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]])


def test_delete_keeps_the_proportions_of_the_other_classes():
    problem = testing.tiny_problem()
    config = delete.Config(learning_rate=0.1, max_passes=1500, stop="budget")
    model = loop.unlearn(problem, method=delete.SPEC, config=config, key=KEY, loop="device").model
    want = delete.without_label(problem.model(problem.forget.x), problem.forget.y)
    np.testing.assert_allclose(jax.nn.softmax(model(problem.forget.x)), want, atol=0.02)
