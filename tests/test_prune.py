"""PRUNE: patches on linear pieces and on boxes in the features, and what their certificates promise."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _tree, artefacts, inference, loop, methods, patches, wrappers
from jaxunlearn._types import Batch, Model, ModelSpec, Problem
from jaxunlearn.adapters import from_linen
from jaxunlearn.methods import _prune_choice as choice, _prune_versions as versions
from jaxunlearn.methods.prune import Config
from tests.test_patches import exact, fully_connected, of, region_of

SPEC = methods.get("prune")
PROVED = {"certified"}


def forget(model: Model, x, goal="misclassify", **changes):
    """Forget some inputs, and return the result and its certificate."""
    y = inference.logits(model, x).argmax(axis=1)
    target = (y + 2) % model.spec.num_classes if goal == "relabel" else None
    problem = Problem(model=model, forget=Batch.of(x, y, target), goal=goal)
    result = loop.run(problem, method=SPEC, config=Config(**changes), key=jax.random.key(0))
    return result, patches.Certificate.from_artefact(result.extras["artefacts"][0])


@cache
def dense() -> Model:
    """Return a network whose pieces are large enough to look at."""
    return fully_connected(7, 4, 9, 8, 4)


@cache
def inputs(count: int) -> np.ndarray:
    return np.random.RandomState(3).rand(count, 4).astype(np.float32)


@cache
def pieces():
    return forget(dense(), inputs(4))


class Small(nn.Module):
    """A network for small images, with few features."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2), name="conv1")(x))
        x = nn.relu(nn.Conv(6, (3, 3), name="conv2")(x))
        return nn.Dense(4, name="head")(jnp.mean(x, axis=(1, 2)))


