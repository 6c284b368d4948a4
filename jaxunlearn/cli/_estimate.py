"""What a run would cost, from shapes and from a short measured probe; an estimate, and it says so."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _config, curvature, inference, loop, losses, proxies
from jaxunlearn._types import Draws, MethodSpec, Model, Phase, Problem, PyTree, Work
from jaxunlearn.cli import _proxies
from jaxunlearn.cli._run import Request

#: Images of the probe.
PROBE = 32


def estimate(
    request: Request, problem: Problem, spec: MethodSpec, config: Any, *, inversion: int = 0
) -> list[tuple[str, str]]:
    """Return lines on time and memory of a request that is not run, with so many images from inversion.

    Time is that of one forward pass, one weight gradient and one input
    gradient of 32 images, timed here once compiled, times how often the
    request needs them; compilation is not in it. Memory is that of the data, of
    the method's state by its shapes, and what the compiler sets aside for one step.
    """
    unlearner = spec.make(_config.static(config))
    forward, weights, inputs = _probe(request.model, problem)
    measured = 2 * sum(map(len, request.sets().values()))
    lines = [("measuring", f"about {_time(measured * forward)} for {measured:,} images, before and after together")]

    if inversion:
        lines.append(("inversion", _inversion(request.first, inversion)))
    draws, iterations = getattr(config, "draws", None), getattr(config, "attack_steps", None)
    if draws and iterations:
        images = draws * len(request.rows)
        took = _time(images * iterations * inputs)
        lines.append(("attack", f"about {took} for {images:,} images of {iterations} steps each"))

    stored = len(request.source.ids) * int(np.prod(request.source.input_shape))
    memory = [f"{_bytes(stored)} for the data set at 8 bits a value"]
    state = _shapes(unlearner, problem, config)
    work = unlearner.work(problem) if hasattr(unlearner, "work") else None
    if work is not None:
        seconds = work.forward * forward + work.gradients * _row_seconds(request.model, problem)
        lines.append(("steps", f"at most {_time(seconds)}: {_count(work, unlearner)}"))
        memory.append(f"{_bytes(work.row_bytes)} for rows")
    elif state is None:
        passes = sum(phase.max_passes for phase in unlearner.phases)
        lines.append(("steps", f"at most {passes} passes; not estimated, this method must run to know their size"))
    else:
        lines += [("steps", _steps(phase, state, weights)) for phase in unlearner.phases]
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        memory.append(f"{_bytes(held)} for weights, optimiser and the method's images")
        peaks = [_step_bytes(unlearner, state, number) for number in range(len(unlearner.phases))]
        if any(peaks):
            memory.append(f"{_bytes(max(peaks))} within a step, as compiled")
    return [
        *lines,
        ("memory", f"about {', '.join(memory)}"),
        ("note", "an estimate, from a probe on this machine now; compiling comes on top, other work slows it"),
    ]


def _inversion(model: Model, n: int) -> str:
    """Return a sentence on n images made from a network; times a step of it, which takes more than a gradient."""
    if _proxies.kept(model, n) is not None:
        return f"{n:,} images of this network are kept from an earlier run"
    steps, one = _proxies.SETTINGS.steps, dataclasses.replace(_proxies.SETTINGS, steps=1)
    seconds = _best(lambda: proxies.invert(jax.random.key(0), model, PROBE, one)) / PROBE
    return f"about {_time(n * steps * seconds)} for {n:,} images of {steps} steps each, once for this network"


def _count(work: Work, unlearner: Any) -> str:
    steps = sum(phase.max_passes for phase in unlearner.phases)
    return f"{steps} steps, {work.gradients:,} per-example gradients, {work.forward:,} images forward"


def _row_seconds(model: Model, problem: Problem) -> float:
    """Return the seconds of one image's weight gradient on its own."""
    x = np.asarray(problem.forget.x)[np.arange(PROBE) % len(problem.forget.x)]
    direction = np.zeros((PROBE, model.spec.num_classes), np.float32)
    direction[:, 0] = 1
    jacobian = curvature.Jacobian(curvature.LogitDirection(model.apply_fn), curvature.select_paths(model.params))
    return _best(lambda: jacobian.rows(model.params, model.model_state, (x, direction))) / PROBE


def _steps(phase: Phase, state: Any, seconds: float) -> str:
    """Return a sentence on a phase whose weight gradients take so many seconds an image."""
    plan = phase.draws(state.inner)
    batch = jax.eval_shape(partial(_first, plan), state.inner)
    inputs = state.forget.x.ndim
    rows = sum(leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim == inputs)
    steps = phase.max_passes * plan.steps_per_pass
    return (
        f"about {_time(rows * seconds)} a step of {rows} images; at most {steps:,} steps, "
        f"{_time(steps * rows * seconds)}; it stops as soon as every instance is forgotten"
    )


def _step_bytes(unlearner: Any, state: Any, number: int) -> int:
    """Return what one compiled step needs beside its arguments, or 0 where that is not known."""
    phase = unlearner.phases[number]
    if not phase.jit:
        return 0
    part = phase.draws(state.inner).period[0]
    compiled = jax.jit(partial(loop.advance, unlearner, phase=number, part=part)).lower(state).compile()
    return int(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0))


def _first(plan: Draws, state: PyTree) -> Any:
    return plan.draw(state, 0, plan.period[0])


def _probe(model: Model, problem: Problem) -> tuple[float, float, float]:
    """Return the seconds an image of a forward pass, a weight gradient and an input gradient."""
    take = np.arange(PROBE) % problem.forget.x.shape[0]
    x, y = jnp.asarray(problem.forget.x)[take], jnp.asarray(problem.forget.y)[take]

    def loss(params: PyTree, x: jax.Array) -> jax.Array:
        logits = model.apply_fn(params, model.model_state, x, train=False)[0]
        return jnp.sum(losses.cross_entropy(logits, y))

    work = (
        lambda: inference.logits(model, x, label="probe"),
        partial(jax.jit(jax.grad(loss)), model.params, x),
        partial(jax.jit(jax.grad(loss, argnums=1)), model.params, x),
    )
    forward, weights, inputs = (_best(call) / PROBE for call in work)
    return forward, weights, inputs


def _best(call: Callable[[], Any]) -> float:
    jax.block_until_ready(call())  # compiles
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)


def _shapes(unlearner: Any, problem: Problem, config: Any) -> Any:
    """Return the shapes of the method's starting state, or None where it must run to know them."""
    try:
        return jax.eval_shape(partial(loop.start, unlearner), jax.random.key(0), problem, _config.traced(config))
    except jax.errors.JAXTypeError:
        return None


def _time(seconds: float) -> str:
    if seconds < 1:
        return "1 s" if seconds > 0.5 else f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
