"""The gradient methods' shared engine: forget term, companion term, optax chain, batches.

NegGrad, Correct, ADV, ADV+IMP and Oracle (Cha et al. 2024) are this one step
with different terms switched on::

    loss = (b_f * mean L_forget + b_c * mean CE(companion)) / (b_f + b_c)

followed by SGD with momentum and coupled weight decay on all parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import attacks, importance, losses, transforms
from jaxunlearn._config import BaseConfig, hparam
from jaxunlearn._types import Array, Batch, Draws, Info, Model, Params, Phase, Problem, PyTree
from jaxunlearn.methods._descent import Slices, chain, pad

BATCH_NORM = ("frozen", "update", "adv_eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrderConfig(BaseConfig):
    """Hyper-parameters every gradient method has."""

    learning_rate: float = hparam(1e-3, "SGD learning rate", traced=True, low=0.0)
    momentum: float = hparam(0.9, "SGD momentum", traced=True, low=0.0, high=1.0)
    weight_decay: float = hparam(1e-4, "coupled weight decay, on all parameters", traced=True, low=0.0)
    forget_loss: str = hparam(
        "margin",
        "margin: stops at the boundary; cross_entropy: unbounded ascent (misclassify), descent (relabel)",
        choices=("margin", "cross_entropy"),
    )
    slack: float = hparam(0.5, "how far past the boundary the margin loss pushes", traced=True, unit="logits", low=0.0)
    batch_norm: str = hparam(
        "frozen",
        "frozen: running statistics stay; update: train mode for both batches, as published; "
        "adv_eval: train mode for the forget batch only",
        choices=BATCH_NORM,
        deviation="L2UL-8",
    )
    forget_batch: int = hparam(32, "forget instances a step", unit="instances", low=1)
    max_passes: int = hparam(200, "budget, in passes over the largest set", unit="passes", low=1)


PUBLISHED: dict[str, Any] = dict(forget_loss="cross_entropy", batch_norm="update", max_passes=1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompanionConfig(FirstOrderConfig):
    """Hyper-parameters of the methods with a second batch beside the forget batch."""

    companion_batch: int = hparam(256, "companion (adversarial or retain) instances a step", unit="instances", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackConfig(CompanionConfig):
    """Hyper-parameters of the methods held up by adversarial examples of the forget set."""

    draws: int = hparam(20, "adversarial examples made of each forget instance", low=1)
    epsilon: float = hparam(4.0, "radius of the L2 ball of the attack, in input units", traced=True, low=0.0)
    attack_step_size: float = hparam(0.1, "length of one attack step, in input units", traced=True, low=0.0)
    attack_steps: int = hparam(100, "attack iterations", unit="steps", low=1)
    targets: str = hparam(
        "uniform",
        "uniform over the other classes; published: own label becomes class C // 2",
        choices=("uniform", "published"),
        deviation="L2UL-2",
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What a step reads and writes; everything that can differ between vmapped lanes is inside."""

    model: Model
    forget: Batch
    companion: Batch | None
    opt_state: PyTree
    hparams: Mapping[str, Array]
    goal: str = dataclasses.field(metadata={"static": True})


class StepBatch(NamedTuple):
    """The two batches of one step."""

    forget: Batch
    companion: Batch | None


