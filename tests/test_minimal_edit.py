"""The minimal edit on networks small enough to solve by other means (self-checks of its specification)."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _config, checkpoint, curvature, loop, methods, testing
from jaxunlearn._types import Batch, Model, ModelSpec, Problem
from jaxunlearn.methods import _minimal_edit_constraints as constraints, _minimal_edit_pool as pools
from jaxunlearn.methods.minimal_edit import MinimalEdit

SPEC = methods.get("minimal-edit")
ONE_STEP = dict(steps=0, finishing_steps=1, proxies=32)


def linear(params, model_state, x, *, train=False, rngs=None):
    return x @ params["kernel"] + params["bias"][None], model_state


def linear_problem(seed=0, *, k=4, features=12, classes=5, goal="misclassify"):
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(features, classes)), "bias": rng.normal(size=classes)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    spec = ModelSpec(num_classes=classes, input_shape=(features,))
    model = Model(params=params, model_state={}, apply_fn=linear, spec=spec)
    x = rng.uniform(size=(k, features)).astype(np.float32)
    y = np.asarray(jnp.argmax(model(jnp.asarray(x)), axis=1))
    target = (y + 1 + rng.integers(0, classes - 1, k)) % classes if goal == "relabel" else None
    return Problem(model=model, forget=Batch.of(x, y, target), goal=goal)


def run(problem, *, seed=0, resume=None, **settings):
    config = SPEC.Config(**(dict(proxies=64) | settings))
    return loop.run(problem, method=SPEC, config=config, key=jax.random.key(seed), resume=resume)


def margins(model, batch):
    """Return label's logit less the best other one, in float64 NumPy."""
    z = np.asarray(model(batch.x), np.float64)
    own = z[np.arange(len(z)), np.asarray(batch.y)]
    z[np.arange(len(z)), np.asarray(batch.y)] = -np.inf
    return own - z.max(axis=1)


def step_of(unlearner, problem, **hparams):
    """Take one step by hand and return the change of the weights and the step's scalars."""
    values = _config.traced(unlearner.config) | {name: jnp.float32(value) for name, value in hparams.items()}
    state = unlearner.prepare(jax.random.key(0), problem, values)
    new, info = unlearner.step(jax.random.key(1), state, state.forget)
    return jax.tree.map(lambda a, b: np.asarray(a - b), new.model.params, state.model.params), info


def test_linear_model_meets_every_constraint_in_one_step():
    problem = linear_problem()
    result = run(problem, margin=0.5, **ONE_STEP)
    assert result.stop_reason == "forgotten"
    assert result.steps == 1
    # One linearised rival each: the label lies below it by the margin, so below the best other class, too.
    assert margins(result.model, problem.forget).max() <= -0.5 + 1e-3
    np.testing.assert_allclose(result.history["predicted_margin"], [-0.5], atol=1e-4)


def kronecker(g, ridge=1e-2):
    """Return S of gradients (n, r, c), as the explicit matrix on flattened weights."""
    left, right = np.mean([a @ a.T for a in g], axis=0), np.mean([a.T @ a for a in g], axis=0)
    damped = [a + ridge * np.mean(np.linalg.eigvalsh(a)) * np.eye(len(a)) for a in (left, right)]
    return np.kron(*damped) / np.trace(left)


@pytest.mark.parametrize(("metric", "damping"), [("euclidean", 1e-3), ("kronecker", 1e-3), ("kronecker", 1.0)])
def test_linear_edit_is_the_smallest_change_on_the_proxies(metric, damping):
    """Against an explicit solve in weights, where the proxies span them: least squares on what is held."""
    problem = linear_problem(k=2, features=4, classes=3)
    settings = ONE_STEP | dict(proxies=200) | ({} if metric == "kronecker" else dict(metric=metric))
    unlearner = MinimalEdit(SPEC.Config(**settings))
    values = _config.traced(unlearner.config) | {"damping": jnp.float32(damping)}
    state = unlearner.prepare(jax.random.key(0), problem, values)
    new, _ = unlearner.step(jax.random.key(1), state, state.forget)
    d = np.asarray(new.model.params["kernel"] - state.model.params["kernel"], np.float64).ravel()

    def directional(x, v):
        return np.stack([np.outer(a, b).ravel() for a, b in zip(x, v, strict=True)]).astype(np.float64)

    x = np.asarray(new.pool.x)
    order = np.argsort(np.asarray(problem.model(x)), axis=1)
    R = directional(x, np.eye(3)[order[:, -1]] - np.eye(3)[order[:, -2]]) / np.sqrt(200)
    z = np.asarray(problem.model(problem.forget.x))
    y, rival = np.argsort(z, axis=1)[:, -1], np.argsort(z, axis=1)[:, -2]
    A = directional(np.asarray(problem.forget.x), np.eye(3)[y] - np.eye(3)[rival])
    required = z[[0, 1], y] - z[[0, 1], rival] + 0.5
    # Every third proxy: 66 of 200, so many as make 64 and no fewer.
    S = kronecker(R[::3].reshape(-1, 4, 3)) if metric == "kronecker" else np.eye(12)
    size = np.mean(np.einsum("np,pq,nq->n", R, np.linalg.inv(S), R))  # of a proxy row, where S is the identity
    H = R.T @ R + damping * size * S
    inverse = np.linalg.inv(H)
    both = -inverse @ A.T @ np.linalg.solve(A @ inverse @ A.T, required)
    assert (np.linalg.solve(A @ inverse @ A.T, required) > 0).all()  # both rows are active
    np.testing.assert_allclose(d, both, rtol=2e-3, atol=1e-3 * np.abs(both).max())


