"""Cut-and-paste and inversion images: inside the box, keyed, and what inversion matches."""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxunlearn import proxies
from jaxunlearn._types import Model, ModelSpec
from jaxunlearn.proxies import inversion

copies_module = importlib.import_module("jaxunlearn.proxies.copies")


@pytest.fixture(scope="module")
def images():
    # Each image has its own range of values, so that a pixel tells where it comes from.
    base = np.random.default_rng(0).uniform(0.0, 0.1, size=(3, 16, 12, 2))
    return (base + np.arange(3)[:, None, None, None] * 0.3).astype(np.float32)


def sources(made):
    return np.floor(made / 0.3 + 1e-3).astype(int)


@given(seed=st.integers(0, 1000), n=st.sampled_from([1, 5, 300]))
@settings(max_examples=8, deadline=None)
def test_cutmix_uses_pixels_of_the_images_alone(images, seed, n):
    made = proxies.cutmix(jax.random.key(seed), images, n)
    assert made.shape == (n, 16, 12, 2)
    assert np.isin(made, images).all()


def test_cutmix_pastes_one_rectangle_of_a_quarter_to_three_quarters(images):
    made = sources(proxies.cutmix(jax.random.key(0), images, 200))[..., 0]
    assert {tuple(np.unique(image)) for image in made} >= {(0, 1), (0, 2), (1, 2), (0,)}
    for image in made:
        kinds, counts = np.unique(image, return_counts=True)
        if len(kinds) == 2:
            # The pasted part fills its bounding box; it may lie so that the rest does too, never both partly.
            boxes = [np.argwhere(image == kind) for kind in kinds]
            areas = [np.prod(np.ptp(box, axis=0) + 1) for box in boxes]
            full = [i for i in range(2) if areas[i] == counts[i]]
            assert any(4 <= np.ptp(boxes[i][:, 0]) + 1 <= 12 and 3 <= np.ptp(boxes[i][:, 1]) + 1 <= 9 for i in full), (
                image
            )


def test_images_depend_on_key_and_place_only(images):
    few, many = (proxies.cutmix(jax.random.key(1), images, n) for n in (4, 300))
    np.testing.assert_array_equal(few, many[:4])
    assert not np.array_equal(few, proxies.cutmix(jax.random.key(2), images, 4))
    assert len(np.unique(many.reshape(300, -1), axis=0)) > 290


def test_padding_of_the_sources_is_never_drawn(images):
    made = proxies.augment(jax.random.key(0), images + 1, 300)  # padded from 3 to 4 inside, with zeros
    assert made.min() >= 1
    assert set(np.unique(sources(made - 1))) == {0, 1, 2}


