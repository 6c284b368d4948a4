"""Images a network would call typical, made from its weights alone (after Yin et al. 2020, DeepInversion).

The statistics that BatchNorm layers keep of the training data are matched by
those of a batch of images. They are read at the seam: a train-mode pass that
starts from running statistics of zero returns ``(1 - decay) * batch
statistics``, and a second one, started from one, tells the decay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _repeat, _tree, _validate
from jaxunlearn._types import Array, Artefact, Model, Params, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Settings of `invert`; the weights are of the terms of its loss.

    Attributes:
      steps: Adam steps a batch.
      batch_size: images optimised together; their statistics are those matched.
      learning_rate: of Adam, per unit of the box, falling along a cosine.
      class_weight: of the cross-entropy to the drawn labels.
      smoothness: of the mean squared difference of neighbouring pixels.
      shift: largest roll in pixels before each step.
    """

    steps: int = 120
    batch_size: int = 250
    learning_rate: float = 0.03
    class_weight: float = 0.2
    smoothness: float = 2.0
    shift: int = 2


_ADAM = optax.scale_by_adam(b1=0.5, b2=0.9)


class _Carry(NamedTuple):
    x: Array
    opt_state: PyTree


def invert(key: Array, model: Model, n: int, config: InversionConfig | None = None) -> np.ndarray:
    """Return n images made from a network alone, (n, *input_shape) float32 in its box.

    Adam on ``sum over BatchNorm layers of [mean_c (mu_c - mean_c)^2 / var_c +
    mean_c (sigma_c / sqrt(var_c) - 1)^2] + class_weight * cross-entropy +
    smoothness * (squared differences of neighbours)``, from smooth noise, under
    random rolls and flips. A network without BatchNorm has the last two terms
    only. Runs in batches, reported as "inversion"; work for minutes on CPU.

    Args:
      key: typed key.
      model: any network of the seam; BatchNorm is recognised by siblings
        ``mean`` and ``var`` in its state.
      n: how many images; rounded up to whole batches inside.
      config: settings.

    Raises:
      ValueError: n or a setting below 1.
    """
    config = InversionConfig() if config is None else config
    for name, value in (("n", n), ("steps", config.steps), ("batch_size", config.batch_size)):
        _validate.positive_int(name, value)
    size = min(config.batch_size, n)
    config = dataclasses.replace(config, batch_size=size)
    batches = -(-n // size)
    decay = _decay(model, size)
    out = []
    for b in range(batches):
        start, label, work = (jax.random.fold_in(jax.random.fold_in(key, b), i) for i in range(3))
        x = _repeat.call(_noise, (model.spec.input_shape, size), start) * _span(model) + model.spec.box[0]
        target = _repeat.call(_targets, (model.spec.num_classes, size), label)
        carry = _Carry(x, _ADAM.init(x))
        carry = _repeat.repeat(
            _step,
            config.steps,
            carry,
            model,
            target,
            decay,
            work,
            np.float32(config.steps),
            statics=(dataclasses.replace(config, steps=1),),  # their number is traced: it compiles nothing anew
            label="inversion",
            done=b * config.steps,
            total=batches * config.steps,
        )
        out.append(np.asarray(carry.x))
    return np.concatenate(out)[:n]


def invert_artefact(key: Array, model: Model, n: int, config: InversionConfig | None = None) -> Artefact:
    """Return the images of `invert` as an artefact of kind "proxies", to be kept beside the model."""
    config = InversionConfig() if config is None else config
    return Artefact(
        kind="proxies",
        version=1,
        arrays={"x": invert(key, model, n, config)},
        meta={"source": "inversion", **dataclasses.asdict(config)},
        model_digest=_tree.model_digest(model),
    )


def batch_norm_paths(model_state: Params) -> tuple[str, ...]:
    """Return the paths of BatchNorm layers: those with both ``mean`` and ``var`` in the state.

    >>> batch_norm_paths({"bn": {"mean": 0, "var": 1}, "other": {"count": 2}})
    ('bn',)
    """
    leaves = _tree.flatten_paths(model_state)
    means = {path.rpartition("/")[0] for path in leaves if path.rpartition("/")[2] == "mean"}
    return tuple(sorted(layer for layer in means if f"{layer}/var" in leaves))


def _span(model: Model) -> float:
    low, high = model.spec.box
    return high - low


def _decay(model: Model, size: int) -> Mapping[str, Array]:
    """Return by how much each statistic keeps its old value in a train-mode pass: 1 - weight of the batch."""
    if not batch_norm_paths(model.model_state):
        return {}
    x = jnp.zeros((2, *model.spec.input_shape)) + model.spec.box[0]
    return _repeat.call(_probe, (), model, x)


def _probe(model: Model, x: Array) -> Mapping[str, Array]:
    moved = [_tree.flatten_paths(_train_pass(model, x, fill, jax.random.key(0))[1]) for fill in (0.0, 1.0)]
    return {path: moved[1][path] - moved[0][path] for path in moved[0]}


def _train_pass(model: Model, x: Array, fill: float, key: Array) -> tuple[Array, Params]:
    def filled(path: str, leaf: Any) -> Any:
        return jnp.full_like(leaf, fill) if path.rpartition("/")[2] in ("mean", "var") else leaf

    state = _tree.map_with_path(filled, model.model_state)
    return model.apply_fn(model.params, state, x, train=True, rngs={"dropout": key})


def _statistics_loss(model: Model, moved: Params, decay: Mapping[str, Array]) -> Array:
    new, kept = _tree.flatten_paths(moved), _tree.flatten_paths(model.model_state)
    total = jnp.zeros(())
    for layer in batch_norm_paths(model.model_state):
        mean, var = (new[f"{layer}/{name}"] / (1 - decay[f"{layer}/{name}"]) for name in ("mean", "var"))
        old_mean, old_var = kept[f"{layer}/mean"], kept[f"{layer}/var"]
        scale = old_var + 1e-5  # a dead channel has variance 0
        total += jnp.mean((mean - old_mean) ** 2 / scale)
        total += jnp.mean((jnp.sqrt(jnp.maximum(var, 0) + 1e-8) / jnp.sqrt(scale) - 1) ** 2)
    return total


def _step(
    config: InversionConfig,
    i: Array,
    carry: _Carry,
    model: Model,
    target: Array,
    decay: Any,
    key: Array,
    steps: Array,
) -> _Carry:
    roll, flip, dropout = jax.random.split(jax.random.fold_in(key, i), 3)
    low, high = model.spec.box

    def objective(x: Array) -> Array:
        total = jnp.zeros(())
        if x.ndim == 4:
            by = jax.random.randint(roll, (2,), -config.shift, config.shift + 1)
            x = jnp.roll(x, by, axis=(1, 2))
            x = jnp.where(jax.random.bernoulli(flip), x[:, :, ::-1], x)
            total += config.smoothness * (jnp.mean(jnp.diff(x, axis=1) ** 2) + jnp.mean(jnp.diff(x, axis=2) ** 2))
        if decay:
            logits, moved = _train_pass(model, x, 0.0, dropout)
            total += _statistics_loss(model, moved, decay)
        else:
            logits = model(x)
        return total + config.class_weight * jnp.mean(optax.softmax_cross_entropy(logits, target))

    grads = jax.grad(objective)(carry.x)
    updates, opt_state = _ADAM.update(grads, carry.opt_state)
    rate = config.learning_rate * (high - low) * 0.5 * (1 + jnp.cos(jnp.pi * i / steps))
    return _Carry(jnp.clip(carry.x - rate * updates, low, high), opt_state)


def _noise(shape: tuple[int, ...], size: int, key: Array) -> Array:
    """Return smooth noise in [0, 1]."""
    coarse, fine = jax.random.split(key)
    x = 0.47 + 0.1 * jax.random.normal(fine, (size, *shape))
    if len(shape) == 3:
        low = jax.random.normal(coarse, (size, 4, 4, shape[2]))
        x = x + 0.25 * jax.image.resize(low, (size, *shape), "cubic")
    return jnp.clip(x, 0.0, 1.0)


def _targets(num_classes: int, size: int, key: Array) -> Array:
    """Return soft labels, (size, C): half of them one class each, in turn, half a mixture of two."""
    other, share = jax.random.split(key)
    first = jax.nn.one_hot(jnp.arange(size) % num_classes, num_classes)
    second = jax.nn.one_hot(jax.random.randint(other, (size,), 0, num_classes), num_classes)
    weight = jax.random.uniform(share, (size, 1), minval=0.5, maxval=1.0)
    weight = jnp.where(jnp.arange(size)[:, None] < size // 2, 1.0, weight)
    return weight * first + (1 - weight) * second
