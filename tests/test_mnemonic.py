"""The mnemonic code's edit against closed forms; which classes a request asks for; codes before and after it."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, artefacts, inference, loop, losses, models, proxies
from jaxunlearn._types import Batch, Model, ModelSpec, Problem, Recipe
from jaxunlearn.methods import _mnemonic as engine, mnemonic, mnemonic_free
from jaxunlearn.testing import tiny_problem

D, C = 4, 6
KEY = jax.random.key(0)


def linear(params, model_state, x, *, train=False, rngs=None):
    return x @ params["w"] + params["b"][None], model_state


def model_of(w, b=0.0):
    w = jnp.asarray(w, jnp.float32)
    params = {"w": w, "b": jnp.zeros(w.shape[1]) + b}
    spec = ModelSpec(num_classes=w.shape[1], input_shape=(w.shape[0],))
    return Model(params=params, model_state={}, apply_fn=linear, spec=spec)


def random_model(seed=0):
    return model_of(np.random.default_rng(seed).normal(size=(D, C)))


def with_codes(model, each=3, classes=C):
    """Return codes, and an artefact that says that each of the first classes had so many training images."""
    codes = proxies.draw_codes(jax.random.key(5), model)
    return codes, proxies.codes_artefact(model, codes, np.repeat(np.arange(classes), each), mix=0.2)


def request(model, labels, artefact, each=3):
    y = np.repeat(labels, each)
    x = jax.random.uniform(jax.random.key(1), (len(y), D))
    return Problem(model=model, forget=Batch.of(x, y), artefacts={"codes": artefact})


def run(problem, **settings):
    return loop.run(problem, method=mnemonic.SPEC, config=mnemonic.Config(**settings), key=KEY)


def delta(forget, rest, numbers=(1, C - 1), lambda1=1e-2, lambda2=1e4):
    return engine.perturbation(np.asarray(forget), np.asarray(rest), numbers, lambda1, lambda2)


# --- the perturbation --------------------------------------------------------


def test_nothing_asked_changes_no_bit():
    model = random_model()
    result = run(request(model, [2], with_codes(model)[1]), lambda1=0.0)
    assert _tree.digest(result.model.params) == _tree.digest(model.params)
    assert (result.steps, result.stop_reason) == (0, "completed")


def test_no_parameter_moves_by_more_than_lambda2():
    rng = np.random.default_rng(0)
    forget, rest = 10.0 ** rng.uniform(-30, 5, (2, 1000))
    found = delta(forget, rest, lambda1=1e-3, lambda2=0.5)
    assert found.max() == pytest.approx(0.5, rel=1e-12)
    assert found.min() >= 0
    rho = ((1e-16 + forget) / 1) / ((1e-16 + rest) / (C - 1))
    np.testing.assert_allclose(found, 0.5 * rho / rho.max(), rtol=1e-9)


def test_the_two_candidates_are_mirror_images():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=500), jnp.float32)
    moves = np.random.default_rng(1).uniform(size=500) * 1e-3
    plus, minus = (np.asarray(engine._moved(leaf, sign * moves), np.float64) for sign in (1, -1))
    np.testing.assert_allclose(plus + minus, 2 * np.asarray(leaf, np.float64), atol=np.spacing(np.float32(4)))
    assert not np.array_equal(plus, minus)


def test_equal_sides_move_by_the_smaller_lambda():
    g = np.array([1e-8, 2.0, 30.0])
    np.testing.assert_allclose(delta(g, g, (3, 3), 1e-3, 5.0), 1e-3, rtol=1e-12)
    np.testing.assert_allclose(delta(g, g, (3, 3), 1e-3, 1e-4), 1e-4, rtol=1e-12)


def test_an_insensitive_parameter_moves_by_the_ratio_of_numbers():
    np.testing.assert_allclose(delta([0.0, 0.0], [0.0, 0.0], (1, 9), 1e-3), 9e-3, rtol=1e-12)


def test_thirty_decades_neither_overflow_nor_drown():
    found = delta([1e25, 1e-30, 0.0], [1e-12, 1e-30, 1e25], (1, 9), 1e-5, 1e3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], 1e3, rtol=1e-9)
    assert 0 < found[2] < 1e-70


def test_what_is_infinite_or_undefined_has_a_place():
    found = delta([np.inf, 1.0, 4.0, np.nan, np.inf], [1.0, np.inf, 1.0, 1.0, np.inf], (1, 1), 1.0, 1e9)
    np.testing.assert_allclose(found, [4.0, 0.0, 4.0, 1.0, 1.0], rtol=1e-12)  # largest finite, none (MNEM-5), own, 1, 1
    np.testing.assert_allclose(delta([np.inf], [1.0], (1, 1), 1.0, 1e9), 1.0)
    assert delta(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


def test_squared_gradients_of_a_linear_model_are_known():
    model, rng = random_model(), np.random.default_rng(1)
    x, y = rng.uniform(size=(9, D)).astype(np.float32), rng.integers(0, C, 9)
    found = engine.squared_gradients(model, engine.Examples(x, y), label="codes")
    p = np.asarray(jax.nn.softmax(model(jnp.asarray(x))), np.float64)
    error = np.square(p - np.eye(C)[y])
    np.testing.assert_allclose(found["w"], np.square(x.astype(np.float64)).T @ error, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found["b"], error.sum(0), rtol=1e-4, atol=1e-9)
    assert all(value.dtype == np.float64 for value in found.values())


# --- the edit ----------------------------------------------------------------


@pytest.mark.parametrize("classes", [C, C - 1], ids=["head of C", "wider head, MNEM-4"])
def test_the_edit_is_the_formula_and_the_better_sign_is_taken(classes):
    """Outputs that no training image has are in the softmax, and have no code."""
    model = random_model()
    codes, artefact = with_codes(model, classes=classes)
    result = run(request(model, [1, 4], artefact), lambda1=0.03, lambda2=2.0)
    codes, gone = codes[:classes], np.isin(np.arange(classes), [1, 4])
    grads = [
        jax.grad(lambda p, x, y: losses.cross_entropy(linear(p, {}, x)[0], y)[0])(
            model.params, codes[c][None], jnp.array([c])
        )
        for c in range(classes)
    ]
    candidates = []
    for sign in (1, -1):
        params = {}
        for name in ("w", "b"):
            squares = np.square([np.asarray(grad[name], np.float64) for grad in grads])
            rho = ((1e-16 + squares[gone].sum(0)) / 2) / ((1e-16 + squares[~gone].sum(0)) / (classes - 2))
            s = min(0.03, 2.0 / rho.max())
            params[name] = jnp.asarray(np.asarray(model.params[name]) + sign * s * rho, jnp.float32)
        right = np.asarray(jnp.argmax(linear(params, {}, codes)[0], axis=1)) == np.arange(classes)
        candidates.append((params, 1 - right[gone].mean() + right[~gone].mean()))
    assert result.extras["scores"] == {"plus": candidates[0][1], "minus": candidates[1][1]}
    best = candidates[0] if candidates[0][1] > candidates[1][1] else candidates[1]
    for name in ("w", "b"):
        np.testing.assert_allclose(result.model.params[name], best[0][name], rtol=1e-4, atol=1e-6)


def test_a_tie_goes_to_minus():
    model = model_of(np.zeros((D, C)), b=np.linspace(0, 50, C))  # sure of the last class whatever comes
    result = run(request(model, [0], with_codes(model)[1]), lambda1=1e-3, lambda2=1e-3)
    assert result.extras["scores"]["plus"] == result.extras["scores"]["minus"]
    assert (np.asarray(result.model.params["b"]) <= np.asarray(model.params["b"])).all()
    assert (np.asarray(result.model.params["b"]) < np.asarray(model.params["b"])).any()


@pytest.mark.parametrize("name", ["mnemonic", "mnemonic-free"])
def test_every_kind_of_parameter_moves_and_running_statistics_stay(name):
    problem = tiny_problem(needs=("codes",))
    spec = {"mnemonic": mnemonic.SPEC, "mnemonic-free": mnemonic_free.SPEC}[name]
    more = dict(whole_class=True) if name == "mnemonic" else dict(proxies=32)
    model = loop.run(problem, method=spec, config=spec.Config(lambda1=1e-2, lambda2=1.0, **more), key=KEY).model
    before = _tree.flatten_paths(problem.model.params)
    for path, leaf in _tree.flatten_paths(model.params).items():
        assert not np.array_equal(leaf, before[path]), path
        signs = np.sign(np.asarray(leaf) - np.asarray(before[path]))
        assert len(set(signs.ravel()) - {0.0}) == 1, path
    assert _tree.digest(model.model_state) == _tree.digest(problem.model.model_state)


# --- codes and requests ------------------------------------------------------


def test_codes_are_one_a_class_in_the_box_and_the_network_proper_sees_them_as_drawn():
    model = models.from_recipe(models.recipe("digits_cnn"), abstract=True)
    codes, recipe = proxies.draw_codes(KEY, model), model.spec.recipe
    assert codes.shape == (10, 8, 8, 1)
    assert codes.dtype == np.float32
    drawn = (codes - recipe.mean[0]) / recipe.std[0]
    assert (drawn > -1e-6).all()
    assert (drawn < 1 + 1e-6).all()
    assert drawn.std() == pytest.approx(np.sqrt(1 / 12), rel=0.1)
    np.testing.assert_array_equal(codes, proxies.draw_codes(KEY, model))
    assert len(np.unique(codes.reshape(10, -1)[:, 0])) == 10
    bare = random_model()
    wide = bare.replace(spec=dataclasses.replace(bare.spec, box=(-1.0, 3.0), recipe=Recipe(arch="a")))
    assert proxies.draw_codes(KEY, wide).min() < 0
    assert proxies.draw_codes(KEY, wide).max() > 1


def test_the_codes_that_are_left_serve_the_next_request(tmp_path):
    model = random_model()
    codes, artefact = with_codes(model)
    first = run(request(model, [2], artefact), lambda1=1e-3)
    (left,) = first.extras["artefacts"]
    artefacts.save(tmp_path / "codes.safetensors", left)
    left = artefacts.load(tmp_path / "codes.safetensors", kind="codes", model=first.model)
    assert left.arrays["classes"].tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(left.arrays["codes"], np.delete(codes, 2, axis=0))
    second = run(request(first.model, [5], left), lambda1=1e-3)
    assert second.extras["artefacts"][0].arrays["classes"].tolist() == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="there is no code of class 2: no training image had it, or it was forg"):
        run(request(first.model, [2], left))


def test_a_part_of_a_class_is_refused_unless_the_whole_class_is_meant():
    model = random_model()
    problem = request(model, [1], with_codes(model, each=7)[1])
    with pytest.raises(
        ValueError, match=r"holds 3 of the 7 training instances of class 1: ask for all of them \(class:1\)"
    ):
        run(problem)
    assert run(problem, whole_class=True).stop_reason == "completed"
    with pytest.raises(ValueError, match="the request forgets all 6 classes that have codes: none is left to keep"):
        run(request(model, list(range(C)), with_codes(model)[1]))


def test_without_codes_it_says_how_to_get_them_and_codes_of_another_network_are_refused():
    model = random_model()
    with pytest.raises(
        ValueError, match=r"'mnemonic' needs 'codes'.*jaxunlearn train --codes P.*mnemonic-free does without"
    ):
        loop.run(tiny_problem(), method="mnemonic", key=KEY)
    with pytest.raises(ValueError, match=r"the artefact \(codes\) was made from another model"):
        run(request(random_model(1), [1], with_codes(model)[1]))


def test_a_code_that_training_never_showed_stands_for_nothing():
    model = random_model()
    codes, artefact = with_codes(model, classes=4)
    assert artefact.arrays["classes"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(artefact.arrays["codes"], codes[:4])
    with pytest.raises(ValueError, match="there is no code of class 5: no training image had it"):
        run(request(model, [5], artefact))
    with pytest.raises(ValueError, match="the request forgets all 4 classes that have codes: none is left to keep"):
        run(request(model, [0, 1, 2, 3], artefact))


def test_codes_that_do_not_fit_are_refused():
    model = random_model()
    codes = with_codes(model)[0]
    for wrong, labels, message in (
        (codes[:, :2], [0], r"codes must have shape \(batch, 4\)"),
        (codes[:5], [0], "codes must be one a class, 6; got 5"),
        (codes, [6], "labels must be labels from 0 to 5; got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            proxies.codes_artefact(model, wrong, labels, mix=0.1)


# --- without codes -----------------------------------------------------------


def test_stand_ins_for_the_rest_are_what_the_user_has(monkeypatch):
    problem, seen = tiny_problem(), []
    monkeypatch.setattr(engine, "edit", lambda model, forget, rest, hparams, **_: seen.append((forget, rest)) or None)
    method = mnemonic_free.make(mnemonic_free.Config(proxies=8))
    made = artefacts.Artefact(
        kind="proxies", version=1, arrays={"x": np.full((5, 3, 3, 1), 0.25)}, meta={}, model_digest=""
    )
    for changes in ({}, dict(public=None), dict(public=None, artefacts={"proxies": made})):
        method.prepare(KEY, dataclasses.replace(problem, **changes), {})
    (forget, public), (_, cut), (_, inverted) = seen
    np.testing.assert_array_equal(forget.x, problem.forget.x)
    np.testing.assert_array_equal(forget.y, problem.forget.y)
    assert len(public.y) == len(cut.y) == 8
    given = np.asarray(problem.public)
    assert all((image == given).all(axis=(1, 2, 3)).any() for image in public.x)
    np.testing.assert_array_equal(inverted.x, made.arrays["x"])
    np.testing.assert_array_equal(public.y, np.argmax(problem.model(jnp.asarray(public.x)), axis=1))


def test_the_best_of_several_strengths_is_kept():
    problem = tiny_problem()
    forget = engine.Examples(np.asarray(problem.forget.x), np.asarray(problem.forget.y))
    x = np.asarray(problem.public)
    rest = engine.Examples(x, np.argmax(problem.model(x), axis=1))

    def edited(lambda1: float, tries: int = 1) -> engine.State:
        return engine.edit(problem.model, forget, rest, {"lambda1": lambda1, "lambda2": 10.0}, label="", tries=tries)

    singles = [edited(1e-4 * engine.RATIO**n) for n in range(10)]
    scores = [single.scores.max() for single in singles]
    assert max(scores) > scores[0], "the first is already the best: nothing is chosen"
    expected = singles[int(np.argmax(scores))]
    best = edited(1e-4, tries=10)
    assert best.lambda1 == expected.lambda1
    np.testing.assert_array_equal(best.scores, expected.scores)
    chex.assert_trees_all_equal(best.model.params, expected.model.params)


def test_an_edit_whose_answers_are_not_finite_is_not_the_best(monkeypatch):
    """Where logits are NaN nothing is forgotten, although argmax then names class 0."""
    monkeypatch.setattr(engine, "RATIO", 1e60)
    problem = tiny_problem()
    x = np.concatenate([np.asarray(problem.forget.x), np.asarray(problem.public)])
    answers = np.argmax(problem.model(x), axis=1)
    forget, rest = (engine.Examples(x[of], answers[of]) for of in (answers != 0, answers == 0))
    state = engine.edit(problem.model, forget, rest, {"lambda1": 1e-40, "lambda2": 1e60}, label="", tries=2)
    assert state.lambda1 == 1e-40
    assert np.isfinite(inference.logits(state.model, x)).all()