def test_augment_shifts_by_an_eighth_and_mirrors():
    image = np.arange(16 * 16, dtype=np.float32).reshape(1, 16, 16, 1)
    made = proxies.augment(jax.random.key(0), image, 300)
    centre = made[:, 8, 8, 0].astype(int)
    assert {r // 16 for r in centre} == {6, 7, 8, 9, 10}
    rising = made[:, 8, 9, 0] > made[:, 8, 8, 0]
    assert 0.35 < rising.mean() < 0.65


def test_inputs_that_are_not_images_are_mixed_by_coordinate():
    x = np.array([[0.0] * 40, [1.0] * 40], np.float32)
    made = proxies.cutmix(jax.random.key(0), x, 100)
    assert made.shape == (100, 40)
    share = made.mean(axis=1)
    assert ((share > 0) & (share < 1)).any()
    assert set(np.unique(made)) == {0.0, 1.0}


def test_number_and_sources_are_checked(images):
    with pytest.raises(ValueError, match="n must be at least 1; got 0"):
        proxies.cutmix(jax.random.key(0), images, 0)
    with pytest.raises(ValueError, match="no rows"):
        proxies.augment(jax.random.key(0), images[:0], 2)


# Copies


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(3)
    smooth = jax.image.resize(rng.uniform(0.2, 0.8, size=(2, 6, 6, 3)), (2, 32, 32, 3), "cubic")
    return np.clip(np.asarray(smooth, np.float32), 0, 1)


def family(name, picture, n=40, monkeypatch=None):
    monkeypatch.setitem(copies_module.DEPTHS, "full", (name,))
    return proxies.copies(jax.random.key(0), picture, n, "full")


def test_mirrored_and_shifted_copies_are_moved_pixels(picture, monkeypatch):
    np.testing.assert_array_equal(family("mirrored", picture, 1, monkeypatch)[0], picture[:, :, ::-1])
    shifts = {(dy, dx): np.roll(picture[0], (dy, dx), (0, 1)).tobytes() for dy in range(-4, 5) for dx in range(-4, 5)}
    seen = {image.tobytes() for image in family("shifted", picture, 200, monkeypatch)[:, 0]}
    assert seen <= set(shifts.values())
    assert len(seen) > 60
    cropped = family("cropped", picture, 5, monkeypatch)
    assert np.isin(cropped, picture).all()


def test_noise_has_the_deviation_it_says(picture, monkeypatch):
    deviation = (family("noisy", picture, 100, monkeypatch) - picture[None]).std(axis=(2, 3, 4)) * 255
    assert deviation.max() < 13
    assert 4 < deviation.mean() < 8  # uniform up to 12


def test_rotation_turns_by_up_to_twelve_degrees(picture, monkeypatch):
    scipy_rotate = pytest.importorskip("scipy.ndimage").rotate
    made = family("rotated", picture, 30, monkeypatch)[:, 0]
    for degrees in (-12, -6, 0, 6, 12):
        reference = scipy_rotate(picture[0], degrees, reshape=False, order=1, mode="nearest")
        errors = np.abs(made - reference[None]).mean(axis=(1, 2, 3))
        if degrees:
            assert errors.min() < 0.5 * np.abs(picture[0] - reference).mean()
    assert np.abs(made - picture[:1]).mean(axis=(1, 2, 3)).max() > 0.01


def test_compression_looks_like_jpeg(picture, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    grey = picture[..., :1] + np.random.default_rng(0).normal(0, 0.04, (2, 32, 32, 1))
    grey = np.clip(grey, 0, 1).astype(np.float32)
    made = family("compressed", grey, 60, monkeypatch)[:, 0]
    file = io.BytesIO()
    Image.fromarray((grey[0, ..., 0] * 255).round().astype(np.uint8)).save(file, "JPEG", quality=60)
    jpeg = np.asarray(Image.open(file), np.float32)[..., None] / 255
    far, near = np.abs(grey[0] - jpeg).mean(), np.abs(made - jpeg[None]).mean(axis=(1, 2, 3))
    assert near.min() < 0.35 * far  # one of the drawn qualities is near this one


def test_copies_stay_in_the_box_and_mix_the_families(picture):
    made = proxies.copies(jax.random.key(1), picture, 30, "full")
    assert made.shape == (30, 2, 32, 32, 3)
    assert made.min() >= 0
    assert made.max() <= 1
    kept = np.isin(made, picture).all(axis=(2, 3, 4)).mean()
    assert 0.25 < kept < 0.75  # half of the families move pixels only
    np.testing.assert_array_equal(made[:3], proxies.copies(jax.random.key(1), picture, 3, "full"))
    with pytest.raises(ValueError, match="depth must be one of 'mirror', 'crops', 'full'; got 'none'"):
        proxies.copies(jax.random.key(0), picture, 1, "none")
    with pytest.raises(ValueError, match=r"x must be images .* got shape \(2, 5\)"):
        proxies.copies(jax.random.key(0), np.zeros((2, 5)), 1, "mirror")


# Inversion

DECAY = 0.9


def norm_net(params, model_state, x, *, train=False, rngs=None):
    """One normalised layer of channels and a linear head; running statistics as in Flax."""
    h = x @ params["mix"]
    mean, var = model_state["bn"]["mean"], model_state["bn"]["var"]
    if train:
        mean, var = h.mean((0, 1, 2)), h.var((0, 1, 2))
        old = model_state["bn"]
        moved = {"mean": DECAY * old["mean"] + (1 - DECAY) * mean, "var": DECAY * old["var"] + (1 - DECAY) * var}
        model_state = {"bn": moved, "count": model_state["count"]}
    h = (h - mean[None, None, None]) / jnp.sqrt(var[None, None, None] + 1e-5)
    return jax.nn.relu(h).mean((1, 2)) @ params["head"], model_state


def bare_net(params, model_state, x, *, train=False, rngs=None):
    return jax.nn.relu(x @ params["mix"]).mean((1, 2)) @ params["head"], model_state


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    # Statistics that images in the box can have: those of a batch of them.
    params = {"mix": draw(3, 5), "head": draw(5, 4)}
    x = jnp.asarray(rng.uniform(0.2, 0.8, size=(64, 8, 8, 3)) ** 2, jnp.float32)
    h = x @ params["mix"]
    state = {"bn": {"mean": h.mean((0, 1, 2)), "var": h.var((0, 1, 2))}, "count": jnp.int32(7)}
    spec = ModelSpec(num_classes=4, input_shape=(8, 8, 3))
    return Model(params=params, model_state=state, apply_fn=norm_net, spec=spec)


def statistics(model, x):
    h = jnp.asarray(x) @ model.params["mix"]
    return h.mean((0, 1, 2)), h.var((0, 1, 2))


def test_batch_statistics_are_read_at_the_seam(model):
    decay = inversion._decay(model, 2)
    np.testing.assert_allclose(decay["bn/mean"], DECAY, rtol=1e-5)
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(6, 8, 8, 3)), jnp.float32)
    _, moved = inversion._train_pass(model, x, 0.0, jax.random.key(0))
    for name, truth in zip(("mean", "var"), statistics(model, x), strict=True):
        np.testing.assert_allclose(moved["bn"][name] / (1 - decay[f"bn/{name}"]), truth, rtol=1e-4, atol=1e-5)
    assert int(moved["count"]) == 7  # what is no statistic is left alone


