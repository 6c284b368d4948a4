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
from jaxunlearn.methods import boundary_expand, boundary_shrink, delete, mu_mis, random_label
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
    problem = linear_problem(k=7)
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
    before, x = problem.model.model_state["norm"], problem.forget.x
    for mode, sizes in (("frozen", [3, 3, 3]), ("update", [3, 3, 1])):
        unlearner, state = prepared(delete.SPEC, problem, forget_batch=3, batch_norm=mode)
        draws = unlearner.draws(state)
        assert [len(draws.draw(state, t, p).forget.y) for t, p in enumerate(draws.period)] == sizes
        moved = unlearner.logits(KEY, state.model, x)[1]["norm"]
        kept = [np.array_equal(moved[name], before[name]) for name in ("mean", "var")]
        assert kept == [mode == "frozen"] * 2


def test_a_run_ends_when_all_are_forgotten_or_with_its_budget():
    run = partial(loop.run, linear_problem(), method=delete.SPEC, key=KEY)
    Config = partial(delete.Config, learning_rate=0.1, max_passes=40)
    soon, late = run(config=Config()), run(config=Config(stop="budget"))
    assert soon.stop_reason == "forgotten"
    assert soon.steps < late.steps == 40
    assert late.stop_reason == "max_steps"
    assert late.forgotten.all()


def test_sgd_with_momentum_is_pytorchs():
    import torch

    problem = linear_problem()
    config = delete.Config(learning_rate=0.1, momentum=0.9, max_passes=4, stop="budget")
    ours = loop.run(problem, method=delete.SPEC, config=config, key=KEY).model.params
    leaves = {name: torch.tensor(np.array(leaf), requires_grad=True) for name, leaf in problem.model.params.items()}
    x, y = torch.tensor(np.array(problem.forget.x)), torch.tensor(np.array(problem.forget.y)).long()
    forward = lambda: x @ leaves["w"] + leaves["b"]
    target = torch.softmax(forward().detach().scatter(1, y[:, None], -1e10), 1)
    optimiser = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        torch.nn.functional.kl_div(torch.log_softmax(forward(), 1), target, reduction="batchmean").backward()
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
    model = loop.run(problem, method=delete.SPEC, config=config, key=KEY, loop="device").model
    want = delete.without_label(problem.model(problem.forget.x), problem.forget.y)
    np.testing.assert_allclose(jax.nn.softmax(model(problem.forget.x)), want, atol=0.02)


@pytest.mark.parametrize("spec", [delete.SPEC, boundary_shrink.SPEC, boundary_expand.SPEC], ids=lambda spec: spec.name)
def test_published_takes_twenty_passes_and_moves_statistics(spec):
    problem, config = testing.tiny_problem(), spec.Config.published()
    assert (config.learning_rate, config.momentum, config.forget_batch) == (1e-4, 0.9, 128)
    result = loop.run(problem, method=spec, config=config, key=KEY)
    assert (result.steps, result.stop_reason) == (20, "max_steps")
    assert not np.array_equal(result.model.model_state["norm"]["mean"], problem.model.model_state["norm"]["mean"])


# --- boundary shrink ----------------------------------------------------------------------------


def test_shrink_descends_on_the_nearest_wrong_class():
    import torch

    problem = conv_problem()
    forward, leaves, x, y = torch_problem(problem)
    unlearner, state = prepared(boundary_shrink.SPEC, problem, epsilon=0.1)
    x.requires_grad_(True)
    ce = torch.nn.functional.cross_entropy
    (g,) = torch.autograd.grad(ce(forward(x), y, reduction="sum"), x)
    seen = forward((x + 0.1 * g.sign()).clamp(0, 1))
    fooled = (seen.argmax(1) != y).numpy()
    nearest = seen.scatter(1, y[:, None], -1e10).argmax(1)
    given = state.rows.given
    assert given.fooled.tolist() == fooled.tolist()
    assert given.label.tolist() == nearest.tolist()
    assert (given.label != problem.forget.y).all()
    loss, gradient = loss_and_gradient(unlearner, state)
    theirs = ce(forward(x.detach()), nearest)
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    assert_same_gradient(theirs, leaves, gradient)


