"""StructGuard against its formulas: alignment, importance, projector, and ADV where all that it adds is off."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _config, _tree, checkpoint, loop, methods, models, wrappers
from jaxunlearn.methods import structguard
from jaxunlearn.testing import tiny_problem
from jaxunlearn.wrappers.projector import Projector
from tests.digits_net import network

SPEC = methods.get("structguard")
SMALL = dict(draws=2, attack_steps=3, forget_batch=8, companion_batch=64, width=6)


def config(**changes):
    return SPEC.Config(**SMALL | changes)


def start(problem, **changes):
    chosen = config(**changes)
    unlearner = SPEC.make(_config.static(chosen))
    return unlearner, unlearner.prepare(jax.random.key(0), problem, _config.traced(chosen))


def aligned(state, params):
    """The alignment of every adversarial image from its definition, in NumPy's order of things."""
    parts = wrappers.unwrap(state.model.replace(params=params))
    features = wrappers.features(parts.model, state.companion.x)
    projected = parts.wrapper.project(parts.own, features)
    now = projected / jnp.linalg.norm(projected, axis=1, keepdims=True) @ state.anchors.T
    cosine = jnp.sum(now * state.similarity, axis=1)
    return 1 - cosine / jnp.linalg.norm(now, axis=1) / jnp.linalg.norm(state.similarity, axis=1)


def test_at_the_start_nothing_is_misaligned_and_nothing_pulls():
    _, state = start(tiny_problem())
    np.testing.assert_allclose(aligned(state, state.model.params), 0, atol=1e-6)
    parts = wrappers.unwrap(state.model)
    features = wrappers.features(parts.model, state.companion.x)

    def total(features):
        return structguard.misalignment(features, state.anchors, state.similarity).sum()

    assert total(features) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(jax.grad(total)(features), 0, atol=1e-6)
    x = tiny_problem().forget.x
    np.testing.assert_array_equal(
        state.model(x), wrappers.features(parts.model, x) @ parts.model.params["head"]["kernel"]
    )


def test_alignment_does_not_change_when_anchors_and_features_turn_together():
    rng = np.random.default_rng(0)
    features, before, anchors = (jnp.asarray(rng.normal(size=shape)) for shape in ((7, 5), (7, 5), (3, 5)))
    turn = jnp.asarray(np.linalg.qr(rng.normal(size=(5, 5)))[0])
    one = structguard.misalignment(features, anchors, before @ anchors.T)
    other = structguard.misalignment(features @ turn, anchors @ turn, (before @ turn) @ (anchors @ turn).T)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert float(one.min()) > 1e-3