def test_an_instance_past_the_margin_is_never_pulled_back_over_it():
    problem = linear_problem(k=6)
    y = np.array(problem.forget.y)
    y[:3] = (y[:3] + 1) % 5  # wrong from the start, by more than the margin where margins are large
    problem = dataclasses.replace(problem, forget=Batch.of(problem.forget.x, y))
    before = margins(problem.model, problem.forget)
    assert (before[:3] < -0.05).all()
    after = margins(run(problem, margin=0.05, **ONE_STEP).model, problem.forget)
    assert (after <= -0.05 + 1e-3).all()


@pytest.mark.parametrize(
    ("microbatch_size", "settings"), [(3, {}), (16, {}), (3, dict(metric="euclidean"))], ids=["3", "16", "euclidean"]
)
def test_stored_rows_and_products_give_the_same_edit(microbatch_size, settings):
    problem = testing.tiny_problem(0)
    config = SPEC.Config(**ONE_STEP, **settings)
    stored, _ = step_of(MinimalEdit(config), problem)
    free, _ = step_of(MinimalEdit(config, microbatch_size, row_bytes=40 * 4 * 50), problem)
    stored, free = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(d)]) for d in (stored, free))
    assert np.linalg.norm(stored - free) <= 1e-4 * np.linalg.norm(stored)


def test_a_whole_run_is_the_same_without_stored_rows():
    problem = testing.tiny_problem(1)
    free = dataclasses.replace(SPEC, make=lambda config: MinimalEdit(config, row_bytes=40 * 4 * 50))
    results = [
        loop.run(problem, method=spec, config=SPEC.Config(proxies=64), key=jax.random.key(0)) for spec in (SPEC, free)
    ]
    assert [result.stop_reason for result in results] == ["forgotten"] * 2
    np.testing.assert_allclose(results[0].history["edit_norm"], results[1].history["edit_norm"], rtol=1e-3)


def test_a_loaded_run_makes_the_same_metric_and_rows_again(tmp_path, monkeypatch):
    """Between two refreshes: at the weights and proxies of the last one, not at the current weights."""
    problem, made = testing.tiny_problem(1), {"inverse_root": [], "inner_products": []}

    def spy(kept, original, *args, **kwargs):
        kept.append(original(*args, **kwargs))
        return kept[-1]

    for name, kept in made.items():
        monkeypatch.setattr(curvature, name, partial(spy, kept, getattr(curvature, name)))
    whole = run(problem, refresh_every=3)
    metrics, grams = (list(kept) for kept in made.values())
    assert len(metrics) == 1 + (whole.steps - 1) // 3  # one for each pool

    def stop_at_four(event):
        if event.steps >= 4:
            raise KeyboardInterrupt

    config = SPEC.Config(proxies=64, refresh_every=3)
    part = loop.run(problem, method=SPEC, config=config, key=jax.random.key(0), callback=stop_at_four)
    checkpoint.save_state(tmp_path / "state", part.state)
    loaded = checkpoint.load_state(tmp_path / "state", like=part.state)
    for kept in made.values():
        kept.clear()
    rest = run(problem, refresh_every=3, resume=loaded)
    jax.tree.map(np.testing.assert_array_equal, made["inverse_root"][0], metrics[1])
    assert any(np.array_equal(made["inner_products"][0], gram) for gram in grams)
    assert rest.steps == whole.steps
    jax.tree.map(np.testing.assert_array_equal, rest.model.params, whole.model.params)