def test_shrink_where_the_sign_step_fools_nobody():
    problem = linear_problem()
    answers = {}
    for choice in ("runner-up", "skip", "keep"):
        unlearner, state = prepared(boundary_shrink.SPEC, problem, epsilon=0.0, not_fooled=choice)
        assert unlearner.extras(state) == {"not_fooled": 6}
        answers[choice] = state.rows.given.label, *loss_and_gradient(unlearner, state)
    z = np.array(problem.model(problem.forget.x))
    y = np.asarray(problem.forget.y)
    assert (answers["keep"][0] == y).all()
    z[np.arange(6), y] = -np.inf
    assert (answers["runner-up"][0] == z.argmax(1)).all()
    assert answers["skip"][1] == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(answers["skip"][2]))
    assert boundary_shrink.Config.published().not_fooled == "keep"


# --- boundary expand ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", ["frozen", "update"])
def test_expand_is_a_network_with_one_more_output(batch_norm):
    problem = testing.tiny_problem(k=6)
    wide = testing.TinyNet(num_classes=6)  # the same network, as wide as the widened weights
    unlearner, state = prepared(boundary_expand.SPEC, problem, batch_norm=batch_norm)
    model, x = state.model, problem.forget.x
    train = batch_norm == "update"
    want, moved = wide(model.params, model.model_state, x, train=train)
    logits, model_state = unlearner.wide_logits(KEY, model, x)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), model_state, moved)
    before = problem.model.apply_fn(problem.model.params, problem.model.model_state, x, train=train)[0]
    np.testing.assert_allclose(logits[:, :5], before, rtol=1e-5, atol=1e-5)  # the old classes start as they were
    _, gradient = loss_and_gradient(unlearner, state)

    def loss(params):
        logits = wide(params, model.model_state, x, train=train)[0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 5])

    close(gradient, jax.jit(jax.grad(loss))(model.params))
    assert gradient["head"]["kernel"].shape == (16, 6)


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


def test_expand_runs_the_body_of_the_network_once():
    problem = testing.tiny_problem(k=6)
    unlearner, state = prepared(boundary_expand.SPEC, problem)
    text = str(jax.make_jaxpr(lambda m, x: unlearner.wide_logits(KEY, m, x)[0])(state.model, problem.forget.x))
    assert text.count("dot_general") == 2  # one of the body, one of both classifiers


def test_expand_returns_the_old_classes():
    problem = testing.tiny_problem()
    config = boundary_expand.Config(learning_rate=0.02, max_passes=20)
    result = loop.run(problem, method=boundary_expand.SPEC, config=config, key=KEY)
    assert result.forgotten.any()
    assert result.model(problem.forget.x).shape == (8, 5)
    assert jax.tree.map(jnp.shape, result.model.params) == jax.tree.map(jnp.shape, problem.model.params)
    assert len(result.state.inner.model.params["head"]["bias"]) == 6  # the new output lives in the state only


def test_expand_needs_to_know_a_classifier_with_a_class_axis():
    problem = testing.tiny_problem()
    cases = {
        None: r"needs to know which layer is the classifier.*name it by head=",
        ("first",): r"cannot widen 'first': .* must be the 5 classes; got \(16,\), \(9, 16\)",
    }
    for head, message in cases.items():
        model = problem.model.replace(spec=dataclasses.replace(problem.model.spec, head=head))
        with pytest.raises(ValueError, match=message):
            loop.run(dataclasses.replace(problem, model=model), method=boundary_expand.SPEC, key=KEY)


def test_a_network_that_is_one_layer_is_widened_whole():
    problem = linear_problem()
    model = problem.model.replace(spec=dataclasses.replace(problem.model.spec, head=()))
    unlearner, state = prepared(boundary_expand.SPEC, dataclasses.replace(problem, model=model))
    logits, _ = unlearner.wide_logits(KEY, state.model, problem.forget.x)
    close(logits, problem.forget.x @ state.model.params["w"] + state.model.params["b"][None])
    close(unlearner.finish(state).params, model.params, rtol=0, atol=0)


# --- MU-Mis -------------------------------------------------------------------------------------