@cache
def small() -> Model:
    net = Small()
    params = jax.jit(net.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    params["head"] = {"kernel": 8 * params["head"]["kernel"], "bias": jnp.array([0.1, 0.3, 0.0, -0.1])}
    return from_linen(net, {"params": params}, input_shape=(8, 8, 1), num_classes=4, head=("head",))


@cache
def images(count: int) -> np.ndarray:
    rng = np.random.RandomState(0)
    smooth = rng.rand(count, 3, 3, 1)
    return np.asarray(jax.image.resize(smooth, (count, 8, 8, 1), "linear"), np.float32).clip(0, 1)


@cache
def boxes():
    return forget(small(), images(6), space="features")


def sampled(certificate, region, count=300):
    polytope = certificate.polytope(region)
    drawn = polytope.sample(np.random.RandomState(region), np.asarray(certificate.points[region], float), count, thin=4)
    return drawn[polytope.contains(drawn.astype(np.float32).astype(np.float64))].astype(np.float32)


def test_on_the_whole_piece_the_answer_is_the_new_one():
    result, certificate = pieces()
    assert result.stop_reason == "forgotten"
    assert set(result.extras["status"]) <= PROVED | {"forgotten without a patch"}
    for region in range(len(certificate.points)):
        points = sampled(certificate, region)
        assert len(points) > 250
        slope, shift = certificate.logits(dense(), region)
        np.testing.assert_allclose(exact(dense(), points), points.astype(float) @ slope.T + shift, atol=1e-9)
        own = result.model.params["patch"]
        support = np.asarray(certificate.wrapper.support(own, points))
        assert (support[:, region] == 1).all()
        alone = (support[:, region + 1 :] == 0).all(axis=1)
        answers = inference.logits(result.model, points).argmax(axis=1)
        assert (answers[alone] == certificate.targets[certificate.group[region]]).all()
        assert alone.mean() > 0.9
    np.testing.assert_array_equal(np.linalg.norm(certificate.own["normals"], axis=-1).max(axis=1).round(6), 1)


def test_the_certified_piece_is_the_whole_linear_piece_less_what_rounding_takes():
    _, certificate = pieces()
    for region in range(len(certificate.points)):
        piece = region_of(dense(), certificate.points[region])
        points = piece.polytope.sample(np.random.RandomState(0), np.asarray(certificate.points[region], float), 400)
        assert certificate.polytope(region).contains(points).mean() > 0.98
        assert piece.polytope.contains(sampled(certificate, region).astype(float)).all()


def test_beyond_the_tube_nothing_changes_at_all():
    result, certificate = pieces()
    own, wrapper = {name: np.asarray(v) for name, v in certificate.own.items()}, certificate.wrapper
    rng = np.random.RandomState(0)
    x = rng.rand(20000, 4).astype(np.float32)
    violated = (own["normals"][None] @ x[:, None, :, None])[..., 0] - own["offsets"]
    beyond = (violated.max(axis=2) >= 1.01 / own["sharpness"]).all(axis=1)
    assert beyond.sum() > 3000
    before, after = inference.logits(dense(), x[beyond]), inference.logits(result.model, x[beyond])
    assert before.tobytes() == after.tobytes()
    # The formula alone, without the choice between the two, is 0 there too: K has room for rounding (trap 8).
    relu = lambda v: np.maximum(v, np.float32(0))
    p = np.einsum("bn,jcn->bjc", x[beyond], own["maps"]) + own["shifts"]
    steps = np.diff(p, axis=1, prepend=np.float32(0))
    down = -own["bounds"][None, :, None]
    assert np.abs(relu(steps + down) - relu(-steps + down)).max() == 0
    assert np.abs(steps).max() > 0.3 * own["bounds"].max()
    assert (np.asarray(wrapper.support(own, x[beyond])) == 0).all()
    # Outside the input box K is no bound, and still nothing changes (trap 3).
    far = (5 * x[beyond] - 2).astype(np.float32)
    free = (np.asarray(wrapper.support(own, far)) == 0).all(axis=1)
    assert free.any()
    assert inference.logits(dense(), far[free]).tobytes() == inference.logits(result.model, far[free]).tobytes()


def test_tau_bounds_the_change_and_is_nearly_reached():
    _, certificate = pieces()
    for region in range(len(certificate.points)):
        group = certificate.group[region]
        points = sampled(certificate, region).astype(float)
        change = np.abs(points @ certificate.own["maps"][group].T + certificate.own["shifts"][group]).max()
        assert change <= certificate.taus[group]
        assert change > 0.8 * certificate.taus[group]


def test_a_sharper_patch_changes_no_more():
    x = np.random.RandomState(1).rand(20000, 4).astype(np.float32)
    before = inference.logits(dense(), x).argmax(axis=1)
    shares = []
    for gamma in (0.1, 1.0, 10.0, 1000.0):
        result, _ = forget(dense(), inputs(1), gamma=gamma)
        shares.append((inference.logits(result.model, x).argmax(axis=1) != before).mean())
        assert result.extras["changed_share"] == pytest.approx(shares[-1], abs=0.05)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 5 * shares[-1]


def test_every_logit_of_the_exact_inequalities_and_of_the_samples_is_checked():
    result, certificate = pieces()
    verdict = patches.verify(certificate, dense())
    assert verdict.holds
    assert verdict.certified == verdict.regions == len(certificate.points)
    names = ["piece", "label", "size", "samples", "beyond the tube", "outside"]
    assert [check.name for check in verdict.checks] == names
    assert result.extras["certified"] == result.extras["status"].count("certified")


def tampered(certificate, **changes):
    own = {name: np.array(value) for name, value in certificate.own.items()}
    for name, change in changes.items():
        if name in own:
            own[name] = np.asarray(change(own[name]), np.float32)
    rest = {name: change(np.array(getattr(certificate, name))) for name, change in changes.items() if name not in own}
    return dataclasses.replace(certificate, own=own, **rest)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"shifts": lambda v: v * 0.5}, {"label", "samples"}),
        ({"targets": lambda v: (v + 1) % 4}, {"label", "samples"}),
        ({"taus": lambda v: v * 0.9}, {"size"}),
        ({"offsets": lambda v: v + 0.02}, {"piece"}),
        ({"normals": lambda v: -v}, {"piece"}),
        ({"points": lambda v: v + 3}, {"piece"}),
    ],
)
def test_a_certificate_that_says_more_than_is_true_fails_by_name(changes, names):
    verdict = patches.verify(tampered(pieces()[1], **changes), dense(), samples=60)
    assert names <= {check.name for check in verdict.checks if not check.holds}


