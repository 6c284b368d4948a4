"""Accuracies, behaviour and depth against closed forms on linear models, SciPy and Pillow."""

from __future__ import annotations

import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, strategies as st
from PIL import Image

from jaxunlearn import _progress, _tree, audits, convert, data, models
from jaxunlearn._types import Model, ModelSpec
from jaxunlearn.audits import variants
from tests import tiny

KEY = jax.random.key(0)


def model_of(w, shape, *, box=(0.0, 1.0), b=None):
    w = jnp.asarray(w, jnp.float32)
    bias = jnp.zeros(w.shape[1]) if b is None else jnp.asarray(b, jnp.float32)
    spec = ModelSpec(num_classes=w.shape[1], input_shape=shape, box=box)
    return Model(params={"w": w, "b": bias}, model_state={}, apply_fn=tiny.linear, spec=spec)


# --- accuracy ---


def test_accuracy_counts_and_is_a_plain_number():
    logits = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert audits.accuracy(logits, [0, 1, 1, 1]) == 0.75
    assert type(audits.accuracy(logits, [0, 1, 1, 1])) is float


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_accuracy_is_the_mean_of_the_classes_weighted_by_their_size(pairs):
    predicted, y = np.array(pairs).T
    logits = np.eye(4)[predicted]
    by_class = audits.accuracy_by_class(logits, y)
    counts = np.bincount(y, minlength=4)
    assert [value is None for value in by_class] == (counts == 0).tolist()
    total = sum(value * n for value, n in zip(by_class, counts, strict=True) if n)
    assert total / len(y) == pytest.approx(audits.accuracy(logits, y))
    json.dumps(by_class, allow_nan=False)
    assert audits.accuracy_by_class(predicted, y, 4) == by_class
    assert audits.accuracy(predicted, y) == audits.accuracy(logits, y)


def test_logits_that_are_not_finite_are_wrong():
    logits = [[np.nan, 0.0], [np.inf, 0.0], [1.0, 0.0]]
    assert audits.accuracy(logits, [0, 0, 0]) == pytest.approx(1 / 3)
    rows = audits.behaviour(logits, logits, [0, 0, 0])
    assert [row["before"] for row in rows] == [None, None, 0]
    assert rows[0]["confidence_after"] is None


def test_behaviour_is_softmax_and_stable():
    before, after = np.array([[1e4, 0.0, -1e4]]), np.array([[0.1, 0.7, 0.2]])
    (row,) = audits.behaviour(before, after, [0])
    p = np.exp(after[0]) / np.exp(after[0]).sum()
    assert (row["label"], row["before"], row["after"]) == (0, 0, 1)
    assert row["confidence_before"] == 1.0
    assert row["confidence_after"] == pytest.approx(p[1])
    assert row["label_probability_after"] == pytest.approx(p[0])
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (np.zeros((2, 3)), [0], r"logits must have shape \(n, C\) and y \(n,\); got \(2, 3\) and \(1,\)"),
        (np.zeros(3), [0], r"logits must have shape"),
        (np.zeros((0, 3)), [], "y is empty: there is nothing to measure"),
        (np.zeros((1, 3)), [3], "y must be labels from 0 to 2; got 3 to 3"),
    ],
)
def test_accuracy_of_wrong_arguments(logits, y, message):
    for measure in (audits.accuracy, audits.accuracy_by_class, lambda a, y: audits.behaviour(a, a, y)):
        with pytest.raises(ValueError, match=message):
            measure(logits, np.asarray(y, int))


# --- versions ---


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(3, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def made(images):
    out = {}
    for family, which, x in variants.versions(KEY, jnp.asarray(images), draws=4):
        out.setdefault(family, []).append((which, np.asarray(x)))
    return out


def test_versions_come_in_the_stated_numbers_inside_the_box(made, images):
    counts = {family: len(each) for family, each in made.items()}
    assert counts == {"mirrored": 1, "cropped": 4, "shifted": 32, "noisy": 4, "jpeg": 2, "rotated": 4}
    for each in made.values():
        for _, x in each:
            assert x.shape == images.shape
            assert x.dtype == np.float32
            assert x.min() >= 0
            assert x.max() <= 1


def test_mirror_and_shifts_are_exact(made, images):
    np.testing.assert_array_equal(made["mirrored"][0][1], images[:, :, ::-1])
    steps = {}
    for which, x in made["shifted"]:
        found = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if np.array_equal(x, np.roll(images, (dy, dx), (1, 2)))
        ]
        assert len(found) == 1
        steps.setdefault(which, set()).add(found[0])
    for pixels in range(1, 5):
        square = {(dy * pixels, dx * pixels) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} - {(0, 0)}
        assert steps[str(pixels)] == square


