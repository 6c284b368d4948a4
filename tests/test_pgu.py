"""PGU: protected directions in closed form, the published rank rule, the loss by hand, requests in sequence."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, curvature, loop
from jaxunlearn._types import Batch, Model, ModelSpec, Problem
from jaxunlearn.methods import pgu
from jaxunlearn.testing import small_config, tiny_problem

D, C = 6, 3
KEY = jax.random.key(0)


def linear(params, model_state, x, *, train=False, rngs=None):
    return x @ params["layer"]["kernel"] + params["layer"]["bias"][None], model_state


def taps(params, model_state, x):
    return {"layer:in": x, "layer": linear(params, model_state, x)[0]}


def model_of(kernel, taps_fn=taps):
    kernel = jnp.asarray(kernel)
    params = {"layer": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], kernel.dtype)}}
    spec = ModelSpec(num_classes=kernel.shape[1], input_shape=(kernel.shape[0],), box=(-9.0, 9.0), taps_fn=taps_fn)
    return Model(params=params, model_state={}, apply_fn=linear, spec=spec)


def request(model, x, k, **kept):
    """Return a request to forget the first k of x, which are all in the moments."""
    label = np.asarray(jnp.argmax(model(jnp.asarray(x[:k])), axis=-1))
    artefacts = {"moments": curvature.moments_artefact(model, x)} | kept
    return Problem(model=model, forget=Batch.of(x[:k], label), artefacts=artefacts)


def run(problem, **settings):
    return loop.run(problem, method=pgu.SPEC, config=pgu.Config(**settings), key=KEY)


def kernel_of(model):
    return np.asarray(model.params["layer"]["kernel"])


def three_directions():
    """Return a model and inputs in float64: two to forget, twenty that span three directions of six."""
    rng = np.random.default_rng(0)
    rest = rng.normal(size=(20, 3)) * [3.0, 2.0, 0.7] @ np.linalg.qr(rng.normal(size=(D, D)))[0][:3]
    return model_of(rng.normal(size=(D, C))), np.concatenate([rng.normal(size=(2, D)), rest])


# --- what is protected -------------------------------------------------------


def test_the_projection_is_one():
    rng = np.random.default_rng(1)
    basis, k = pgu.protected(np.cov(rng.normal(size=(D, 50))), 0.5)
    p = basis[:, :k] @ basis[:, :k].T
    np.testing.assert_allclose(p, p.T, atol=1e-10)
    np.testing.assert_allclose(p @ p, p, atol=1e-10)
    np.testing.assert_allclose(np.trace(p), k, atol=1e-10)
    assert 1 < k < D


@pytest.mark.parametrize(
    ("gamma", "crossing", "below"),
    [(0.0, 1, 0), (0.49, 1, 0), (0.5, 2, 1), (0.74, 2, 1), (0.76, 3, 2), (0.99, 4, 3), (1.0, 4, 4)],
)
def test_the_rank_counts_roots_and_the_direction_that_crosses(gamma, crossing, below):
    moments = np.diag([1.0, 16.0, 1.0, 4.0])  # roots 4, 2, 1, 1
    assert pgu.protected(moments, gamma)[1] == crossing
    assert pgu.protected(moments, gamma, rank="below")[1] == below


def test_gamma_one_protects_every_direction_however_the_sums_round():
    rng = np.random.default_rng(0)
    for n in range(20, 120):  # and five that nothing reads
        moments = np.diag(np.concatenate([np.square(rng.uniform(size=n)), np.zeros(5)]))
        assert pgu.protected(moments, 1.0)[1] == pgu.protected(moments, 1.0, rank="below")[1] == n + 5


def test_where_nothing_remains_nothing_is_protected():
    assert pgu.protected(np.zeros((3, 3)), 0.95)[1] == 0


def test_a_negative_eigenvalue_is_nothing_or_as_published_energy():
    moments = np.diag([4.0, 1.0, -9.0])
    with pytest.warns(
        UserWarning, match=r"moments of conv have eigenvalues down to -2\.2e\+00 of the largest.*as zero"
    ):
        basis, k = pgu.protected(moments, 0.9, name="conv")
    np.testing.assert_allclose(np.abs(basis[:, :k]), np.eye(3)[:, :2])
    with pytest.warns(UserWarning, match="taken as absolute"):
        basis, k = pgu.protected(moments, 0.4, negative="absolute")
    np.testing.assert_allclose(np.abs(basis[:, :k]), np.eye(3)[:, 2:])
    pgu.protected(np.diag([4.0, 1.0, -1e-12]), 0.9)  # rounding: no warning


def test_what_the_rest_reads_does_not_see_the_edit():
    with jax.enable_x64(True):
        model, x = three_directions()
        result = run(request(model, x, 2), gamma=0.95, learning_rate=1.0)
        change = kernel_of(result.model) - kernel_of(model)
        assert result.extras["protected"] == {"layer/kernel": [3, D]}
        assert np.abs(change).max() > 1e-2
        np.testing.assert_allclose(x[2:] @ change, 0, atol=1e-10 * np.abs(x).max() * np.abs(change).max())
        before, after = (
            np.asarray(jax.nn.softmax(m(x[:2])))[[0, 1], result_labels(model, x)] for m in (model, result.model)
        )
        assert (after < before).all()


def result_labels(model, x):
    return np.asarray(jnp.argmax(model(jnp.asarray(x[:2])), axis=-1))


def test_the_published_rank_leaves_the_crossing_direction_open():
    with jax.enable_x64(True):
        model, x = three_directions()
        result = run(request(model, x, 2), gamma=0.95, learning_rate=1.0, rank="below", max_passes=5)
        assert result.extras["protected"] == {"layer/kernel": [2, D]}
        assert np.abs(x[2:] @ (kernel_of(result.model) - kernel_of(model))).max() > 1e-2


def test_gamma_one_changes_nothing_at_all():
    problem = tiny_problem(needs=("moments",))
    result = loop.run(problem, method=pgu.SPEC, config=small_config(pgu.SPEC, gamma=1.0), key=KEY)
    assert result.steps == 8
    assert _tree.digest(result.model.params) == _tree.digest(problem.model.params)


def test_all_but_the_kernels_is_bit_identical():
    problem = tiny_problem(needs=("moments",))
    model = loop.run(problem, method=pgu.SPEC, config=small_config(pgu.SPEC, gamma=0.5), key=KEY).model
    for path, leaf in _tree.flatten_paths(model.params).items():
        same = np.array_equal(leaf, _tree.flatten_paths(problem.model.params)[path])
        assert same == (not path.endswith("kernel")), path
    assert _tree.digest(model.model_state) == _tree.digest(problem.model.model_state)


# --- the loss and the step ---------------------------------------------------


def term(logits, label, **changes):
    settings = dict(offset=0.05, weight=1.0, entropy_weight=0.0, entropy="spread") | changes
    return pgu.forget_loss(logits, label, **settings)


def test_the_first_term_is_bounded_and_its_gradient_is_known():
    logits, label = 4 * jax.random.normal(KEY, (50, C)), jnp.zeros(50, jnp.int32)
    assert float(jnp.max(term(logits, label))) <= -np.log(0.05)
    np.testing.assert_allclose(term(jnp.array([[60.0, 0.0, 0.0]]), label[:1]), -np.log(0.05), rtol=1e-6)
    p = np.asarray(jax.nn.softmax(logits))[:, 0].astype(np.float64)
    grad = jax.grad(lambda z: jnp.sum(term(z, label)))(logits)
    np.testing.assert_allclose(np.asarray(grad)[:, 0], p * (1 - p) / (1 - p + 0.05), atol=1e-5)


def test_a_network_that_is_too_sure_hardly_moves():
    gaps = jnp.array([0.0, 3.0, 6.0, 9.0, 12.0])
    logits = jnp.stack([gaps, jnp.zeros(5)], axis=1)
    grad = jax.grad(lambda z: jnp.sum(term(z, jnp.zeros(5, jnp.int32))))(logits)
    np.testing.assert_allclose(grad[:, 0], [0.45, 0.46, 0.047, 0.0025, 0.00012], rtol=0.06)


@pytest.mark.parametrize("entropy", ["spread", "others"])
def test_the_entropy_terms_are_those_of_the_two_scripts(entropy):
    logits = np.random.default_rng(2).normal(size=(4, C)) * 2
    label = np.array([0, 1, 2, 1])
    found = term(jnp.asarray(logits), jnp.asarray(label), weight=0.0, entropy_weight=1.0, entropy=entropy)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if entropy == "spread":
        wanted = (p * np.log(p)).sum(1)
    else:
        others = np.array([np.delete(row, own) for row, own in zip(p, label, strict=True)])
        others /= others.sum(1, keepdims=True)
        wanted = -(others * np.log(others)).sum(1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_one_step_spreads_the_prediction_or_sharpens_the_others():
    rng = np.random.default_rng(3)
    model, x = model_of(rng.normal(size=(D, C)).astype(np.float32)), rng.normal(size=(4, D)).astype(np.float32)

    def entropies(model):
        z = np.asarray(model(x[:1]), np.float64)[0]
        p = np.exp(z) / np.exp(z).sum()
        q = np.delete(p, int(np.argmax(np.asarray(model_of(kernel_of(start))(x[:1])))))
        q = q / q.sum()
        return -(p * np.log(p)).sum(), -(q * np.log(q)).sum()

    start = model
    settings = dict(forget_weight=0.0, entropy_weight=1.0, learning_rate=0.05, gamma=0.0, max_passes=1)
    before = entropies(model)
    assert entropies(run(request(model, x, 1), **settings).model)[0] > before[0]
    assert entropies(run(request(model, x, 1), entropy="others", **settings).model)[1] < before[1]


def test_the_rate_falls_exponentially_over_the_budget_and_the_order_changes_every_pass():
    problem = tiny_problem(needs=("moments",))
    settings = dict(gamma=1.0, learning_rate=0.08, final_learning_rate=0.01, max_passes=3, forget_batch=4)
    result = loop.run(problem, method=pgu.SPEC, config=pgu.Config(**settings), key=KEY)
    np.testing.assert_allclose(result.history["learning_rate"], [0.04, 0.04, 0.02, 0.02, 0.01, 0.01], rtol=1e-5)
    draws = pgu.PGU(pgu.Config(forget_batch=4)).draws(result.state.inner)
    seen = [draws.draw(result.state.inner, jnp.int32(t), 0).index.tolist() for t in range(4)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(8))
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_weight_decay_is_projected_too():
    with jax.enable_x64(True):
        model, x = three_directions()
        result = run(request(model, x, 2), forget_weight=0.0, entropy_weight=0.0, weight_decay=1.0, max_passes=1)
        basis, k = pgu.protected(x[2:].T @ x[2:], 0.95)
        free = basis[:, k:] @ basis[:, k:].T
        rate = float(result.history["learning_rate"][0])
        np.testing.assert_allclose(
            kernel_of(result.model), kernel_of(model) - rate * free @ kernel_of(model), atol=1e-9
        )


# --- when it stops -----------------------------------------------------------


def test_the_run_ends_at_the_pass_nearer_to_the_reference():
    problem, ends = tiny_problem(k=16, needs=("moments",)), {}
    settings = dict(gamma=0.3, learning_rate=1.0, final_learning_rate=1.0, max_passes=60, forget_batch=16)
    free = loop.run(problem, method=pgu.SPEC, config=pgu.Config(**settings), key=KEY)
    accuracy = 1 - free.history["forgotten_share"]  # after each pass
    for reference in (0.97, 0.6, 0.45):
        result = loop.run(
            problem, method=pgu.SPEC, config=pgu.Config(reference_accuracy=reference, **settings), key=KEY
        )
        first = int(np.argmax(accuracy < reference))
        assert result.stop_reason == "completed"
        assert result.steps == first + 1
        nearest = min(np.concatenate([[1.0], accuracy])[first : first + 2], key=lambda a: abs(a - reference))
        ends[reference] = 1 - result.forgotten.mean()
        assert ends[reference] == pytest.approx(nearest)
    assert ends[0.97] == 1.0  # that of the pass before, which was nearer


def test_a_network_below_the_reference_already_is_left_alone():
    problem = tiny_problem(needs=("moments",))
    forget = problem.forget._replace(y=problem.forget.y.at[:4].set((problem.forget.y[:4] + 1) % 5))
    config = pgu.Config(reference_accuracy=0.7)
    result = loop.run(dataclasses.replace(problem, forget=forget), method=pgu.SPEC, config=config, key=KEY)
    assert (result.steps, result.stop_reason, int(result.forgotten.sum())) == (0, "completed", 4)
    assert _tree.digest(result.model.params) == _tree.digest(problem.model.params)


# --- one request after another -----------------------------------------------


def test_two_requests_leave_the_moments_of_what_remains():
    model, x = three_directions()
    model, x = model_of(kernel_of(model).astype(np.float32)), x.astype(np.float32)
    first = run(request(model, x, 2), gamma=1.0)
    (left,) = first.extras["artefacts"]
    label = np.asarray(jnp.argmax(model(x[5:8]), axis=-1))
    second = run(Problem(model=first.model, forget=Batch.of(x[5:8], label), artefacts={"moments": left}), gamma=1.0)
    assert _tree.model_digest(second.model) == _tree.model_digest(model)
    rest = np.delete(x, [0, 1, 5, 6, 7], axis=0).astype(np.float64)
    (left,) = second.extras["artefacts"]
    np.testing.assert_allclose(
        curvature.moment(left, "layer/kernel"), rest.T @ rest, atol=1e-10 * (rest.T @ rest).max()
    )
    with pytest.raises(ValueError, match="image 0 is not among the 17 images that the second moments are of"):
        run(Problem(model=second.model, forget=first_of(x), artefacts={"moments": left}))


def first_of(x):
    return Batch.of(x[:1], [0])


def test_what_remains_is_bound_to_the_new_model():
    problem = tiny_problem(needs=("moments",))
    result = loop.run(problem, method=pgu.SPEC, config=small_config(pgu.SPEC, gamma=0.3), key=KEY)
    (left,) = result.extras["artefacts"]
    assert left.model_digest == _tree.model_digest(result.model) != problem.artefacts["moments"].model_digest
    with pytest.raises(ValueError, match=r"the artefact \(moments\) was made from another model"):
        loop.run(dataclasses.replace(problem, model=result.model), method=pgu.SPEC, key=KEY)


# --- what is refused or said -------------------------------------------------


def test_what_is_missing_is_said_and_how_to_make_it():
    with pytest.raises(
        ValueError, match=r"'pgu' needs 'moments', which the problem does not have.*`jaxunlearn moments`"
    ):
        loop.run(tiny_problem(), method="pgu", key=KEY)
    problem = tiny_problem(needs=("moments",))
    blind = problem.model.replace(spec=dataclasses.replace(problem.model.spec, taps_fn=None))
    with pytest.raises(ValueError, match="'pgu' needs 'taps'"):
        loop.run(dataclasses.replace(problem, model=blind), method="pgu", key=KEY)


def test_layers_without_moments_stay_and_that_is_said():
    problem = tiny_problem()
    x = np.concatenate([problem.forget.x, problem.retain.x])
    artefact = curvature.moments_artefact(problem.model, x, layers=["head/*"])
    problem = dataclasses.replace(problem, artefacts={"moments": artefact})
    with pytest.warns(UserWarning, match="pgu leaves first/kernel as they are: there are no second moments"):
        model = loop.run(problem, method=pgu.SPEC, config=small_config(pgu.SPEC, gamma=0.3), key=KEY).model
    np.testing.assert_array_equal(model.params["first"]["kernel"], problem.model.params["first"]["kernel"])
    assert not np.array_equal(model.params["head"]["kernel"], problem.model.params["head"]["kernel"])


def test_published_is_the_instance_script():
    assert pgu.Config.published() == pgu.Config(rank="below", negative="absolute")