def test_the_dtype_that_is_served_is_what_is_checked():
    """Trap 7: a support without room for rounding is 1 on the piece in float64, but not always in float32."""
    _, certificate = pieces()
    tight = tampered(certificate, offsets=lambda v: np.nextafter(v, np.float32(-np.inf)) - np.float32(2e-6))
    regions = [tight.polytope(region) for region in range(len(tight.points))]
    assert all(
        (region.offsets < certificate.polytope(i).offsets).all() for i, region in enumerate(regions)
    )  # what is promised shrinks with what is served
    assert patches.verify(tight, dense(), samples=60).holds
    loose = [certificate.polytope(i) for i in range(len(certificate.points))]
    object.__setattr__(tight, "polytope", lambda region: loose[region])  # promise what was, serve less
    found = patches.verify(tampered(tight, offsets=lambda v: v - np.float32(1e-3)), dense(), samples=60)
    assert found.holds  # the promise goes with the arrays
    assert (dense().spec.box, certificate.box) == ((0.0, 1.0), (0.0, 1.0))


def test_a_margin_of_zero_promises_nothing():
    """Trap 6: a tie is within rounding."""
    result, certificate = forget(dense(), inputs(2), margin=0.0)
    assert not certificate.certified.any()
    assert set(result.extras["status"]) <= {"checked at the point only", "forgotten without a patch"} | {"remembered"}


def test_the_published_settings_promise_nothing_and_change_nearly_everything():
    config = dataclasses.asdict(Config.published())
    assert (config["gamma"], config["margin"], config["rounds"], config["clusters"]) == (0.1, 0.0, 2, 2)
    result, certificate = forget(dense(), inputs(4), **config)
    assert not certificate.certified.any()
    assert result.extras["changed_share"] > 0.5


def test_an_instance_on_a_face_is_checked_at_the_point_only():
    """Trap 5: float32 cannot tell on which side of a face it lies."""
    model = dense()
    region = region_of(model, inputs(1)[0])
    x = inputs(1)[0].astype(float)
    slack = region.polytope.offsets - region.polytope.normals @ x
    nearest = slack.argmin()
    on_face = (x + slack[nearest] * region.polytope.normals[nearest])[None].astype(np.float32)
    result, certificate = forget(model, on_face)
    assert result.forgotten.all()
    assert result.extras["status"] == ["checked at the point only"]
    assert not certificate.certified.any()
    verdict = patches.verify(certificate, model)
    assert verdict.holds
    assert {check.name for check in verdict.checks} == {"point", "outside"}


def test_one_patch_for_a_cluster_in_the_input_space():
    model, y = dense(), inference.logits(dense(), inputs(40)).argmax(axis=1)
    x = inputs(40)[y == np.bincount(y).argmax()][:3]
    every, certificate = forget(model, x, clusters=1)
    assert every.extras["status"] == ["certified"] * 3
    assert (certificate.own["maps"] == certificate.own["maps"][:1]).all()
    assert patches.verify(certificate, model, samples=40).holds
    one, certificate = forget(model, x, clusters=1, certify="representative", rounds=1)
    assert certificate.certified.tolist() == [True, False, False]
    assert sorted(one.extras["status"]) == ["certified", "checked at the point only", "remembered"]
    assert not patches.verify(certificate, model, samples=40).holds  # one point does not get its label
    more, certificate = forget(model, x, clusters=1, certify="representative")
    assert more.forgotten.all()
    assert certificate.certified.tolist() == [True, False, False, True]  # a round, then one for what was left
    assert patches.verify(certificate, model, samples=40).holds


