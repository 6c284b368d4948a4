"""Many instances under one attack, with flat memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _devices, _journal, _progress, _repeat, _validate
from jaxunlearn._ahead import A_CORE, ahead, count_cores
from jaxunlearn._types import Array, Params
from jaxunlearn.attacks.pgd import PGD, Box, Limits, Scalar

#: Keys, inputs and labels.
Chunk: TypeAlias = tuple[Array, Array, Array]


def attack_batch(
    attack: PGD,
    keys: Array,
    params: Params,
    model_state: Params,
    x: Array,
    label: Array,
    *,
    epsilon: Scalar,
    step_size: Scalar | None = None,
    box: Box = (0.0, 1.0),
    microbatch_size: int = 64,
    loop: _repeat.Loop | None = None,
    progress: str | None = None,
) -> Array:
    """Attack many instances, in microbatches; equal to the vmapped attack.

    Args:
      attack: from `pgd` or `fgsm`.
      keys: (n,) typed keys, one an instance.
      params, model_state: of the network, shared.
      x: (n, *input_shape), inside the box.
      label: (n,), int.
      epsilon, step_size, box: shared scalars, as in `PGD`.
      microbatch_size: instances at a time on each device, on CPU at most eight a core; does not change the result.
      loop: None is the attack's own.
      progress: what progress is reported as, in steps, if at all.

    Returns:
      Adversarial examples, (n, *input_shape).

    Raises:
      ValueError, TypeError: for arrays of different lengths or none, and as `PGD`.
    """
    if loop is not None:
        attack = dataclasses.replace(attack, loop=loop)
    xs = (keys, jnp.asarray(x), jnp.asarray(label))
    for name, value in zip(("keys", "label"), (keys, xs[2]), strict=True):
        if jnp.ndim(value) != 1:
            raise ValueError(f"{name} must have shape (n,), one an instance; got {jnp.shape(value)}")
    _validate.same_length("the attack", {"keys": keys, "x": x, "label": label})
    limits = attack.limits(xs[1], epsilon=epsilon, step_size=step_size, box=box)
    model = (params, model_state)
    on_host = _repeat.on_host(xs, model, limits, loop=attack.loop)
    n, devices = _repeat.rows(xs), _devices.parts(_devices.split_of(xs))
    several = on_host and devices == 1 and jax.default_backend() == "cpu"
    most = min(microbatch_size, A_CORE) if several else microbatch_size
    chunks = _repeat.split(xs, size=devices * _repeat.chunk_size(-(-n // devices), most))
    if _repeat.is_traced(xs, model, limits):
        return _repeat.join(jax.lax.map(lambda chunk: _on_device(attack, chunk, model, limits), chunks), n=n)
    count, width = chunks[1].shape[0], count_cores() if several else 1
    with _journal.work(progress or "attack") as work:
        first, _, out = work.resume(())
        for c in range(first, count, width):  # from the host around device loops too: progress and Ctrl-C
            beside = [_repeat.pick(chunks, i) for i in range(c, min(c + width, count))]
            done, total = c * attack.steps, count * attack.steps
            if on_host:
                out += _from_host(attack, beside, model, limits, progress, done, total)
            else:
                out += [_repeat.call(_on_device, (attack,), chunk, model, limits) for chunk in beside]
                if progress is not None:
                    jax.block_until_ready(out[-1])
                    _progress.report(progress, done + attack.steps, total)
            work.keep(c + len(beside), (), out)
    return _repeat.join(out, n=n)


def _from_host(
    attack: PGD,
    chunks: list[Chunk],
    model: tuple[Params, Params],
    limits: Limits,
    progress: str | None,
    done: int,
    total: int,
) -> list[Array]:
    """Attack chunks side by side, all of them a step at a time."""
    each: Callable[..., Iterable[Array]] = ahead if len(chunks) > 1 else map
    ds = list(each(lambda chunk: _repeat.call(_start, (attack,), chunk, limits), chunks))
    with _journal.work(progress or "repeat") as work:
        first, ds, _ = work.resume(ds)
        for i in range(first, attack.steps):

            def step(of: tuple[Array, Chunk], i: int = i) -> Array:
                return _repeat.call(_step, (attack,), np.int32(i), *of, model, limits)

            ds = list(each(step, zip(ds, chunks, strict=True)))
            if progress is not None:
                jax.block_until_ready(ds)  # dispatch runs ahead; report what is done
                _progress.report(progress, done + (i + 1) * len(chunks), total)
            work.keep(i + 1, ds)
    return [_repeat.call(PGD.finish, (attack,), chunk[1], d, limits) for chunk, d in zip(chunks, ds, strict=True)]


def _start(attack: PGD, chunk: Chunk, limits: Limits) -> Array:
    keys, x, _ = chunk
    return jax.vmap(attack.start, in_axes=(0, 0, None))(keys, x, limits)


def _step(
    attack: PGD,
    i: Array,
    d: Array,
    chunk: Chunk,
    model: tuple[Params, Params],
    limits: Limits,
) -> Array:
    _, x, label = chunk
    return jax.vmap(attack.step, in_axes=(None, None, 0, 0, 0, None))(*model, x, label, d, limits)


def _on_device(attack: PGD, chunk: Chunk, model: tuple[Params, Params], limits: Limits) -> Array:
    d = _start(attack, chunk, limits)
    d = _repeat.repeat(_step, attack.steps, d, chunk, model, limits, statics=(attack,), loop="device")
    return attack.finish(chunk[1], d, limits)
