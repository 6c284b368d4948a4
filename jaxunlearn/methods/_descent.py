"""The engine of methods that descend on one objective of the forget set, and nothing else.

A method is a subclass of `Descent` that gives the objective and, where it needs
them, values for each instance made from the original network (a teacher's
answers, labels). Batches, BatchNorm, optimiser and stopping rule are here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn._config import BaseConfig, hparam
from jaxunlearn._types import Array, Batch, Draws, Info, Model, ModelSpec, Params, Phase, Problem, PyTree

T = TypeVar("T")
#: More steps than a run can take.
_NEVER = int(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescentConfig(BaseConfig):
    """Hyper-parameters every method of this engine has."""

    learning_rate: float = hparam(1e-4, "learning rate", traced=True, low=0.0)
    batch_norm: str = hparam(
        "frozen",
        "frozen: eval mode, running statistics stay; update: train mode, as published",
        choices=("frozen", "update"),
    )
    stop: str = hparam(
        "forgotten",
        "forgotten: with the pass after which every instance is; budget: with the last pass, as published",
        choices=("forgotten", "budget"),
    )
    forget_batch: int = hparam(128, "forget instances a step", unit="instances", low=1)
    max_passes: int = hparam(20, "budget, in passes over the forget set", unit="passes", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumConfig(DescentConfig):
    """Hyper-parameters of the methods that use SGD with momentum."""

    momentum: float = hparam(0.9, "SGD momentum", traced=True, low=0.0, high=1.0)


class Rows(NamedTuple):
    """Forget instances, and what the method was given for each: a pytree with the same leading axis."""

    forget: Batch
    given: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What a step reads and writes; everything that can differ between vmapped lanes is inside.

    Attributes:
      model: the network; its params are what is trained, see `Descent.trained`.
      rows: the forget set, padded to whole batches where BatchNorm is frozen.
      opt_state, hparams: of the optimiser; the traced settings.
    """

    model: Model
    rows: Rows
    opt_state: PyTree
    hparams: Mapping[str, Array]
    goal: str = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Descent:
    """Unlearner of the methods of this engine; see the module docstring.

    Attributes:
      config: static fields select the code; traced fields arrive as ``hparams``.
    """

    config: Any

    # --- what a method gives --------------------------------------------------------------------

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        """Return the objective of one batch at the weights of ``model``, and the model state after it."""
        raise NotImplementedError

    def given(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> PyTree:
        """Return what the objective needs for each forget instance, made once."""
        return None

    def trained(self, key: Array, problem: Problem) -> Params:
        """Return the weights to start from; `network` undoes it."""
        return problem.model.params

    def network(self, trained: Params, spec: ModelSpec) -> Params:
        """Return the weights of the network that trained weights stand for."""
        return trained

    def optimiser(self, hparams: Mapping[str, Array], problem: Problem | None = None) -> optax.GradientTransformation:
        """Return the optimiser; the problem is given where its state is made, later that state has all it needs."""
        return chain(hparams)

    # --- the contract of an unlearner -----------------------------------------------------------

    @property
    def phases(self) -> tuple[Phase, ...]:
        least = _NEVER if self.config.stop == "budget" else 0
        return (Phase(self.step, self.draws, self.config.max_passes, check_every=0, min_steps=least, spread=True),)

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> State:
        """Make the values for each instance, the weights to train and the optimiser's state."""
        for_given, for_trained = jax.random.split(key)
        trained = self.trained(for_trained, problem)
        rows = Rows(problem.forget, self.given(for_given, problem, hparams))
        if self.config.batch_norm == "frozen":  # padding may not enter batch statistics
            rows = pad(rows, self.config.forget_batch)
            weight = rows.forget.weight.at[len(problem.forget.y) :].set(0.0)
            rows = rows._replace(forget=rows.forget._replace(weight=weight))
        return State(
            model=problem.model.replace(params=trained),
            rows=rows,
            opt_state=self.optimiser(hparams, problem).init(trained),
            hparams=hparams,
            goal=problem.goal,
        )

    def finish(self, state: State) -> Model:
        return state.model.replace(params=self.network(state.model.params, state.model.spec))

    def extras(self, state: State) -> dict[str, Any]:
        return {}

    def draws(self, state: State) -> Draws:
        """Deal the forget set in its order."""
        slices = Slices(len(state.rows.forget.y), self.config.forget_batch)
        period = tuple(int(slices.is_last(t)) for t in range(slices.count))
        return Draws(period, lambda state, t, part: slices.take(state.rows, t, last=bool(part)), slices.count)

    def step(self, key: Array, state: State, rows: Rows) -> tuple[State, Info]:
        """Take one step on one batch."""

        def objective(params: Params) -> tuple[Array, Params]:
            return self.loss(key, state.model.replace(params=params), state, rows)

        params = state.model.params
        (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = self.optimiser(state.hparams).update(grads, state.opt_state, params)
        model = state.model.replace(params=optax.apply_updates(params, updates), model_state=model_state)
        info = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return dataclasses.replace(state, model=model, opt_state=opt_state), info

    # --- for objectives -------------------------------------------------------------------------

    def logits(self, key: Array, model: Model, x: Array) -> tuple[Array, Params]:
        """Return logits and the model state after them; eval mode where BatchNorm is frozen, else train mode."""
        if self.config.batch_norm == "frozen":
            return model(x), model.model_state
        return model.apply_fn(model.params, model.model_state, x, train=True, rngs={"dropout": key})


def mean(weight: Array, values: Array) -> Array:
    """Return the weighted mean of a batch; rows of weight 0 are padding."""
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0)) / jnp.maximum(jnp.sum(weight), 1)


def chain(
    hparams: Mapping[str, Array], *, adam: bool = False, penalty: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Return SGD or Adam after a penalty, with the weight decay and the momentum that the settings have.

    To be built inside the trace from values in the state: nothing is closed
    over, so it vmaps and never retraces.
    """
    parts = [] if penalty is None else [penalty]
    if "weight_decay" in hparams:
        parts.append(optax.add_decayed_weights(hparams["weight_decay"]))
    if adam:
        parts.append(optax.scale_by_adam())
    elif "momentum" in hparams:
        parts.append(optax.trace(decay=hparams["momentum"]))
    return optax.chain(*parts, optax.scale_by_learning_rate(hparams["learning_rate"]))


def pad(rows: T, size: int) -> T:
    """Pad arrays to whole batches with copies of row 0, so that they stay in the box; weights are the caller's."""
    n = jax.tree.leaves(rows)[0].shape[0]
    missing = -n % min(size, n)
    if missing == 0:
        return rows
    return cast(T, jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)]), rows))


class Slices:
    """Consecutive batches of n rows, the last one possibly smaller."""

    def __init__(self, n: int, size: int):
        self.n, self.size = n, min(size, n)
        self.count = -(-n // self.size)
        self.rest = n - (self.count - 1) * self.size

    def is_last(self, t: int) -> bool:
        """Whether batch t is the smaller one."""
        return self.rest != self.size and t % self.count == self.count - 1

    def take(self, rows: T, t: Any, *, last: bool) -> T:
        """Return batch t of a pytree of arrays."""
        start, size = (t % self.count) * self.size, self.rest if last else self.size
        return cast(T, jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), rows))