def test_touching_pieces_say_what_lies_in_a_later_tube():
    """Trap 1: neighbouring pieces share a face; points near it are in reach of the later patch."""
    model = dense()
    here = region_of(model, inputs(1)[0])
    x = inputs(1)[0].astype(float)
    slack = here.polytope.offsets - here.polytope.normals @ x
    nearest = slack.argmin()
    across = x + (slack[nearest] + 0.02) * here.polytope.normals[nearest]
    y = inference.logits(model, np.float32([x])).argmax()
    batch = Batch.of(np.float32([x, across]), [y, y], [(y + 1) % 4, (y + 2) % 4])
    problem = Problem(model=model, forget=batch, goal="relabel")
    result = loop.run(problem, method=SPEC, config=Config(gamma=100.0), key=jax.random.key(0))
    certificate = patches.Certificate.from_artefact(result.extras["artefacts"][0])
    assert certificate.certified.all()
    verdict = patches.verify(certificate, model, samples=200)
    assert verdict.holds
    assert verdict.shared > 0
    for region in range(2):
        points = sampled(certificate, region, 400)
        promised = certificate.labels(model, points)
        answers = inference.logits(result.model, points).argmax(axis=1)
        assert (answers == promised)[promised >= 0].all()
        assert ((promised >= 0) == certificate.covers(model, points)).all()
        assert (promised == certificate.targets[region])[promised >= 0].all() or region == 0
    assert (certificate.labels(model, sampled(certificate, 1, 400)) >= 0).all()  # the last one is right throughout
    assert 0 < (certificate.labels(model, sampled(certificate, 0, 400)) < 0).mean() < 0.9


def test_boxes_in_the_features_are_certified():
    result, certificate = boxes()
    model = small()
    assert result.forgotten.all()
    assert set(result.extras["status"]) <= PROVED | {"forgotten without a patch"}
    verdict = patches.verify(certificate, model, samples=300)
    assert verdict.holds, verdict.checks
    assert certificate.wrapper.space == "features"
    before = inference.logits(model, images(6)).argmax(axis=1)
    assert certificate.covers(model, images(6)).all()
    assert (certificate.labels(model, images(6)) != before).all()
    others = images(300)[6:]
    free = ~certificate.covers(model, others)
    said, now = inference.logits(model, others), inference.logits(result.model, others)
    touched = np.asarray(
        certificate.wrapper.support(
            result.model.params["patch"],
            certificate.wrapper.coordinates(result.model.params["patch"], jnp.asarray(patches.features(model, others))),
        )
    ).any(axis=1)
    assert said[~touched].tobytes() == now[~touched].tobytes()
    assert free.any()
    # Whatever the boxes hold, an image that the network gives another label than a forgotten one keeps it.
    kept = ~np.isin(said.argmax(axis=1), before)
    assert (said.argmax(axis=1) == now.argmax(axis=1))[kept].all()


@pytest.mark.parametrize(
    "changes",
    [{"rule": "interval"}, {"region": "cluster"}, {"clusters": 2, "versions": "mirror"}, {"certify": "representative"}],
)
def test_other_ways_to_patch_features(changes):
    result, certificate = forget(small(), images(6), space="features", **changes)
    assert result.forgotten.all()
    verdict = patches.verify(certificate, small(), samples=40)
    assert verdict.holds, verdict.checks
    if "certify" not in changes:
        assert certificate.certified.all()
    if changes.get("region") == "cluster":
        assert certificate.wrapper.members == (1,) * len(certificate.targets)


@pytest.mark.parametrize(("field", "change"), [("low", -1.0), ("high", 1.0)])
def test_a_box_that_was_widened_fails(field, change):
    verdict = patches.verify(tampered(boxes()[1], **{field: lambda v: v + 20 * change}), small(), samples=40)
    assert "label" in {check.name for check in verdict.checks if not check.holds}


def test_relabelling_gives_everyone_the_label_asked_for():
    for model, x, space in ((dense(), inputs(3), "input"), (small(), images(4), "features")):
        y = inference.logits(model, x).argmax(axis=1)
        result, certificate = forget(model, x, goal="relabel", space=space)
        assert (inference.logits(result.model, x).argmax(axis=1) == (y + 2) % 4).all()
        assert (certificate.labels(model, x) == (y + 2) % 4).all()


