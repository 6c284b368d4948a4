"""How deep forgetting goes: versions of the images, small perturbations, relearning.

An edit may misclassify exactly the images it was given and still know their
mirror images. D_f says nothing of that; these three measurements do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _progress, _validate, attacks, inference, losses
from jaxunlearn._types import ApplyFn, Array, Model, Params, PyTree
from jaxunlearn.audits.variants import ANGLES, FAMILIES, QUALITIES, can_jpeg, has_pillow, max_shift, versions

RADII = 8
ATTACK_STEPS = 10


def depth(
    model: Model,
    x: Any,
    y: Any,
    *,
    key: Array,
    original: Model | None = None,
    draws: int = 20,
    relearn_learning_rate: float = 1e-3,
    relearn_max_steps: int = 200,
) -> dict[str, Any]:
    """Measure how deep the forgetting of some images goes.

    Args:
      model: the classifier after forgetting; not changed.
      x: (k, height, width, channels), the forgotten images.
      y: (k,) the labels to be forgotten.
      key: typed key; same key, same numbers.
      original: the classifier before, for comparison, or None.
      draws: random crops, and random noises, an image.
      relearn_learning_rate: of the fine-tuning of `relearn`.
      relearn_max_steps: after how many steps it gives up.

    Returns:
      Plain numbers, JSON-able, by these names.

      * ``images``: k.
      * ``recognised``: share of versions (`variants.versions`) still given the
        label, by family, and ``exact`` for the images as they are; None where
        not measured, with the reason under ``not_measured``.
      * ``recognised_before``: the same of ``original``, or None.
      * ``shifted_by``: share by number of pixels.
      * ``restoring_l2``: what `restoring_perturbation` found: ``median`` (None
        if fewer than half), ``min``, ``each``; ``found`` ``of`` k; ``largest_tried``.
      * ``relearn``: what `relearn` returned.

    Raises:
      ValueError, TypeError: the images do not fit the model, or are no images;
        a setting is out of range.
    """
    _validate.inputs("x", x, model.spec)
    _validate.labels("y", y, model.spec.num_classes)
    _validate.same_length("the forgotten images", {"x": x, "y": y})
    _validate.positive_int("draws", draws)
    if len(model.spec.input_shape) != 3:
        raise ValueError(f"x must be images (height, width, channels); the model takes {model.spec.input_shape}")
    if len(y) == 0:
        raise ValueError("x is empty: there is nothing to measure")
    x, y = jnp.asarray(x), np.asarray(y)
    for_versions, for_attack = jax.random.split(key)

    recognised, shifted = _shares(model, x, y, for_versions, draws)
    found = restoring_perturbation(model, x, y, key=for_attack)
    lengths = np.where(np.isnan(found), np.inf, found)
    return {
        "images": len(y),
        "recognised": recognised,
        "recognised_before": original and _shares(original, x, y, for_versions, draws)[0],
        "shifted_by": shifted,
        "not_measured": _not_measured(x),
        "restoring_l2": {
            "median": _finite(np.median(lengths)),
            "min": _finite(lengths.min()),
            "found": int(np.isfinite(found).sum()),
            "of": len(y),
            "largest_tried": largest_radius(model),
            "each": [_finite(value) for value in found],
        },
        "relearn": relearn(model, x, y, learning_rate=relearn_learning_rate, max_steps=relearn_max_steps),
    }


def largest_radius(model: Model) -> float:
    """Return the largest L2 radius `restoring_perturbation` tries: a quarter of the box in root mean square."""
    low, high = model.spec.box
    return 0.25 * float(high - low) * float(np.sqrt(np.prod(model.spec.input_shape)))


def restoring_perturbation(model: Model, x: Any, y: Any, *, key: Array) -> np.ndarray:
    """Return the L2 length of the smallest perturbation found that restores each label, (k,).

    Targeted PGD from the image itself in balls of doubling radius; what
    succeeds is shortened along its direction while the label holds. An upper
    bound of the true minimum: every length returned was checked. 0 where the label
    is still given, NaN where no ball up to ``largest_radius`` sufficed.

    Args:
      model: the classifier, in eval mode.
      x: (k, *input_shape), inside the box.
      y: (k,) the labels to restore.
      key: typed key.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    attack = attacks.pgd(model.apply_fn, norm="l2", steps=ATTACK_STEPS, random_start=False)
    best = np.where(_given(model, x, y), 0.0, np.nan)
    direction = jnp.zeros_like(x)
    for i in range(RADII):
        _progress.report("depth: perturbations", i, _progress.AtMost(RADII))
        if not np.isnan(best).any():
            break
        radius = largest_radius(model) / 2 ** (RADII - 1 - i)
        keys = jax.random.split(jax.random.fold_in(key, i), len(y))
        settings = {"epsilon": radius, "step_size": 2.5 * radius / ATTACK_STEPS, "box": model.spec.box}
        moved = attacks.attack_batch(attack, keys, model.params, model.model_state, x, y, **settings)
        new = np.isnan(best) & _given(model, moved, y)
        direction = jnp.where(_column(new, x), moved - x, direction)
        best = np.where(new, np.asarray(_length(direction)), best)
    share, low, high = np.ones(len(y)), np.zeros(len(y)), np.ones(len(y))
    for _ in range(8):
        share = (low + high) / 2
        holds = _given(model, x + _column(share, x) * direction, y)
        low, high = np.where(holds, low, share), np.where(holds, share, high)
    return np.where(best > 0, best * high, best)