@pytest.mark.parametrize("where", ["inverse_root", "inner_products"])
def test_an_interrupted_step_leaves_nothing_half_made(where, monkeypatch):
    problem = linear_problem(9)
    unlearner = MinimalEdit(SPEC.Config(proxies=32, refresh_every=2))
    state = unlearner.prepare(jax.random.key(0), problem, _config.traced(unlearner.config))
    state, _ = unlearner.step(jax.random.key(1), state, state.forget)
    expected = unlearner.step(jax.random.key(2), state, state.forget)[0].model.params["kernel"]
    pools.drop_rows()  # as in a process that has just loaded the state

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(curvature, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            unlearner.step(jax.random.key(2), state, state.forget)
    again = unlearner.step(jax.random.key(2), state, state.forget)[0].model.params["kernel"]
    np.testing.assert_array_equal(again, expected)


def test_the_euclidean_metric_is_another_edit_and_asks_for_no_moments(monkeypatch):
    problem = linear_problem(13)
    kernel = run(problem).model.params["kernel"]
    monkeypatch.setattr(curvature, "second_moments", None)
    result = run(problem, metric="euclidean")
    assert result.stop_reason == "forgotten"
    assert not np.allclose(result.model.params["kernel"], kernel, atol=1e-3)


def test_first_steps_ask_for_a_share_of_the_way():
    problem = linear_problem(k=1)
    before = margins(problem.model, problem.forget)[0]
    result = run(problem, steps=2, finishing_steps=3, fraction=0.5, margin=0.4)
    assert result.steps == 3  # met only in a finishing step, and not stopped before one
    largest = result.history["largest_margin"]
    np.testing.assert_allclose(largest[1] + 0.4, (before + 0.4) * 0.5, rtol=1e-3)
    np.testing.assert_allclose(largest[2] + 0.4, (before + 0.4) * 0.25, rtol=1e-3)


def test_a_met_constraint_may_give_back_what_it_has_beyond_the_margin():
    forget = Batch.of(np.zeros((3, 1)), [0, 0, 0])
    instances = constraints.join(forget, None, None, "misclassify", margin=0.5, depth_margin=3.0)
    logits = np.array([[1.0, 0.0], [-2.0, 0.0], [-0.2, 0.0]])
    rows = constraints.linearise(logits, instances, towards="runner-up", share=0.6)
    np.testing.assert_allclose(rows.required, [0.6 * 1.5, -1.5, 0.6 * 0.3])
    copies = (np.zeros((2, 1)), np.array([2, -1]))
    with_copy = constraints.join(forget, None, copies, "misclassify", margin=0.5, depth_margin=3.0)
    assert with_copy.margin.tolist() == [0.5, 0.5, 0.5, 3.0]
    assert with_copy.position.tolist() == [0, 1, 2, 2]


def test_finishing_steps_are_walked_even_when_all_is_forgotten_early():
    problem = linear_problem(k=2)
    result = run(problem, steps=3, finishing_steps=2, fraction=1.0)
    assert result.stop_reason == "forgotten"
    assert result.steps == 4
    assert (result.forgotten_at == 1).all()


def test_relabel_makes_the_target_the_answer():
    problem = linear_problem(3, goal="relabel")
    result = run(problem, **ONE_STEP)
    assert result.stop_reason == "forgotten"
    z = np.asarray(result.model(problem.forget.x))
    assert (z.argmax(axis=1) == np.asarray(problem.forget.target)).all()
    top = np.sort(z, axis=1)
    assert (top[:, -1] - top[:, -2] >= 0.5 - 1e-3).all()


def test_only_chosen_tensors_move():
    problem = testing.tiny_problem(2)
    result = run(problem, layers="head/*")
    old, new = problem.model, result.model
    for path in ("first", "norm"):
        for a, b in zip(jax.tree.leaves(old.params[path]), jax.tree.leaves(new.params[path]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(old.params["head"]["bias"], new.params["head"]["bias"])
    kernels = run(problem).model  # by default no bias, no normalisation, no running statistic
    np.testing.assert_array_equal(old.params["head"]["bias"], kernels.params["head"]["bias"])
    assert not np.array_equal(old.params["first"]["kernel"], kernels.params["first"]["kernel"])
    assert kernels.model_state is old.model_state


def test_forgotten_in_a_separate_pass_of_a_network_with_normalisation():
    problem = testing.tiny_problem(3)
    result = run(problem)
    assert result.stop_reason == "forgotten"
    assert (margins(result.model, problem.forget) < 0).all()


def test_away_from_the_label_whatever_comes():
    problem = linear_problem(5)
    result = run(problem, towards="any", steps=2)
    assert result.stop_reason == "forgotten"
    alone = dataclasses.replace(problem, forget=jax.tree.map(lambda leaf: leaf[:1], problem.forget))
    bare = SPEC.Config(**ONE_STEP | dict(towards="any"))
    one, _ = step_of(MinimalEdit(bare), alone)
    two, _ = step_of(MinimalEdit(dataclasses.replace(bare, towards="runner-up")), alone)
    label = int(problem.forget.y[0])
    push = [np.asarray(d["kernel"]) @ np.ones(5) - d["kernel"][:, label] for d in (one, two)]
    assert not np.allclose(*push, atol=1e-4)


def test_the_same_image_with_two_new_labels_is_a_contradiction():
    problem = linear_problem(4, k=5, goal="relabel")
    x, y, target = (np.array(a) for a in problem.forget[:3])
    x[3], y[3] = x[1], y[1]
    target[1], target[3] = (y[1] + 1) % 5, (y[1] + 2) % 5
    problem = dataclasses.replace(problem, forget=Batch.of(x, y, target))
    with pytest.raises(
        curvature.InfeasibleError, match="instances 1 and 3 of the forget set are the same image"
    ) as caught:
        run(problem)
    assert caught.value.rows.tolist() == [1, 3]
    x[3] += 1e-7  # not the same bytes: the programme finds it
    problem = dataclasses.replace(problem, forget=Batch.of(x, y, target))
    with pytest.raises(curvature.InfeasibleError, match="constraints of instances 1, 3 together"):
        run(problem)


def test_the_same_image_with_two_old_labels_gets_a_third():
    problem = linear_problem(6, k=4)
    x, y = np.array(problem.forget.x), np.array(problem.forget.y)
    second = np.argsort(np.asarray(problem.model(problem.forget.x)), axis=1)[0, -2]
    x[1], y[1] = x[0], second
    problem = dataclasses.replace(problem, forget=Batch.of(x, y))
    result = run(problem)
    assert result.stop_reason == "forgotten"
    assert int(jnp.argmax(result.model(problem.forget.x), axis=1)[0]) not in (y[0], second)


def test_more_instances_than_the_weights_can_separate():
    problem = linear_problem(7, k=64, features=3, classes=3, goal="relabel")
    with pytest.raises(ValueError, match=r"no small change of these weights .* 128 constraints, 64 proxies"):
        run(problem)


def test_padding_is_no_instance():
    problem = linear_problem(8, k=5)
    padded = problem.forget._replace(weight=problem.forget.weight.at[4].set(0.0))
    result = run(dataclasses.replace(problem, forget=padded), **ONE_STEP)
    after = margins(result.model, problem.forget)
    assert result.stop_reason == "forgotten"
    assert (after[:4] <= -0.5 + 1e-3).all()


@pytest.mark.parametrize("how", ["host", "device"])
def test_no_run_ends_before_earlier_requests_hold(how):
    problem = linear_problem(3, k=4)
    labels = np.asarray(problem.model(problem.forget.x).argmax(1))
    done = Batch.of(problem.forget.x[:2], (labels[:2] + 1) % 5)  # misclassified from the start
    held = Batch.of(problem.forget.x[2:], labels[2:], [-1, (labels[3] + 1) % 5])
    problem = dataclasses.replace(problem, forget=done)
    alone = loop.run(problem, method="neggrad", key=jax.random.key(0), loop=how)
    assert (alone.steps, alone.stop_reason) == (0, "forgotten")
    both = dataclasses.replace(problem, artefacts={"held": held})
    config = methods.get("neggrad").Config(learning_rate=1e-9, max_passes=3)
    with_held = loop.run(both, method="neggrad", config=config, key=jax.random.key(0), loop=how)
    assert (with_held.steps, with_held.stop_reason) == (3, "max_steps")
    result = run(both)
    assert result.stop_reason == "forgotten"
    after = np.asarray(result.model(held.x).argmax(1))
    assert after[0] != labels[2]
    assert after[1] == (labels[3] + 1) % 5


def test_earlier_requests_stay_forgotten():
    both = linear_problem(14, k=8)
    halves = [Batch.of(both.forget.x[i : i + 4], both.forget.y[i : i + 4]) for i in (0, 4)]
    first = run(dataclasses.replace(both, forget=halves[0]))
    second = dataclasses.replace(
        both, model=first.model, forget=halves[1], artefacts={"held": halves[0], "original": both.model}
    )
    undone = run(dataclasses.replace(second, artefacts={}))
    assert margins(first.model, halves[0]).max() < 0
    assert margins(undone.model, halves[0]).max() > 1  # what this request does without them
    result = run(second)
    assert margins(result.model, both.forget).max() <= -0.5 + 1e-2
    assert result.state.inner.original is both.model


def test_mirror_images_are_forgotten_where_asked():
    problem = testing.tiny_problem(5)
    mirrored = problem.forget._replace(x=problem.forget.x[:, :, ::-1])
    public = dict(public=problem.public)
    plain, deep = (run(dataclasses.replace(problem, **public), depth=depth) for depth in ("none", "mirror"))
    assert margins(plain.model, mirrored).max() > 0
    assert margins(deep.model, mirrored).max() < 0
    assert deep.stop_reason == "forgotten"
    copies = deep.state.inner.copies
    np.testing.assert_array_equal(copies.x, mirrored.x)
    assert copies.owner.tolist() == list(range(8))


def test_copies_grow_by_violated_ones_and_stay_within_their_room():
    problem = testing.tiny_problem(6)
    unlearner = MinimalEdit(SPEC.Config(depth="full", copies=6, steps=3, proxies=32))
    state = unlearner.prepare(jax.random.key(0), problem, _config.traced(unlearner.config))
    assert (state.copies.owner == -1).all()
    for t in range(4):
        state, _ = unlearner.step(jax.random.key(t), state, state.forget)
        owner = np.asarray(state.copies.owner)
        assert np.bincount(owner[owner >= 0], minlength=8).max() <= min(2 * (t + 1), 6)
    used = owner >= 0
    assert used.any()
    assert (
        len({(i, image.tobytes()) for i, image in zip(owner[used], np.asarray(state.copies.x)[used], strict=True)})
        == used.sum()
    )


def test_depth_walks_three_finishing_steps_though_all_is_forgotten_before():
    problem = testing.tiny_problem(7, k=3)
    settings = dict(steps=3, fraction=1.0)
    assert run(problem, **settings).steps == 4
    for finishing, taken in ((6, 6), (2, 5)):
        assert run(problem, depth="mirror", finishing_steps=finishing, **settings).steps == taken


def test_relabelled_copies_get_the_target_too():
    problem = testing.tiny_problem(7, goal="relabel", k=3)
    result = run(problem, depth="mirror", steps=9)
    predicted = np.asarray(jnp.argmax(result.model(problem.forget.x[:, :, ::-1]), axis=1))
    assert (predicted == np.asarray(problem.forget.target)).all()


def test_drift_is_measured_against_the_original():
    problem = linear_problem(10)
    moved = problem.model.replace(params=jax.tree.map(lambda leaf: leaf * 1.1, problem.model.params))
    far = dataclasses.replace(problem, model=moved, artefacts={"original": problem.model})
    unlearner = MinimalEdit(SPEC.Config(**ONE_STEP))
    assert step_of(unlearner, problem)[1]["drift"] < 1e-5
    assert step_of(unlearner, far)[1]["drift"] > 0.01


def test_given_images_join_the_proxies():
    problem = linear_problem(11)
    given = np.full((3, 12), 0.25, np.float32)
    for kwargs in (dict(public=jnp.asarray(given)), dict(artefacts={"proxies": given})):
        result = run(dataclasses.replace(problem, **kwargs), **ONE_STEP)
        assert (result.extras["proxies"] == 0.25).all(axis=1).sum() == 8  # of 16 that are shown
        assert (np.asarray(result.state.inner.pool.x) == 0.25).all(axis=1).sum() == 16


def test_config_says_what_is_wrong():
    with pytest.raises(ValueError, match="no parameter matches 'layer9'"):
        run(linear_problem(), layers="layer9, kernel")
    with pytest.raises(ValueError, match="towards must be one of 'runner-up', 'any'; got 'away'"):
        SPEC.Config(towards="away")
    with pytest.raises(ValueError, match="metric must be one of 'kronecker', 'euclidean'; got 'fisher'"):
        SPEC.Config(metric="fisher")
    with pytest.raises(ValueError, match="finishing_steps must be at least 1; got 0"):
        SPEC.Config(finishing_steps=0)