def test_no_cluster_gets_a_label_of_a_member():
    rng = np.random.RandomState(0)
    logits = rng.randn(5)
    for rule in ("runner-up", "uniform"):
        for seed in range(20):
            never = {1, int(seed % 5), 3}
            assert choice.other_label(rule, logits, never, jax.random.key(seed)) not in never
    assert choice.other_label("runner-up", np.array([5.0, 4, 3]), {0, 1}, jax.random.key(0)) == 2
    with pytest.raises(ValueError, match="every label there is: ask for more clusters"):
        choice.other_label("runner-up", np.zeros(2), {0, 1}, jax.random.key(0))


def test_representatives_hold_the_others():
    at = np.array([[0.0, 0], [0.5, 0], [3.0, 0], [3.2, 0.1]])
    where = versions.Spread(None, at, np.full(4, 1.0), at, at)
    assert choice.representatives(where, np.array([0, 1, 2, 3])).tolist() == [0, 2]
    parts = choice.split(at, np.array([0, 1, 2, 3]), 2)
    assert sorted(map(sorted, parts)) == [[0, 1], [2, 3]]


def test_the_radius_comes_from_an_instances_own_versions():
    x = images(5)
    found = versions.spread(jax.random.key(0), small(), x, depth="crops", n=40, cover=0.8, apart=1.0)
    z = patches.features(small(), x)
    np.testing.assert_allclose(found.at, patches.coordinates(z, *found.frame), atol=1e-6)
    again = versions.spread(jax.random.key(0), small(), x, depth="crops", n=40, cover=1.0, apart=1.0)
    assert (again.radius >= found.radius).all()
    assert (found.radius > 0).all()
    assert ((found.low <= found.at) & (found.at <= found.high)).all()
    near = versions.spread(jax.random.key(0), small(), x, depth="crops", n=40, cover=1.0, apart=0.01)
    apart = np.abs(found.at[:, None] - found.at[None]).max(axis=2) + 1e9 * np.eye(5)
    assert (near.radius <= 0.01 * apart.min(axis=1) + 2e-2).all()
    alone = versions.spread(jax.random.key(0), small(), x[:1], depth="mirror", n=4, cover=1.0, apart=0.5)
    assert np.isfinite(alone.radius).all()


def test_an_earlier_patch_is_gone_on_with():
    for model, x, space in ((dense(), inputs(5), "input"), (small(), images(6), "features")):
        first, certificate = forget(model, x[:3], space=space)
        y = inference.logits(model, x).argmax(axis=1)
        held = Batch.of(x[:3], y[:3])
        offered = {"held": held, "certificate": first.extras["artefacts"][0]}
        problem = Problem(model=first.model, forget=Batch.of(x[3:], y[3:]), artefacts=offered)
        second = loop.run(problem, method=SPEC, config=Config(space=space), key=jax.random.key(1))
        assert (inference.logits(second.model, x).argmax(axis=1) != y).all()
        assert wrappers.unwrap(wrappers.unwrap(second.model).model) is None  # one patch, not two
        whole = patches.Certificate.from_artefact(second.extras["artefacts"][0])
        assert whole.wrapper.members[: len(certificate.targets)] == certificate.wrapper.members
        assert whole.certified[: len(certificate.points)].all()
        assert patches.verify(whole, model, samples=40).holds
        # Without the earlier certificate nothing is promised of the earlier regions.
        problem = dataclasses.replace(problem, artefacts={"held": held})
        third = loop.run(problem, method=SPEC, config=Config(space=space), key=jax.random.key(1))
        bare = patches.Certificate.from_artefact(third.extras["artefacts"][0])
        assert not bare.certified[: len(certificate.points)].any()
        assert bare.certified[len(certificate.points) :].all()


def test_what_is_remembered_of_an_earlier_request_is_patched_again():
    model, x = dense(), inputs(4)
    y = inference.logits(model, x).argmax(axis=1)
    problem = Problem(model=model, forget=Batch.of(x[:2], y[:2]), artefacts={"held": Batch.of(x[2:], y[2:])})
    result = loop.run(problem, method=SPEC, config=Config(), key=jax.random.key(0))
    assert (inference.logits(result.model, x).argmax(axis=1) != y).all()
    assert len(result.extras["status"]) == 2