def test_with_all_it_adds_off_it_is_adv_step_by_step():
    problem, shared = tiny_problem(), dict(learning_rate=1e-3, momentum=0.9, weight_decay=1e-4, epsilon=2.0)
    off = dict(alignment=0.0, strength=0.0, elastic=0.0, projector_learning_rate=0.0)
    adv = methods.get("adv")
    small = {name: value for name, value in SMALL.items() if name != "width"}
    # One batch a pass, so that the two stretches of steps deal as one does; the attack's key is the method's own.
    theirs = adv.Config(**small, **shared, max_passes=4)
    unlearner, state = start(problem, **shared, **off)
    reference = adv.make(_config.static(theirs))
    for_attack = jax.random.split(jax.random.key(0))[0]
    other = reference.prepare(for_attack, problem, _config.traced(theirs))
    np.testing.assert_array_equal(state.companion.x, other.companion.x)
    for t in range(4):
        state, info = unlearner.step(None, state, unlearner.draws(state).draw(state, t, 0))
        other, their_info = reference.step(None, other, reference.draws(other).draw(other, t, 0))
        assert float(info["forget_loss"]) == pytest.approx(float(their_info["forget_loss"]), rel=1e-5)
        one, two = (_tree.flatten_paths(params) for params in (state.model.params["network"], other.model.params))
        for path, leaf in two.items():
            np.testing.assert_allclose(one[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("kind", ["per_example", "batch_mean"])
def test_importance_is_the_absolute_gradient_of_the_alignment(kind):
    problem = tiny_problem()
    dead = problem.model.params
    dead["norm"]["bias"] = dead["norm"]["bias"].at[3].set(-1e3)  # a unit that no image reaches
    unlearner, state = start(problem, importance=kind, companion_batch=8)
    for t in range(2):
        state, _ = unlearner.step(None, state, unlearner.draws(state).draw(state, t, 0))
    params = state.model.params
    measured = unlearner._measure(None, state, None)[0].opt_state[0].holding_weight["network"]
    n = int(state.companion.weight.sum())
    assert n == 16
    parts = [[i] for i in range(n)] if kind == "per_example" else [list(range(i, i + 8)) for i in range(0, n, 8)]
    expected = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params["network"])
    for rows in parts:
        grads = jax.grad(lambda p, rows: jnp.mean(aligned(state, p)[rows]))(params, np.array(rows))["network"]
        expected = jax.tree.map(lambda total, g: total + np.abs(g) / len(parts), expected, grads)
    for path, leaf in _tree.flatten_paths(expected).items():
        found = np.asarray(_tree.flatten_paths(measured)[path])
        np.testing.assert_allclose(found, leaf, rtol=2e-3, atol=2e-6, err_msg=path)
        assert found.min() >= 0
    assert np.max(measured["first"]["kernel"]) > 0
    assert np.all(np.asarray(measured["first"]["kernel"])[:, 3] == 0)
    assert np.all(np.asarray(measured["head"]["kernel"])[3] == 0)


def test_the_penalty_is_that_of_the_formula():
    problem = tiny_problem()
    unlearner, state = start(problem, strength=3e4, alignment=0.0, elastic=0.0)
    state = unlearner._measure(None, unlearner.step(None, state, unlearner.draws(state).draw(state, 0, 0))[0], None)[0]
    held = state.opt_state[0]

    def penalty(params):
        moved = jax.tree.map(jnp.subtract, params["network"], problem.model.params)
        squares = jax.tree.map(lambda i, d: jnp.sum(i * d**2), held.holding_weight["network"], moved)
        return 1.5e4 * jax.tree.reduce(jnp.add, squares)

    batch = unlearner.draws(state).draw(state, 1, 0)
    with_it = unlearner.step(None, state, batch)[0].model.params["network"]
    free = state.opt_state[0]._replace(holding_weight=jax.tree.map(jnp.zeros_like, held.holding_weight))
    without = unlearner.step(None, dataclasses.replace(state, opt_state=(free, *state.opt_state[1:])), batch)[0]
    pull = jax.grad(penalty)(state.model.params)["network"]
    for path, leaf in _tree.flatten_paths(pull).items():
        moved = _tree.flatten_paths(without.model.params["network"])[path] - _tree.flatten_paths(with_it)[path]
        np.testing.assert_allclose(moved, 5e-3 * leaf, rtol=2e-3, atol=1e-6, err_msg=path)


def test_a_step_descends_on_the_objective_as_it_is_written():
    problem = tiny_problem()
    weights = dict(alignment=0.7, elastic=0.05, strength=300.0, forget_loss="cross_entropy", start="random")
    unlearner, state = start(problem, **weights, learning_rate=1e-2, projector_learning_rate=3e-2)
    step = jax.jit(lambda state, batch: unlearner.step(None, state, batch)[0])
    state = unlearner._measure(None, step(state, unlearner.draws(state).draw(state, 0, 0)), None)[0]
    importance, batch = state.opt_state[0].holding_weight["network"], unlearner.draws(state).draw(state, 1, 0)
    forget, companion = batch.both
    b_f, b_a = len(forget.y), len(companion.y)
    assert (b_f, b_a) == (8, 16)
    assert float(forget.weight.sum() + companion.weight.sum()) == 24  # no padding here

    def ce(logits, label):
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(label)), label])

    def objective(params):
        parts = wrappers.unwrap(state.model.replace(params=params))
        head = params["network"]["head"]
        projected = parts.wrapper.project(parts.own, wrappers.features(parts.model, companion.x))
        deletion = -ce(parts.model(forget.x), forget.y)  # without the projector
        keeping = ce(projected @ head["kernel"] + head["bias"][None], companion.target)  # through it
        net = 0.99 * jnp.sum(jnp.abs(head["kernel"])) + 0.01 * jnp.sum(head["kernel"] ** 2)
        moved = jax.tree.map(jnp.subtract, params["network"], problem.model.params)
        held = sum(jax.tree.leaves(jax.tree.map(lambda i, d: jnp.sum(i * d**2), importance, moved)))
        share = (deletion * b_f + keeping * b_a) / (b_f + b_a)
        return share + 0.7 * jnp.mean(aligned(state, params)) + 0.05 * net + 300 / 2 * held

    gradient = _tree.flatten_paths(jax.jit(jax.grad(objective))(state.model.params))
    before, after = (_tree.flatten_paths(one.model.params) for one in (state, step(state, batch)))
    for path, leaf in before.items():
        rate = 1e-2 if path.startswith("network/") else 3e-2
        rate = 0.0 if path in ("projector/mean", "projector/var") else rate
        scale = rate * float(jnp.abs(gradient[path]).max())
        np.testing.assert_allclose(leaf - after[path], rate * gradient[path], atol=1e-3 * scale + 1e-7, err_msg=path)


