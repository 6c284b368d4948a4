"""The adversarial images that stand in for the retain set (Cha et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _devices, _memo, _repeat, _validate
from jaxunlearn._types import Array, Batch, Model
from jaxunlearn.attacks.batch import attack_batch
from jaxunlearn.attacks.pgd import Norm, Scalar, pgd
from jaxunlearn.attacks.targets import TARGETS, Targets, random_targets


def adversarial_set(
    key: Array,
    model: Model,
    forget: Batch,
    *,
    draws: int = 20,
    epsilon: Scalar,
    step_size: Scalar,
    steps: int = 100,
    norm: Norm = "l2",
    targets: Targets = "uniform",
    group: int = 32,
    microbatch_size: int = 64,
    loop: _repeat.Loop = "auto",
) -> Batch:
    """Attack every forget instance ``draws`` times, each with its own target and start.

    The key of one image is ``fold_in(fold_in(key, index), draw)`` with the
    instance's index: no image depends on which others are asked for. Every
    image is kept with its target, also where the attack failed (published code).

    Args:
      key: one typed key.
      model: the classifier before unlearning; attacked in eval mode.
      forget: k instances; padding (weight 0) gives images of weight 0.
      draws: images per instance, at least 1.
      epsilon: radius, in units of x (pixels in [0, 1]); at least 0, traced.
      step_size: length of a step, same units; at least 0, traced.
      steps: PGD steps, at least 1.
      norm: "l2" or "linf".
      targets: scheme of `random_targets`.
      group: instances of one published batch, at least 1: the order is by
        group, then by draw, then by instance of the group.
      microbatch_size: images at a time on each device; does not change the result.
      loop: "auto", "host" or "device"; does not change the result.

    Returns:
      draws * k images, x adversarial, y the original label, target the label
      attacked towards, weight and index of the instance.

    Raises:
      ValueError, TypeError: for a forget set that does not fit the model, or a
        setting out of its range.
    """
    for name, value in {"draws": draws, "group": group}.items():
        _validate.positive_int(name, value)
    _validate.one_of("targets", targets, TARGETS)
    _validate.forget_set(_real(forget), model.spec, "misclassify")
    row, draw = published_order(len(forget.x), draws, group)
    of, target, keys = _repeat.call(_draw, (model.spec.num_classes, targets), key, forget, row, draw)
    of, target, keys = _devices.spread((of, target, keys), _devices.split_of(forget))

    def make() -> Array:
        return attack_batch(
            pgd(model.apply_fn, norm=norm, steps=steps, loop=loop),
            keys,
            model.params,
            model.model_state,
            of.x,
            target,
            epsilon=epsilon,
            step_size=step_size,
            box=model.spec.box,
            microbatch_size=microbatch_size,
            progress="adversarial images",
        )

    made_of = (model.params, model.model_state, keys, of.x, target, epsilon, step_size, model.spec.box, norm, steps)
    return of._replace(x=_memo.array(made_of, make), target=target)


def _real(forget: Batch) -> Batch:
    """Return the rows that are no padding, where that can be seen."""
    if _repeat.is_traced(forget):
        return forget
    return jax.tree.map(lambda a: _devices.host(a)[_devices.host(forget.weight) > 0], forget)


def published_order(k: int, draws: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, draw) of each of the draws * k images: by group of rows, by draw, by row.

    >>> published_order(3, 2, 2)[0].tolist()
    [0, 1, 0, 1, 2, 2]
    """
    pairs = [
        (row, draw)
        for first in range(0, k, group)
        for draw in range(draws)
        for row in range(first, min(first + group, k))
    ]
    row, draw = np.array(pairs, np.int32).T
    return row, draw


def _draw(
    num_classes: int, targets: Targets, key: Array, forget: Batch, row: Array, draw: Array
) -> tuple[Batch, Array, Array]:
    def one(index: Array, draw: Array, y: Array) -> tuple[Array, Array]:
        for_target, for_start = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), draw))
        return random_targets(for_target, y, num_classes, scheme=targets), for_start

    of = jax.tree.map(lambda a: jnp.asarray(a)[row], forget)
    return of, *jax.vmap(one)(of.index, draw, of.y)