def test_the_certificate_survives_its_file_and_no_other_model(tmp_path):
    result, certificate = pieces()
    artefacts.save(tmp_path / "c.safetensors", result.extras["artefacts"][0])
    again = patches.Certificate.from_artefact(artefacts.load(tmp_path / "c.safetensors", kind="certificate"))
    assert patches.verify(again, dense(), samples=30).holds
    assert json.dumps(dict(again.about))
    other = fully_connected(8, 4, 9, 8, 4)
    with pytest.raises(ValueError, match="made for another network: its digest is"):
        patches.verify(again, other)
    boxed = dense().replace(spec=dataclasses.replace(dense().spec, box=(0.0, 2.0)))
    with pytest.raises(ValueError, match="its inputs or classes differ"):
        patches.verify(again, boxed)
    model = certificate.model(dense())
    assert inference.logits(model, inputs(4)).tobytes() == inference.logits(result.model, inputs(4)).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "codes"}, "an artefact of kind 'codes', not 'certificate'"),
        ({"version": 9}, "has version 9; this library reads version 1"),
        ({"meta": {}}, "the certificate is not whole: KeyError 'patch'"),
        ({"arrays": "taus"}, "does not fit itself: taus has shape"),
    ],
)
def test_what_is_no_certificate_is_refused(change, message):
    artefact = pieces()[0].extras["artefacts"][0]
    if change.get("arrays"):
        change = {"arrays": {**artefact.arrays, "taus": np.zeros(99)}}
    with pytest.raises(ValueError, match=message):
        patches.Certificate.from_artefact(dataclasses.replace(artefact, **change))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("targets", lambda v: v + 99, r"targets must be labels from 0 to 3; got \[1"),
        ("targets", lambda v: v * 0 - 1, "targets must be labels from 0 to 3"),
        ("targets", lambda v: v + 0.5, "targets has dtype float64"),
        ("certified", lambda v: v * np.nan, "certified has dtype float"),
        ("taus", lambda v: v * np.inf, "NaN or infinity in taus"),
        ("points", lambda v: v * 1j, "points has dtype complex"),
        ("patch/maps", lambda v: v * np.float32(np.nan), "NaN or infinity in maps"),
        ("patch/shifts", lambda v: v.astype(np.float64), "shifts has dtype float64, not float32"),
        ("patch/sharpness", lambda v: v * 0, "sharpness must be above 0; got 0"),
        ("patch/bounds", lambda v: -v, "bounds must be above 0; got -"),
        ("patch/basis", lambda v: v * 0, "its basis has no inverse"),
    ],
)
def test_numbers_that_no_certificate_has_are_refused(name, change, message):
    artefact = boxes()[0].extras["artefacts"][0]
    changed = dataclasses.replace(artefact, arrays={**artefact.arrays, name: change(np.array(artefact.arrays[name]))})
    with pytest.raises(ValueError, match=message):
        patches.verify(patches.Certificate.from_artefact(changed), small(), samples=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 3.0}, "rows must be an integer of at least 0; got 3.0"),
        ({"boxed": 1}, "boxed must be true or false; got 1"),
        ({"boxed": False}, "regions of features have boxes"),
    ],
)
def test_a_shape_that_no_patch_has_is_refused(change, message):
    artefact = boxes()[0].extras["artefacts"][0]
    meta = {**artefact.meta, "patch": {**artefact.meta["patch"], **change}}
    with pytest.raises(ValueError, match=message):
        patches.Certificate.from_artefact(dataclasses.replace(artefact, meta=meta))


def test_a_label_of_no_number_is_no_label():
    """NumPy and JAX call a NaN the largest logit."""
    artefact = boxes()[0].extras["artefacts"][0]
    maps = np.array(artefact.arrays["patch/maps"])
    for group, target in enumerate(artefact.arrays["targets"]):
        maps[group, target] = np.nan
    meta = {**artefact.meta, "patch": {**artefact.meta["patch"], "rows": 0}}
    changed = dataclasses.replace(artefact, arrays={**artefact.arrays, "patch/maps": maps}, meta=meta)
    with pytest.raises(ValueError, match="NaN or infinity in maps"):
        patches.Certificate.from_artefact(changed)