def test_each_crop_is_a_window_of_the_reflected_image(made, images):
    places = set()
    for i, image in enumerate(images):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        for _, x in made["cropped"]:
            hits = [
                (top, left, flip)
                for top in range(9)
                for left in range(9)
                for flip in (1, -1)
                if np.array_equal(x[i], padded[top : top + 32, left : left + 32][:, ::flip])
            ]
            assert len(hits) == 1
            places.add(hits[0])
    assert len(places) > 9  # another draw for each image and version
    assert {flip for _, _, flip in places} == {1, -1}


def test_crops_reach_every_offset_in_both_directions():
    images = np.random.default_rng(1).uniform(size=(200, 8, 8, 1)).astype(np.float32)
    every = variants.versions(KEY, jnp.asarray(images), draws=1)
    x = next(np.asarray(made) for family, _, made in every if family == "cropped")
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    reached = set()
    for top in range(3):
        for left in range(3):
            for flip in (1, -1):
                window = padded[:, top : top + 8, left : left + 8][:, :, ::flip]
                if np.any(np.all(window == x, axis=(1, 2, 3))):
                    reached.add((top, left, flip))
    assert len(reached) == 18


def test_noise_has_the_stated_deviation():
    x = jnp.full((8, 32, 32, 3), 0.5)
    noisy = [np.asarray(v) for family, _, v in variants.versions(KEY, 2 * x - 1, box=(-1.0, 1.0), draws=2)
             if family == "noisy"]  # fmt: skip
    assert np.std(noisy[0]) == pytest.approx(2 * 8 / 255, rel=0.02)
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noisy[0][0].ravel(), noisy[0][1].ravel())[0, 1]) < 0.06


def test_rotation_equals_scipy(made, images):
    for which, x in made["rotated"]:
        expected = scipy.ndimage.rotate(images, float(which), axes=(1, 2), reshape=False, order=1, mode="nearest")
        np.testing.assert_allclose(x, expected, atol=2e-5)


def test_jpeg_equals_pillow_in_grey_and_colour_and_another_box():
    ramp = np.linspace(0, 1, 16 * 16 * 3, dtype=np.float32).reshape(1, 16, 16, 3)
    for channels in (1, 3):
        x = ramp[..., :channels]
        made = {w: np.asarray(v) for f, w, v in variants.versions(KEY, jnp.asarray(x * 2 - 1), box=(-1.0, 1.0), draws=1)
                if f == "jpeg"}  # fmt: skip
        pixels = (x[0] * 255 + 0.5).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=75)
        decoded = np.asarray(Image.open(file)).reshape(pixels.shape)
        np.testing.assert_allclose(made["75"][0], decoded / 255 * 2 - 1, atol=1e-6)
        assert set(made) == {"75", "50"}


def test_versions_depend_on_the_key_only(images):
    x = jnp.asarray(images[:1])
    runs = [[np.asarray(v) for *_, v in variants.versions(k, x, draws=2)] for k in (KEY, KEY, jax.random.key(1))]
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


# --- perturbations and relearning ---


def test_restoring_perturbation_is_the_distance_to_the_plane():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(48, 2))
    model = model_of(w, (4, 4, 3), box=(-1.0, 1.0))  # roomy: the box does not bind
    x = rng.uniform(-0.2, 0.2, size=(6, 4, 4, 3)).astype(np.float32)
    logits = np.asarray(model(jnp.asarray(x)))
    y = logits.argmin(axis=1)
    y[0] = 1 - y[0]  # still given its label
    normal = w[:, 0] - w[:, 1]
    distance = np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(normal)
    distance[0] = 0
    found = audits.restoring_perturbation(model, x, y, key=KEY)
    assert np.all(found >= distance - 1e-5)
    np.testing.assert_allclose(found, distance, rtol=0.01, atol=1e-3)


