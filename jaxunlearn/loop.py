"""Drive a method to its stopping rule: one pure step, stepped from the host or on the device.

On CPU the host steps (XLA leaves gradient convolutions inside loop bodies in a
slow form); elsewhere segments of `lax.while_loop` run without a host sync a
step. Both are the same `advance` and give the same numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxunlearn import _config, _devices, _journal, _progress, _tree, _validate, artefacts, inference, losses, methods
from jaxunlearn._types import (
    Array,
    Artefact,
    Batch,
    Info,
    MethodSpec,
    Phase,
    Problem,
    PyTree,
    Result,
    StopReason,
    Unlearner,
)

Loop: TypeAlias = Literal["auto", "host", "device"]
#: Rows of the device loop's history buffers: a segment is at most so many steps.
SEGMENT = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopState:
    """A run between two steps: all that is needed to go on, a pytree of arrays.

    Attributes:
      inner: the method's state.
      key: typed key; step t uses ``fold_in(key, t)``.
      forget: the forget set the stopping rule looks at.
      held: instances of earlier requests, which must be forgotten at the end, too, or None.
      t: steps taken in the current phase; step: in all.
      phase: number of the current phase.
      forgotten_at: (k,) the step from which each instance stayed forgotten, or -1.
      done: every instance is forgotten; diverged: a step was not finite and not taken.
    """

    inner: PyTree
    key: Array
    forget: Batch
    held: Batch | None
    t: Array
    step: Array
    phase: Array
    forgotten_at: Array
    done: Array
    diverged: Array
    goal: str = dataclasses.field(metadata={"static": True})


class Event(NamedTuple):
    """What a callback is told: after a step on the host, a segment on the device; ``rows``: all steps so far."""

    state: LoopState
    steps: int
    max_steps: int
    info: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]] = ()


def start(unlearner: Unlearner, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> LoopState:
    """Prepare a method for a problem; pure, so it runs under `jax.vmap` for a vmappable method."""
    prepare_key, loop_key = jax.random.split(key)
    inner = unlearner.prepare(prepare_key, problem, hparams)
    met, held = _met(unlearner, inner, problem.forget, problem.goal), problem.artefacts.get("held")
    zero = jnp.zeros((), jnp.int32)
    return LoopState(
        inner=inner,
        key=loop_key,
        forget=problem.forget,
        held=held,
        t=zero,
        step=zero,
        phase=zero,
        forgotten_at=jnp.where(met, 0, -1).astype(jnp.int32),
        done=jnp.all(met) & _still_met(unlearner, inner, held) | _stopped(unlearner, inner),
        diverged=jnp.asarray(False),
        goal=problem.goal,
    )


def advance(
    unlearner: Unlearner, state: LoopState, *, phase: int = 0, part: int = 0, split: NamedSharding | None = None
) -> tuple[LoopState, Info]:
    """Take one step of a phase, guard it, look at the stopping rule; pure.

    A step after which a weight or the method's scalars are not finite is not
    taken: the state stays as it was and is marked ``diverged``.
    """
    spec = unlearner.phases[phase]
    draws = spec.draws(state.inner)
    batch = _devices.spread(draws.draw(state.inner, state.t, part), split if spec.spread else None)
    inner, info = spec.step(jax.random.fold_in(state.key, state.step), state.inner, batch)
    model = unlearner.finish(inner)
    finite = _tree.all_finite((model.params, model.model_state, info))
    inner = _tree.select(finite, inner, state.inner) if spec.jit else (inner if bool(finite) else state.inner)
    t, step = state.t + finite, state.step + finite

    every = spec.check_every or draws.steps_per_pass
    look = finite & (t % every == 0)
    if every == 1 or (not spec.jit and look):
        met = _met(unlearner, inner, state.forget, state.goal)
    elif not spec.jit:  # a cond outside jit compiles each time
        met = state.forgotten_at >= 0
    else:
        met = jax.lax.cond(
            look,
            lambda: _met(unlearner, inner, state.forget, state.goal),
            lambda: state.forgotten_at >= 0,
        )
    kept = jnp.where(state.forgotten_at >= 0, state.forgotten_at, step)
    forgotten_at = jnp.where(met, kept, -1).astype(jnp.int32)
    done = jnp.all(met) & (t >= spec.min_steps)
    if state.held is not None:
        done = jax.lax.cond(done, lambda: _still_met(unlearner, inner, state.held), lambda: jnp.asarray(False))
    done = done | _stopped(unlearner, inner)
    real = jnp.maximum(jnp.sum(state.forget.weight), 1)
    count = jnp.sum(jnp.where(state.forget.weight > 0, met, False))
    info = info | {"forgotten": count.astype(jnp.float32), "forgotten_share": count / real}
    new = dataclasses.replace(
        state, inner=inner, t=t, step=step, forgotten_at=forgotten_at, done=done, diverged=~finite
    )
    return new, info


def segment(
    unlearner: Unlearner,
    state: LoopState,
    limit: Array,
    *,
    phase: int = 0,
    size: int = SEGMENT,
    split: NamedSharding | None = None,
) -> tuple[LoopState, Info, Array]:
    """Advance on the device until done, diverged, ``limit`` phase steps or ``size`` steps; pure, vmappable.

    Returns:
      The new state, the scalars of its steps (buffers of length ``size``), and how many steps were tried.
    """
    draws = unlearner.phases[phase].draws(state.inner)
    parts = sorted(set(draws.period))
    which = jnp.asarray([parts.index(part) for part in draws.period], jnp.int32)
    branches = [partial(advance, unlearner, phase=phase, part=part, split=split) for part in parts]

    def body(carry: tuple[LoopState, Info, Array]) -> tuple[LoopState, Info, Array]:
        state, buffers, i = carry
        state, info = jax.lax.switch(which[state.t % len(draws.period)], branches, state)
        buffers = {name: buffers[name].at[i].set(value) for name, value in info.items()}
        return state, buffers, i + 1

    def going(carry: tuple[LoopState, Info, Array]) -> Array:
        state, _, i = carry
        return ~state.done & ~state.diverged & (state.t < limit) & (i < size)

    shapes = jax.eval_shape(branches[0], state)[1]
    buffers = {name: jnp.zeros(size, jnp.float32) for name in shapes}
    return cast(
        tuple[LoopState, Info, Array],
        jax.lax.while_loop(going, body, (state, buffers, jnp.zeros((), jnp.int32))),
    )


def solve(unlearner: Unlearner, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> LoopState:
    """Run a one-phase method from start to end as one pure function, to be vmapped over requests.

    ``jax.vmap(partial(solve, unlearner), in_axes=...)`` runs many forget sets,
    models, seeds or strengths side by side; finished lanes wait for the slowest.
    """
    state = start(unlearner, key, problem, hparams)
    for number, phase in enumerate(unlearner.phases):
        limit = jnp.asarray(_max_steps(phase, state), jnp.int32)

        def going(state: LoopState, limit: Array = limit) -> Array:
            return ~state.done & ~state.diverged & (state.t < limit)

        def body(state: LoopState, number: int = number, limit: Array = limit) -> LoopState:
            return segment(unlearner, state, limit, phase=number)[0]

        state = dataclasses.replace(state, t=jnp.zeros((), jnp.int32), phase=jnp.asarray(number, jnp.int32))
        state = jax.lax.while_loop(going, body, state)
    return state


def run(
    problem: Problem,
    *,
    method: str | MethodSpec = methods.DEFAULT,
    config: Any = None,
    key: Array,
    loop: Loop = "auto",
    callback: Callable[[Event], None] | None = None,
    resume: LoopState | None = None,
) -> Result:
    """Make a classifier forget and return what happened.

    Args:
      problem: model, forget set and goal.
      method: name in the registry, or a MethodSpec; by default the same as on the command line.
      config: the method's Config; its defaults if None.
      key: typed key (`jax.random.key`); same key, same result.
      loop: "host" steps from Python, "device" runs segments on the accelerator, "auto" is host on CPU.
      callback: called with an `Event`; raising KeyboardInterrupt stops the run and keeps what it has.
      resume: a ``Result.state`` to go on from, in place of preparing.

    Returns:
      A `Result`; ``forgotten`` comes from a separate forward pass of the returned model.

    Raises:
      ValueError: the problem does not fit the model, the goal or the method's needs.
    """
    spec = methods.get(method) if isinstance(method, str) else method
    config = spec.Config() if config is None else config
    check(spec, problem, config)
    _validate.one_of("loop", loop, ("auto", "host", "device"))
    unlearner = spec.make(_config.static(config))
    on_host = loop == "host" or (loop == "auto" and jax.default_backend() == "cpu")
    clock, seconds = time.perf_counter, {}

    began = clock()
    state = start(unlearner, key, problem, _config.traced(config)) if resume is None else resume
    jax.block_until_ready(state.step)
    seconds["prepare"] = clock() - began

    began = clock()
    drive = _Run(unlearner, state, callback, label=f"unlearning ({spec.name})")
    reason = drive.on_host() if on_host else drive.on_device()
    seconds["unlearn"] = clock() - began

    began = clock()
    state = drive.state
    model = unlearner.finish(state.inner)
    logits = inference.logits(model, problem.forget.x, label="verifying")
    forgotten = _devices.host(losses.forgotten(jnp.asarray(logits), problem.forget, problem.goal))
    seconds["verify"] = clock() - began
    if reason == "forgotten" and not forgotten.all():
        # By the method's own rule; or the batch of the check rounds otherwise: believe the last pass.
        reason = "completed" if bool(_stopped(unlearner, state.inner)) else "max_steps"
    return Result(
        model=model,
        forgotten=forgotten,
        forgotten_at=np.where(forgotten, _devices.host(state.forgotten_at), -1),
        stop_reason=reason,
        steps=int(state.step),
        history=drive.history(),
        seconds=seconds,
        extras=unlearner.extras(state.inner),
        state=state if unlearner.phases else None,
    )


def check(spec: MethodSpec, problem: Problem, config: Any) -> None:
    """Raise unless a method can work on a problem: goal, needs, config, forget set, finite weights, its own rules."""
    _validate.forget_set(problem.forget, problem.model.spec, problem.goal)
    if problem.goal not in spec.goals:
        raise ValueError(f"method {spec.name!r} cannot pursue goal {problem.goal!r}; it can: {', '.join(spec.goals)}")
    if not isinstance(config, spec.Config):
        raise TypeError(f"config must be the Config of method {spec.name!r}; got {type(config).__qualname__}")
    for need in spec.needs:
        own = {"retain": problem.retain, "public": problem.public, "taps": problem.model.spec.taps_fn}
        have = (own | {"init": problem.model.spec.init_fn} | dict(problem.artefacts)).get(need)
        if have is None:
            how = f": {artefacts.KINDS[need]}" if need in artefacts.KINDS else ""
            raise ValueError(f"method {spec.name!r} needs {need!r}, which the problem does not have{how}")
        if isinstance(have, Artefact):
            artefacts.check_model(have, problem.model)
    if problem.retain is not None:
        _validate.inputs("retain.x", problem.retain.x, problem.model.spec)
        _validate.labels("retain.y", problem.retain.y, problem.model.spec.num_classes)
    for path, leaf in _tree.flatten_paths({"params": problem.model.params, "state": problem.model.model_state}).items():
        if not np.all(np.isfinite(_devices.host(leaf))):
            raise ValueError(f"the model's weights are not finite: {path} has NaN or infinite entries")
    getattr(spec.make(_config.static(config)), "check", lambda problem: None)(problem)


class _Run:
    """One run in progress: its latest state and its history, also when it is interrupted."""

    def __init__(
        self, unlearner: Unlearner, state: LoopState, callback: Callable[[Event], None] | None, label: str
    ) -> None:
        self.unlearner, self.state, self.callback, self.label = unlearner, state, callback, label
        self.rows: list[Mapping[str, Any]] = []
        self.split = _devices.split_of(state.forget)

    def on_host(self) -> StopReason:
        return self._drive(self._host_steps)

    def on_device(self) -> StopReason:
        return self._drive(self._device_steps)

    def history(self) -> dict[str, np.ndarray]:
        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {}
        for name in names:
            values = (row[name] if name in row else np.full(_length(row), np.nan) for row in self.rows)
            columns[name] = np.concatenate([np.atleast_1d(np.asarray(value)) for value in values])
        return columns

    def _drive(self, advance_some: Callable[[int, int], None]) -> StopReason:
        phases = self.unlearner.phases
        if not phases:
            return "completed"
        try:
            with _journal.work(self.label) as work:
                _, self.state, self.rows = work.resume(self.state, self.rows)
                for number in range(int(self.state.phase), len(phases)):
                    if number != int(self.state.phase):
                        zero = jnp.zeros((), jnp.int32)
                        self.state = dataclasses.replace(self.state, t=zero, phase=jnp.asarray(number, jnp.int32))
                    limit = _max_steps(phases[number], self.state)
                    while not (self.state.done or self.state.diverged or int(self.state.t) >= limit):
                        advance_some(number, limit)
                        self._tell(limit)
                        work.keep(int(self.state.step), self.state, self.rows)
                    if self.state.done or self.state.diverged:
                        break
        except KeyboardInterrupt:
            return "interrupted"
        return "forgotten" if self.state.done else "diverged" if self.state.diverged else "max_steps"

    def _host_steps(self, number: int, limit: int) -> None:
        phase = self.unlearner.phases[number]
        period = phase.draws(self.state.inner).period
        part = period[int(self.state.t) % len(period)]
        step = _advance if phase.jit else advance
        state, info = step(self.unlearner, self.state, phase=number, part=part, split=self.split)
        taken = not state.diverged  # a step that was not taken has no row
        row = {name: np.asarray(value) for name, value in info.items()}  # on the host: a long run's history stays small
        self.state = state
        if taken:
            self.rows.append(row)

    def _device_steps(self, number: int, limit: int) -> None:
        if not self.unlearner.phases[number].jit:
            return self._host_steps(number, limit)
        limits = jnp.asarray(limit, jnp.int32)
        state, info, tried = _segment(self.unlearner, self.state, limits, phase=number, split=self.split)
        taken = int(tried) - int(state.diverged)
        if taken:
            self.rows.append({name: np.asarray(values)[:taken] for name, values in info.items()})
        self.state = state
        return None

    def _tell(self, limit: int) -> None:
        steps = int(self.state.step)
        _progress.report(self.label, steps, _progress.AtMost(limit))
        if self.callback is not None:
            last = {name: float(np.ravel(value)[-1]) for name, value in (self.rows[-1] if self.rows else {}).items()}
            self.callback(Event(self.state, steps, limit, last, self.rows))


_advance = jax.jit(advance, static_argnums=0, static_argnames=("phase", "part", "split"))
_segment = jax.jit(segment, static_argnums=0, static_argnames=("phase", "size", "split"))


def _max_steps(phase: Phase, state: LoopState) -> int:
    return phase.max_passes * phase.draws(state.inner).steps_per_pass


@partial(jax.jit, static_argnums=(0, 3))
def _met(unlearner: Unlearner, inner: PyTree, forget: Batch, goal: str) -> Array:
    return losses.forgotten(unlearner.finish(inner)(forget.x), forget, goal)


def _still_met(unlearner: Unlearner, inner: PyTree, held: Batch | None) -> Array:
    """Return whether earlier requests hold: those with a target get it, the others lose their label."""
    if held is None:
        return jnp.asarray(True)
    logits = unlearner.finish(inner)(held.x)
    relabelled, other = (losses.forgotten(logits, held, goal) for goal in ("relabel", "misclassify"))
    return jnp.all(jnp.where(held.target >= 0, relabelled, other))


def _stopped(unlearner: Unlearner, inner: PyTree) -> Array:
    """Return whether the method is done by a rule of its own."""
    rule = getattr(unlearner, "stopped", None)
    return jnp.asarray(False) if rule is None else jnp.asarray(rule(inner))


def _length(row: Mapping[str, Any]) -> int:
    return int(np.size(next(iter(row.values()))))