def test_a_network_of_other_sizes_is_named():
    certificate = boxes()[1]
    digest = _tree.model_digest(dense())
    with pytest.raises(ValueError, match=r"no features to look at|no head with a kernel"):
        patches.verify(dataclasses.replace(certificate, model_digest=digest), dense())
    digest = _tree.model_digest(small())
    with pytest.raises(ValueError, match="another network: 4 values, this one's inputs have 64"):
        patches.verify(dataclasses.replace(pieces()[1], model_digest=digest), small())


def faced(apply_fn, params, classes) -> Model:
    """Return a network of two inputs with a face at x1 = 0.1 besides its own."""

    def whole(params, model_state, x, *, train=False, rngs=None):
        return apply_fn(params, x) + 0.001 * jax.nn.relu(x[:, 1:] - 0.1), model_state

    spec = ModelSpec(num_classes=classes, input_shape=(2,))
    return Model(params=params, model_state={}, apply_fn=whole, spec=spec)


def test_a_region_a_hair_too_large_fails():
    """Beyond the face a steep network is soon elsewhere: within 1e-7 of it there are inputs in float32."""
    steep = lambda p, x: p["b"][None] + jax.nn.relu(x[:, :1] - 0.01) * p["w"][None]
    b, w = np.float32([1, 0.5, 0]), np.float32([-1e9, -2e9, 1e9])
    model = faced(steep, {"b": b, "w": w}, 3)
    _, certificate = forget(model, np.float32([[0.005, 0.4]]))
    assert certificate.certified.all()
    assert patches.verify(certificate, model).holds
    face = np.abs(certificate.own["normals"][0, :, 0]).argmax()
    offsets = certificate.own["offsets"].copy()
    offsets[0, face] += np.float32(9e-8)
    wider = tampered(certificate, offsets=lambda v: offsets)
    x = np.float32([[np.float32(0.01) + np.float32(5e-8), 0.4]])
    assert wider.labels(model, x) != inference.logits(wider.model(model), x).argmax()
    assert "piece" in {check.name for check in patches.verify(wider, model).checks if not check.holds}


def test_logits_too_large_for_the_margin_promise_nothing():
    """Their sum with the patch's change rounds a lead of 0.1 to a tie."""
    model = faced(lambda p, x: p["b"][None] + 0 * x[:, :1], {"b": np.float32([2**22, 2**22 + 1, 0])}, 3)
    result, certificate = forget(model, np.float32([[0.3, 0.4]]), rounds=1)
    assert inference.logits(result.model, np.float32([[0.3, 0.4]]))[0, :2].tolist() == [2**22 + 0.5] * 2
    assert not certificate.certified.any()


def test_a_tie_is_no_promise():
    certificate, model = boxes()[1], small()
    params = {**model.params, "head": jax.tree.map(jnp.zeros_like, model.params["head"])}
    level = model.replace(params=params)
    nothing = tampered(certificate, maps=lambda v: 0 * v, shifts=lambda v: 0 * v, targets=lambda v: 0 * v)
    nothing = dataclasses.replace(nothing, model_digest=_tree.model_digest(level))
    found = patches.verify(nothing, level, samples=20)
    assert {check.name for check in found.checks if not check.holds} == {"label"}


def test_logits_that_are_not_quite_the_heads_fail():
    """Less than a thousandth of the logits, and more than the margin."""
    more = lambda p, s, x, *, train=False, rngs=None: (small().apply_fn(p, s, x)[0] * 1.0005, s)
    bent = small().replace(apply_fn=more)
    certificate = dataclasses.replace(boxes()[1], model_digest=_tree.model_digest(bent))
    verdict = patches.verify(certificate, bent, samples=20)
    assert {check.name for check in verdict.checks if not check.holds} == {"outside"}