def test_a_label_out_of_reach_is_not_restored():
    model = model_of(np.zeros((64, 2)), (8, 8, 1), b=[1.0, 0.0])
    x = np.full((2, 8, 8, 1), 0.5, np.float32)
    assert np.isnan(audits.restoring_perturbation(model, x, np.array([1, 1]), key=KEY)).all()
    out = audits.depth(model, x, [1, 1], key=KEY, relearn_max_steps=1)["restoring_l2"]
    assert (out["median"], out["min"], out["found"], out["each"]) == (None, None, 0, [None, None])
    assert out["largest_tried"] == pytest.approx(2.0)


def test_relearning_equals_gradient_descent_by_hand():
    rng = np.random.default_rng(2)
    w, x = rng.normal(size=(12, 3)), rng.uniform(size=(5, 2, 2, 3))
    model = model_of(w, (2, 2, 3))
    flat = x.reshape(5, 12)
    y = (flat @ w).argmin(axis=1)
    b, vw, vb, right = np.zeros(3), 0.0, 0.0, []
    for _ in range(200):
        z = flat @ w + b
        right.append(np.mean(z.argmax(axis=1) == y))
        if right[-1] == 1:
            break
        p = np.exp(z - z.max(axis=1, keepdims=True))
        g = (p / p.sum(axis=1, keepdims=True) - np.eye(3)[y]) / 5
        vw, vb = flat.T @ g + 0.9 * vw, g.sum(axis=0) + 0.9 * vb
        w, b = w - 0.05 * vw, b - 0.05 * vb
    out = audits.relearn(model, x.astype(np.float32), y, learning_rate=0.05)
    assert out["steps"] == len(right) - 1 > 3
    assert out["half_steps"] == next(t for t, share in enumerate(right) if share >= 0.5)
    assert out["accuracy"] == 1.0


def test_relearning_walks_batches_in_turn_and_gives_up():
    x = np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1)
    model = model_of(-np.eye(4), (2, 2, 1))
    out = audits.relearn(model, x, np.arange(4), learning_rate=0.0, max_steps=3, batch_size=3)
    assert (out["steps"], out["half_steps"], out["accuracy"], out["batch_size"]) == (None, None, 0.0, 3)
    # A step on (0, 1), one on (2, 3): after two steps each row was seen once.
    pair = audits.relearn(model, x, np.arange(4), learning_rate=10.0, momentum=0.0, batch_size=2)
    assert pair["steps"] == 2


def test_relearning_happens_on_a_copy():
    params, state = tiny.convolutional_variables(KEY)
    spec = ModelSpec(num_classes=4, input_shape=(8, 8, 2))
    model = Model(params=params, model_state=state, apply_fn=tiny.convolutional, spec=spec)
    x = np.random.default_rng(0).uniform(size=(4, 8, 8, 2)).astype(np.float32)
    before = _tree.digest({"params": model.params, "state": model.model_state})
    out = audits.depth(model, x, [0, 1, 2, 3], key=KEY, draws=1, relearn_learning_rate=0.1, relearn_max_steps=3)
    assert _tree.digest({"params": model.params, "state": model.model_state}) == before
    assert out["relearn"]["learning_rate"] == 0.1
    assert out["recognised"]["jpeg"] is None
    assert out["not_measured"] == {"jpeg": "images have 2 channels"}


# --- depth as a whole ---


@pytest.fixture(scope="module")
def half():
    """Class 0 where the left half is brighter, class 1 where the right one is."""
    w = np.zeros((8, 8, 1, 2))
    w[:, :4, 0, 0] = w[:, 4:, 0, 1] = 1.0
    x = np.full((2, 8, 8, 1), 0.3, np.float32)
    x[0, :, :4] = x[1, :, 4:] = 0.6
    return model_of(w.reshape(64, 2), (8, 8, 1)), x