def test_mu_mis_of_a_linear_network():
    problem = linear_problem(k=1, classes=2)  # of two classes the other one is known
    unlearner, state = prepared(mu_mis.SPEC, problem)
    loss, gradient = loss_and_gradient(unlearner, state)
    w, y = np.asarray(problem.model.params["w"]), int(problem.forget.y[0])
    np.testing.assert_allclose(loss, (w[:, y] ** 2).sum() - (w[:, 1 - y] ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient["w"][:, y], 2 * w[:, y], rtol=1e-5)
    np.testing.assert_allclose(gradient["w"][:, 1 - y], -2 * w[:, 1 - y], rtol=1e-5)
    assert not gradient["b"].any()


def test_mu_mis_draws_another_class_at_every_step():
    problem = linear_problem(k=1, classes=4)
    unlearner, state = prepared(mu_mis.SPEC, problem)
    sizes, y = np.square(problem.model.params["w"]).sum(0), int(problem.forget.y[0])
    others = np.delete(sizes[y] - sizes, y)
    loss = jax.jit(lambda key: unlearner.loss(key, state.model, state, state.rows)[0])
    found = [float(loss(key)) for key in jax.random.split(KEY, 12)]
    which = {int(np.abs(others - value).argmin()) for value in found}
    assert all(np.abs(others - value).min() < 1e-5 for value in found)
    assert which == {0, 1, 2}


def test_mu_mis_differentiates_twice_as_pytorch_does():
    import torch

    problem = conv_problem()
    forward, leaves, x, y = torch_problem(problem)
    unlearner, state = prepared(mu_mis.SPEC, problem, others="all")
    loss, gradient = loss_and_gradient(unlearner, state)
    x.requires_grad_(True)
    z = forward(x)
    own = z.gather(1, y[:, None]).sum()
    (g_own,) = torch.autograd.grad(own, x, create_graph=True)
    (g_rest,) = torch.autograd.grad(z.sum() - own, x, create_graph=True)
    theirs = (g_own.flatten(1).pow(2).sum(1) - g_rest.flatten(1).pow(2).sum(1)).mean()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-4)
    assert_same_gradient(theirs, leaves, gradient)


def test_mu_mis_ends_at_a_reference_accuracy():
    problem = testing.tiny_problem()
    run = lambda reference: loop.run(
        problem, method=mu_mis.SPEC, config=mu_mis.Config(learning_rate=3e-4, reference=reference), key=KEY
    )
    half, whole = run(0.5), run(0.0)
    assert half.stop_reason == "completed"
    assert 0.5 <= half.forgotten.mean() < 1
    assert whole.stop_reason == "forgotten"
    assert half.steps < whole.steps


# --- random label -------------------------------------------------------------------------------


def test_random_labels_are_wrong_and_fixed_once():
    problem = linear_problem(k=200)
    unlearner, state = prepared(random_label.SPEC, problem)
    label, y = np.asarray(state.rows.given[:200]), np.asarray(problem.forget.y)
    assert (label != y).all()
    shares = np.bincount((label - y) % 3, minlength=3) / 200
    assert abs(shares[1] - shares[2]) < 0.3
    one, two = (loss_and_gradient(unlearner, state, key)[0] for key in jax.random.split(KEY))
    assert one == two
    z = jax.nn.log_softmax(problem.model(problem.forget.x))
    np.testing.assert_allclose(one, -np.asarray(z)[np.arange(200), label].mean(), rtol=1e-5)


def test_published_random_labels_may_be_true_and_change():
    config = random_label.Config.published()
    assert (config.labels, config.redraw) == ("any", True)
    problem = linear_problem(k=200)
    unlearner, state = prepared(random_label.SPEC, problem, labels="any", redraw=True)
    assert 0.2 < np.mean(np.asarray(state.rows.given[:200]) == np.asarray(problem.forget.y)) < 0.5
    one, two = (loss_and_gradient(unlearner, state, key)[0] for key in jax.random.split(KEY))
    assert one != two


def test_weight_decay_is_coupled():
    problem = linear_problem()
    ends = []
    for decay in (0.0, 0.1):
        config = random_label.Config(learning_rate=0.5, weight_decay=decay, max_passes=1, stop="budget")
        ends.append(loop.run(problem, method=random_label.SPEC, config=config, key=KEY).model.params)
    close(ends[1], jax.tree.map(lambda a, p: a - 0.5 * 0.1 * p, ends[0], problem.model.params))