def relearn(
    model: Model,
    x: Any,
    y: Any,
    *,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    batch_size: int = 64,
    max_steps: int = 200,
) -> dict[str, Any]:
    """Fine-tune a copy on some images until it gives all their labels, and say how long that took.

    Plain SGD on cross-entropy, without weight decay, BatchNorm statistics
    frozen, batches in the given order. The model itself is not touched.

    Returns:
      ``steps`` until every label is given, ``half_steps`` until half are, None
      where not within ``max_steps``; ``accuracy`` at the end; the settings.

    Raises:
      ValueError, TypeError: a setting is out of range.
    """
    _validate.in_range("learning_rate", learning_rate, 0.0)
    _validate.in_range("momentum", momentum, 0.0, 1.0)
    _validate.positive_int("batch_size", batch_size)
    _validate.positive_int("max_steps", max_steps)
    x, y = jnp.asarray(x), jnp.asarray(y)
    k, size = len(y), min(batch_size, len(y))
    params, velocity = model.params, optax.trace(momentum).init(model.params)
    rate, decay = jnp.float32(learning_rate), jnp.float32(momentum)
    steps, half_steps = None, None
    for t in range(max_steps + 1):
        right = float(np.mean(_given(model.replace(params=params), x, y)))
        half_steps = t if half_steps is None and right >= 0.5 else half_steps
        if right == 1:
            steps = t
            break
        if t < max_steps:
            rows = (t * size + np.arange(size)) % k
            batch = (x[rows], y[rows])
            params, velocity = _sgd(model.apply_fn, params, velocity, model.model_state, *batch, rate, decay)
        _progress.report("depth: relearning", t, _progress.AtMost(max_steps))
    settings = {"learning_rate": learning_rate, "momentum": momentum, "batch_size": size, "max_steps": max_steps}
    return {"steps": steps, "half_steps": half_steps, "accuracy": right, **settings}


def _shares(
    model: Model, x: Array, y: np.ndarray, key: Array, draws: int
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Return the share of versions given the label, by family, and of shifts by number of pixels."""
    given: dict[tuple[str, str], list[float]] = {}
    total = 1 + 2 * draws + 8 * max_shift(x.shape[1:]) + len(QUALITIES) * can_jpeg(x.shape) + len(ANGLES)
    for done, (family, which, images) in enumerate(versions(key, x, box=model.spec.box, draws=draws)):
        name = (family, which if family == "shifted" else "")
        given.setdefault(name, []).append(float(np.mean(_given(model, images, y))))
        _progress.report("depth: versions", done + 1, total)
    shares: dict[str, float | None] = {"exact": float(np.mean(_given(model, x, y)))}
    for family in FAMILIES:
        values = [value for (name, _), each in given.items() if name == family for value in each]
        shares[family] = float(np.mean(values)) if values else None
    return shares, {which: float(np.mean(each)) for (name, which), each in given.items() if name == "shifted"}


def _not_measured(x: Array) -> dict[str, str]:
    if not has_pillow():
        return {"jpeg": "needs Pillow: pip install pillow"}
    return {} if x.shape[-1] in (1, 3) else {"jpeg": f"images have {x.shape[-1]} channels"}


def _given(model: Model, x: Array, y: Any) -> np.ndarray:
    """Return a (k,) bool: the model gives the label."""
    with _progress.listening(None):  # the caller tells how far the whole is
        out = inference.logits(model, x)
    return (out.argmax(axis=1) == np.asarray(y)) & np.isfinite(out).all(axis=1)


@partial(jax.jit, static_argnums=0)
def _sgd(
    apply_fn: ApplyFn, params: Params, velocity: PyTree, state: Params, x: Array, y: Array, rate: Array, decay: Array
) -> tuple[Params, PyTree]:
    def loss(params: Params) -> Array:
        return jnp.mean(losses.cross_entropy(apply_fn(params, state, x, train=False)[0], y))

    updates, velocity = optax.trace(decay).update(jax.grad(loss)(params), velocity)
    return jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), params, updates), velocity


def _length(d: Array) -> Array:
    return jnp.sqrt(jnp.sum(d.reshape(d.shape[0], -1) ** 2, axis=1))


def _column(values: Any, x: Array) -> Array:
    return jnp.asarray(values).reshape(-1, *[1] * (x.ndim - 1))


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