SETTINGS = inversion.InversionConfig(steps=60, batch_size=16, smoothness=0.0)
FIRST = dataclasses.replace(SETTINGS, steps=1)


def test_inversion_matches_the_running_statistics(model):
    start, x = (proxies.invert(jax.random.key(0), model, 16, config) for config in (FIRST, SETTINGS))
    assert x.shape == (16, 8, 8, 3)
    assert x.min() >= 0
    assert x.max() <= 1

    def distance(images):
        mean, var = statistics(model, images)
        old = model.model_state["bn"]
        return float(jnp.sum((mean - old["mean"]) ** 2 / old["var"] + (jnp.sqrt(var / old["var"]) - 1) ** 2))

    assert distance(x) < 0.05 * distance(start)


def test_inversion_is_deterministic_and_cuts_whole_batches(model):
    a, b = (proxies.invert(jax.random.key(3), model, n, FIRST) for n in (20, 32))
    np.testing.assert_array_equal(a, b[:20])
    assert not np.array_equal(b[:16], b[16:])


def test_inversion_without_batch_norm_makes_what_the_network_calls_its_classes(model):
    bare = model.replace(apply_fn=bare_net, model_state={})
    wanted = np.arange(8) % 4  # the first half has one class each
    right = []
    for config in (FIRST, SETTINGS):
        x = proxies.invert(jax.random.key(0), bare, 16, config)
        right.append(np.mean(np.argmax(bare(jnp.asarray(x)), axis=1)[:8] == wanted))
    assert right[1] > right[0]


def test_artefact_is_bound_to_its_model(model):
    other = model.replace(params={**model.params, "head": model.params["head"] + 1})
    made, theirs = (proxies.invert_artefact(jax.random.key(0), m, 16, FIRST) for m in (model, other))
    assert made.kind == "proxies"
    assert made.arrays["x"].shape == (16, 8, 8, 3)
    assert made.model_digest != theirs.model_digest


def test_inversion_refuses_no_work(model):
    with pytest.raises(ValueError, match="n must be at least 1; got 0"):
        proxies.invert(jax.random.key(0), model, 0)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        proxies.invert(jax.random.key(0), model, 1, dataclasses.replace(FIRST, steps=0))


def test_each_image_of_a_batch_is_shifted_and_mirrored_on_its_own():
    x = jax.random.uniform(jax.random.key(0), (40, 16, 8, 1))
    moved = np.asarray(proxies.shift_and_mirror(jax.random.key(1), x))
    found = set()
    for image, out in zip(np.asarray(x), moved, strict=True):
        padded = np.pad(image, ((2, 2), (1, 1), (0, 0)), mode="reflect")
        for i, j, flip in itertools.product(range(5), range(3), (1, -1)):
            if np.array_equal(padded[i : i + 16, j : j + 8][:, ::flip], out):
                found.add((i, j, flip))
                break
        else:
            raise AssertionError("not a crop of the padded image or of its mirror image")
    assert len(found) > 15