@dataclasses.dataclass(frozen=True)
class FirstOrder:
    """Unlearner of the gradient methods; see the module docstring.

    Attributes:
      config: static fields select the code; traced fields arrive as ``hparams``.
      companion: what stands beside the forget batch.
      weighting: "share" joins both batches in one mean; "sum" adds their means (Oracle).
      importance: whether masked regularisation by MAS holds the weights.
      check_every: steps between looks at the stopping rule; 0 is once a pass.
    """

    config: Any
    companion: Literal["none", "adversarial", "retain"] = "none"
    weighting: Literal["share", "sum"] = "share"
    importance: bool = False
    check_every: int = 1

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.step, self.draws, self.config.max_passes, self.check_every, spread=True),)

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> State:
        """Make the companion set, the importance and the optimiser's state."""
        model, forget = problem.model, problem.forget
        companion = self._companion_set(key, problem, hparams)
        holding = _holding_weight(self.config, model, forget) if self.importance else None
        opt_state = _optimiser(hparams, holding, model.params).init(model.params)
        if self.config.batch_norm == "frozen":  # padding may not enter batch statistics
            forget = _pad(forget, self.config.forget_batch)
            companion = companion and _pad(companion, self.config.companion_batch)
        return State(
            model=model, forget=forget, companion=companion, opt_state=opt_state, hparams=hparams, goal=problem.goal
        )

    def finish(self, state: State) -> Model:
        return state.model

    def extras(self, state: State) -> dict[str, Any]:
        return {"adversarial": state.companion} if self.companion == "adversarial" else {}

    def draws(self, state: State) -> Draws:
        """Pair batch t of the companion set with batch t of the forget set, each cycling on its own."""
        forget = Slices(state.forget.x.shape[0], self.config.forget_batch)
        beside = forget if state.companion is None else Slices(state.companion.x.shape[0], self.config.companion_batch)

        def draw(state: State, t: Any, part: int) -> StepBatch:
            return StepBatch(
                forget.take(state.forget, t, last=bool(part & 1)),
                state.companion and beside.take(state.companion, t, last=bool(part & 2)),
            )

        period = math.lcm(forget.count, beside.count)
        parts = tuple(forget.is_last(t) + 2 * (beside.is_last(t) and beside is not forget) for t in range(period))
        return Draws(parts, draw, beside.count)

    def step(self, key: Array, state: State, batch: StepBatch) -> tuple[State, Info]:
        """Take one SGD step on both batches; ``key`` is for dropout, which only ``batch_norm="update"`` switches on."""
        model = state.model

        def objective(params: Params) -> tuple[Array, tuple[Params, Info]]:
            logits_f, logits_c, model_state = self._forward(key, model, params, batch)
            b_f = jnp.sum(batch.forget.weight)
            per_example = _forget_loss(self.config.forget_loss, logits_f, batch.forget, state)
            loss_f = jnp.sum(batch.forget.weight * per_example) / jnp.maximum(b_f, 1)
            if batch.companion is None:
                return loss_f, (model_state, {"forget_loss": loss_f})
            b_c = jnp.sum(batch.companion.weight)
            label = batch.companion.target if self.companion == "adversarial" else batch.companion.y
            ce = losses.cross_entropy(logits_c, label)
            loss_c = jnp.sum(batch.companion.weight * ce) / jnp.maximum(b_c, 1)
            total = loss_f + loss_c if self.weighting == "sum" else (b_f * loss_f + b_c * loss_c) / (b_f + b_c)
            return total, (model_state, {"forget_loss": loss_f, "companion_loss": loss_c})

        grads, (model_state, info) = jax.grad(objective, has_aux=True)(model.params)
        held = state.opt_state[0] if self.importance else None
        optimiser = _optimiser(state.hparams, held and held.holding_weight, held and held.anchor)
        updates, opt_state = optimiser.update(grads, state.opt_state, model.params)
        params = optax.apply_updates(model.params, updates)
        info = info | {"grad_norm": optax.tree.norm(grads)}
        new = model.replace(params=params, model_state=model_state)
        return dataclasses.replace(state, model=new, opt_state=opt_state), info

    def _companion_set(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> Batch | None:
        if self.companion == "adversarial":
            return attacks.adversarial_set(
                key,
                problem.model,
                problem.forget,
                draws=self.config.draws,
                epsilon=hparams["epsilon"],
                step_size=hparams["attack_step_size"],
                steps=self.config.attack_steps,
                targets=self.config.targets,
                group=self.config.forget_batch,
            )
        if self.companion == "retain":
            retain = cast(Batch, problem.retain)
            order = jax.random.permutation(key, retain.x.shape[0])
            return jax.tree.map(lambda leaf: leaf[order], retain)
        return None

    def _forward(self, key: Array, model: Model, params: Params, batch: StepBatch) -> tuple[Array, Any, Params]:
        """Return logits of the forget and the companion batch and the new model state.

        In train mode the two batches are normalised apart, the companion first,
        and each moves the running statistics (published code).
        """
        mode, companion = self.config.batch_norm, batch.companion
        apply, model_state = model.apply_fn, model.model_state
        if mode == "frozen":
            x = batch.forget.x if companion is None else jnp.concatenate([batch.forget.x, companion.x])
            logits = apply(params, model_state, x, train=False)[0]
            n = batch.forget.x.shape[0]
            return logits[:n], logits[n:], model_state
        logits_c, (rngs_c, rngs_f) = None, ({"dropout": jax.random.fold_in(key, i)} for i in range(2))
        if companion is not None:
            logits_c, moved = apply(params, model_state, companion.x, train=mode == "update", rngs=rngs_c)
            model_state = moved if mode == "update" else model_state
        logits_f, model_state = apply(params, model_state, batch.forget.x, train=True, rngs=rngs_f)
        return logits_f, logits_c, model_state


def _forget_loss(name: str, logits: Array, forget: Batch, state: State) -> Array:
    slack = state.hparams["slack"]
    if state.goal == "misclassify":
        margin = name == "margin"
        return losses.bounded_margin(logits, forget.y, slack) if margin else losses.ascent(logits, forget.y)
    if name == "margin":
        return losses.bounded_target(logits, forget.target, slack)
    return losses.cross_entropy(logits, forget.target)


def _holding_weight(config: Any, model: Model, forget: Batch) -> Params:
    measure = importance.mas(
        model.apply_fn,
        variant=config.mas,
        accumulate=config.mas_accumulate,
        train=config.mas_train,
        batch_size=config.forget_batch,
    )
    omega = measure(model.params, model.model_state, forget.x, weight=forget.weight)
    return importance.holding_weight(omega)


def _optimiser(hparams: Mapping[str, Array], holding: Any, anchor: Any) -> optax.GradientTransformation:
    penalty = None
    if holding is not None:
        penalty = transforms.masked_regularization(holding, anchor, hparams["strength"])
    return chain(hparams, penalty=penalty)


def _pad(batch: Batch, size: int) -> Batch:
    """Pad a set to whole batches with rows of weight 0."""
    padded = pad(batch, size)
    return padded._replace(weight=padded.weight.at[len(batch.y) :].set(0.0))