def test_depth_of_an_asymmetric_rule(half):
    model, x = half
    remembered = audits.depth(model, x, [0, 1], key=KEY)
    assert remembered["recognised"]["exact"] == 1.0
    assert remembered["recognised"]["mirrored"] == 0.0
    assert remembered["recognised"]["shifted"] == 1.0
    assert remembered["shifted_by"] == {"1": 1.0}
    assert remembered["restoring_l2"]["median"] == 0.0
    assert remembered["relearn"]["steps"] == 0
    forgotten = audits.depth(model, x, [1, 0], key=KEY, original=model, relearn_learning_rate=0.1)
    assert forgotten["recognised"]["exact"] == 0.0
    assert forgotten["recognised"]["mirrored"] == 1.0
    assert 0.2 < forgotten["recognised"]["cropped"] < 0.8  # those that were flipped
    assert forgotten["recognised_before"] == forgotten["recognised"]
    # Half of the difference of 0.3 must go, in each of 64 pixels.
    assert forgotten["restoring_l2"]["median"] == pytest.approx(0.15 * 8, rel=0.02)
    assert forgotten["relearn"]["steps"] > 0


def test_depth_is_deterministic_and_strict_json(half):
    model, x = half
    runs = [json.dumps(audits.depth(model, x, [1, 0], key=k, draws=3), allow_nan=False) for k in (KEY, KEY)]
    assert runs[0] == runs[1]


def test_depth_without_pillow_says_so(half, monkeypatch):
    model, x = half
    for module in (variants, sys.modules["jaxunlearn.audits.depth"]):
        monkeypatch.setattr(module, "has_pillow", lambda: False)
    out = audits.depth(model, x, [1, 0], key=KEY, draws=1, relearn_max_steps=1)
    assert out["recognised"]["jpeg"] is None
    assert out["not_measured"] == {"jpeg": "needs Pillow: pip install pillow"}


def test_depth_reports_progress_to_its_end(half):
    model, x = half
    seen = []
    with _progress.listening(lambda *event: seen.append(event)):
        audits.depth(model, x, [1, 0], key=KEY, draws=2, relearn_max_steps=2)
    labels = list(dict.fromkeys(label for label, *_ in seen))
    assert labels == ["depth: versions", "depth: perturbations", "depth: relearning"]
    assert [event for event in seen if event[0] == labels[0]][-1][1:] == (19, 19)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(x=np.zeros((2, 8, 8, 3))), ValueError, r"x must have shape \(batch, 8, 8, 1\)"),
        (dict(y=[0, 2]), ValueError, "y must be labels from 0 to 1; got 2 in row 1"),
        (dict(y=[0]), ValueError, "the forgotten images must have fields of one length"),
        (dict(x=np.zeros((0, 8, 8, 1)), y=[]), ValueError, "x is empty: there is nothing to measure"),
        (dict(draws=0), ValueError, "draws must be at least 1; got 0"),
        (dict(relearn_learning_rate=-1.0), ValueError, "learning_rate must be at least 0; got -1.0"),
        (dict(relearn_max_steps=0), ValueError, "max_steps must be at least 1; got 0"),
    ],
)
def test_depth_of_wrong_arguments(half, changes, error, message):
    model, x = half
    arguments = dict(x=x, y=[0, 1], key=KEY) | changes
    with pytest.raises(error, match=message):
        audits.depth(model, **arguments)


def test_depth_needs_images():
    with pytest.raises(ValueError, match=r"x must be images \(height, width, channels\); the model takes \(4,\)"):
        audits.depth(model_of(np.zeros((4, 2)), (4,)), np.zeros((1, 4), np.float32), [0], key=KEY)


def test_depth_of_real_images_equals_an_independent_measurement(shared):
    """ResNet-20, RandomState(208), k = 64: mirror 98.4, crop and flip 96.8, shift by one 99.2 % in PyTorch."""
    source = data.open_source("tfds:cifar10", str(shared / "data" / "tfds"))
    recipe = models.recipe("cifar_resnet20")
    model = convert.load_weights(shared / "weights" / "cifar10_resnet20.th", recipe, models.from_recipe)
    rows = [source.row_of(str(i)) for i in np.random.RandomState(208).permutation(50000)[:64]]
    out = audits.depth(model, source.images(rows), source.labels[rows], key=KEY, draws=4)
    assert out["recognised"]["exact"] == 1.0
    assert out["recognised"]["mirrored"] == 63 / 64
    assert out["shifted_by"]["1"] == pytest.approx(0.992, abs=0.001)
    assert out["recognised"]["cropped"] == pytest.approx(0.968, abs=0.02)