def test_a_point_under_a_later_group_is_not_counted():
    certificate = pieces()[1]
    none = np.zeros(len(certificate.points), bool)
    over = dataclasses.replace(tampered(certificate, points=lambda v: v[-1:].repeat(len(v), 0)), certified=none)
    verdict = patches.verify(over, dense(), samples=10)
    assert (verdict.certified, verdict.points, verdict.regions) == (0, 1, len(none))


def test_far_in_a_wide_tube_the_patch_is_switched_off():
    """The change is within K on the tube, too, so that it does not begin with a jump."""
    _, certificate = forget(small(), images(6), space="features", gamma=0.5)
    own = {name: np.asarray(value, np.float64) for name, value in certificate.own.items()}
    corners = np.where(np.sign(own["maps"][0]) > 0, own["high"].max(axis=0) + 2, own["low"].min(axis=0) - 2)
    assert (np.abs(np.einsum("cn,cn->c", own["maps"][0], corners) + own["shifts"][0]) <= own["bounds"][0]).all()


def test_mistakes_are_one_line():
    curved = of(jnp.tanh, classes=4)
    x = np.full((1, 4), 0.5, np.float32)
    cases = [
        (
            curved,
            {},
            "space 'features' needs a network that names its head and has taps; and space 'input' is not for it",
        ),
        (curved, {"space": "input"}, "space 'input' is not for this network: .*'tanh'; use 'features'"),
        (dense(), {"space": "features"}, "space 'features' needs a network that names its head and has taps$"),
    ]
    line = faced(lambda p, x: x @ p["w"], {"w": np.float32([[1, -1], [0, 1]])}, 2)
    flat = line.replace(apply_fn=lambda p, s, x, *, train=False, rngs=None: (x @ p["w"], s))
    far = line.replace(spec=dataclasses.replace(line.spec, box=(0.2, 1.0)))
    for model, changes, message in cases:
        with pytest.raises(ValueError, match=message):
            forget(model, x, **changes)
    for model in (flat, far):
        with pytest.raises(ValueError, match=r"the network is linear.*so that a patch.* would change every answer"):
            forget(model, x[:, :2], space="input")
    bent = small().replace(apply_fn=lambda p, s, x, *, train=False, rngs=None: (jnp.tanh(small()(x)), s))
    with pytest.raises(ValueError, match="the logits are not the head's affine map of its input"):
        forget(bent, images(1), space="features")
    inside = forget(small(), images(1), space="features")[0].model
    with pytest.raises(ValueError, match="a patch in space 'features' already: go on with that space, not 'input'"):
        forget(inside, images(3)[1:2], space="input")


def test_a_deep_network_is_patched_in_its_features_by_default():
    assert methods.prune.spaces.choose(small(), "auto") == "input"
    large = dataclasses.replace(small().spec, input_shape=(128, 128, 1))
    shape = jax.ShapeDtypeStruct((128, 128, 1), jnp.float32)
    assert patches.count_conditions(small().replace(spec=large)) * shape.size > 50_000
    assert methods.prune.spaces.choose(small().replace(spec=large), "auto") == "features"


def test_what_was_forgotten_already_gets_no_patch():
    x, y = inputs(2), inference.logits(dense(), inputs(2)).argmax(axis=1)
    problem = Problem(model=dense(), forget=Batch.of(x, (y + 1) % 4))
    result = loop.run(problem, method=SPEC, config=Config(), key=jax.random.key(0))
    assert (result.steps, result.stop_reason) == (0, "forgotten")
    assert result.model.apply_fn is dense().apply_fn
    assert result.extras == {"artefacts": [], "status": ["forgotten without a patch"] * 2, "patch_size": 0}


def test_inputs_that_are_no_images_are_looked_at_with_noise():
    net = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)])
    params = net.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    model = from_linen(net, {"params": params}, input_shape=(4,), num_classes=3, head=("layers_2",))
    assert isinstance(model.spec, ModelSpec)
    result, certificate = forget(model, inputs(2), space="features")
    assert result.forgotten.all()
    assert patches.verify(certificate, model, samples=40).holds