def test_importance_is_measured_once_after_two_steps():
    seen = []

    def look(event):
        seen.append(np.asarray(event.state.inner.opt_state[0].holding_weight["network"]["first"]["kernel"]))

    settings = config(max_passes=3, learning_rate=1e-6)
    result = loop.run(tiny_problem(), method=SPEC, config=settings, key=jax.random.key(0), callback=look)
    assert result.steps == len(seen) == 2 + 1 + 3  # measuring counts as a step
    assert [bool(held.any()) for held in seen] == [False, False, True, True, True, True]
    assert all(np.array_equal(held, seen[2]) for held in seen[3:])


def test_statistics_of_the_projector_stay_and_the_rest_learns():
    problem = tiny_problem()
    settings = config(start="random", returned="projected", max_passes=3)
    result = loop.run(problem, method=SPEC, config=settings, key=jax.random.key(1))
    _, state = start(problem, start="random")
    own = result.model.params["projector"]
    assert set(own) == set(Projector(dim=16, width=6, residual=False).shapes())
    assert float(own["mean"].std()) > 0
    assert np.all(np.asarray(own["var"]) > 0)
    assert not np.allclose(own["outer_kernel"], state.model.params["projector"]["outer_kernel"])
    assert result.model.spec.head == ("network", "head")


@pytest.mark.parametrize("returned", ["network", "projected"])
def test_what_is_returned_is_what_the_stopping_rule_looks_at_and_both_ways_are_counted(returned):
    problem = tiny_problem()
    unlearner, state = start(problem, returned=returned)
    own = state.model.params["projector"]
    head = problem.model.params["head"]["kernel"]
    aside = 1e4 * np.linalg.lstsq(np.asarray(head).T, np.eye(5)[4], rcond=None)[0]  # class 4 for whatever comes
    turned = {**own, "outer_bias": own["outer_bias"] + aside.astype(np.float32)}
    state = dataclasses.replace(state, model=state.model.replace(params={**state.model.params, "projector": turned}))
    real = np.asarray(state.forget.weight) > 0
    others = int(np.sum((np.asarray(state.forget.y) != 4)[real]))
    assert others > 0
    assert unlearner.extras(state)["forgotten"] == {"network": 0, "projected": others}
    answers = unlearner.finish(state)(problem.forget.x).argmax(axis=1)
    assert (np.asarray(answers) == 4).all() == (returned == "projected")


def test_published_is_through_a_random_projector():
    ours, published = SPEC.Config(), SPEC.Config.published()
    assert (ours.start, ours.returned, ours.importance, ours.forget_loss) == (
        "identity",
        "network",
        "per_example",
        "margin",
    )
    assert (published.start, published.returned, published.importance, published.forget_loss) == (
        "random",
        "projected",
        "batch_mean",
        "cross_entropy",
    )
    assert published.forget_batch == published.companion_batch == 128
    assert published.targets == "published"


def test_the_projector_is_batch_norm_between_two_layers():
    rng = np.random.default_rng(1)
    projector = Projector(dim=4, width=3, residual=False)
    own = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in projector.shapes().items()}
    x = rng.normal(size=(50, 4))
    own = projector.measured(own, jnp.asarray(x))
    inner = x @ np.asarray(own["inner_kernel"]) + np.asarray(own["inner_bias"])
    inner = (inner - inner.mean(0)) / np.sqrt(inner.var(0) + 1e-5) * np.asarray(own["scale"]) + np.asarray(own["bias"])
    expected = np.maximum(inner, 0) @ np.asarray(own["outer_kernel"]) + np.asarray(own["outer_bias"])
    np.testing.assert_allclose(projector.project(own, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
    added = dataclasses.replace(projector, residual=True).project(own, jnp.asarray(x))
    np.testing.assert_allclose(added, expected + x, rtol=1e-4, atol=1e-5)


def test_a_network_with_a_projector_is_kept_and_read_again(tmp_path):
    model = network()
    arguments = {"dim": 256, "width": 5, "residual": True}
    wrapped = wrappers.wrap(model, "projector", arguments, Projector(**arguments).init(jax.random.key(0)))
    x = jnp.linspace(0, 1, 3 * 64).reshape(3, 8, 8, 1)
    np.testing.assert_allclose(wrapped(x), model(x), atol=1e-4)
    checkpoint.save(tmp_path / "c", wrapped)
    again = checkpoint.load(tmp_path / "c", models.from_recipe)
    np.testing.assert_array_equal(again(x), wrapped(x))


def test_embeddings_of_another_length_keep_their_angles():
    rng = np.random.default_rng(2)
    given, head = rng.normal(size=(5, 12)), rng.normal(size=(5, 7))
    anchors = structguard.embedded(given, head)
    assert anchors.shape == (5, 7)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(anchors @ anchors.T, unit @ unit.T, atol=1e-6)
    rows = head / np.linalg.norm(head, axis=1, keepdims=True)
    for seed in range(20):  # no other rotation is nearer to the head
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))[0]
        assert (anchors * rows).sum() >= (anchors @ turn * rows).sum()
    same = structguard.embedded(rng.normal(size=(5, 7)) * 3, head)
    np.testing.assert_allclose(np.linalg.norm(same, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((4, 3)), r"anchors must have one row for each of the 5 classes; got shape \(4, 3\)"),
        (np.ones(5), r"got shape \(5,\)"),
        (np.eye(5)[[0, 1, 1, 2, 3]] * [[1], [1], [0], [1], [1]], "row 2 is not"),
        (np.where(np.eye(5) > 0, np.nan, 1.0), "anchors must be finite and not zero; row 0 is not"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        structguard.embedded(rows, np.ones((5, 7)))


def test_given_embeddings_and_prototypes_take_the_head_rows_place():
    problem = tiny_problem()
    given = np.random.default_rng(0).normal(size=(5, 16))
    with_them = dataclasses.replace(problem, artefacts={"anchors": given})
    np.testing.assert_allclose(start(with_them)[1].anchors, structguard.embedded(given, np.ones((5, 16))), atol=1e-6)
    _, state = start(problem, anchor_source="prototypes")
    features = wrappers.features(problem.model, state.companion.x[:16])
    target = np.asarray(state.companion.target[:16])
    for label in set(target.tolist()):
        mean = np.asarray(features)[target == label].mean(0)
        np.testing.assert_allclose(state.anchors[label], mean / np.linalg.norm(mean), atol=1e-5)
    head = problem.model.params["head"]["kernel"].T
    for label in set(range(5)) - set(target.tolist()):
        np.testing.assert_allclose(state.anchors[label], head[label] / np.linalg.norm(head[label]), atol=1e-5)
