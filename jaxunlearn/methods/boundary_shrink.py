"""Boundary shrink: give each forget instance to the nearest wrong class ("Boundary Unlearning", CVPR 2023).

For a forget instance x with label y and the original network f0: an adversarial
example x' by one sign step of length epsilon against f0, the class that f0 sees
there as the nearest wrong one, and descent on the cross-entropy of that class at
x. Where the step does not fool f0 the published code keeps y itself; here it is
the strongest other class at x', or the instance is skipped. How many there were
is among the extras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _repeat, attacks, losses
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, Params, Problem
from jaxunlearn.methods._descent import Descent, MomentumConfig, Rows, State, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MomentumConfig):
    """Hyper-parameters of boundary shrink."""

    learning_rate: float = hparam(1e-5, "SGD learning rate", traced=True, low=0.0)
    epsilon: float = hparam(0.1, "length of the sign step, in input units", traced=True, low=0.0)
    not_fooled: str = hparam(
        "runner-up",
        "where the sign step changes no answer: the strongest other class, skip the instance, or keep its label, "
        "as published",
        choices=("runner-up", "skip", "keep"),
    )
    max_passes: int = hparam(500, "budget, in passes over the forget set", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the settings of a published comparison on CIFAR-10, ResNet-18: 20 passes to the end."""
        return cls(learning_rate=1e-4, not_fooled="keep", max_passes=20, batch_norm="update", stop="budget")


class Nearest(NamedTuple):
    """The nearest wrong class of each instance, and whether the sign step fooled the network."""

    label: Array
    fooled: Array


@dataclasses.dataclass(frozen=True)
class BoundaryShrink(Descent):
    """The method bound to its static settings."""

    def given(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> Nearest:
        model, forget = problem.model, problem.forget
        x = attacks.attack_batch(
            attacks.fgsm(model.apply_fn),
            jax.random.split(key, len(forget.y)),
            model.params,
            model.model_state,
            forget.x,
            forget.y,
            epsilon=hparams["epsilon"],
            box=model.spec.box,
        )
        return _repeat.call(_nearest, (self.config.not_fooled == "keep",), model, x, forget.y)

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        logits, model_state = self.logits(key, model, rows.forget.x)
        weight, nearest = rows.forget.weight, rows.given
        if self.config.not_fooled == "skip":
            weight = jnp.where(nearest.fooled, weight, 0.0)
        return mean(weight, losses.cross_entropy(logits, nearest.label)), model_state

    def extras(self, state: State) -> dict[str, Any]:
        rows = state.rows
        return {"not_fooled": int(np.sum(~np.asarray(rows.given.fooled) & (np.asarray(rows.forget.weight) > 0)))}


def _nearest(keep: bool, model: Model, x: Array, label: Array) -> Nearest:
    logits = model(x)
    own = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    seen = jnp.argmax(logits, axis=-1)
    nearest = seen if keep else jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=-1)
    return Nearest(nearest.astype(jnp.int32), seen != label)


def make(config: Config) -> BoundaryShrink:
    """Bind boundary shrink to its static settings."""
    return BoundaryShrink(config)


SPEC = MethodSpec(
    name="boundary-shrink",
    make=make,
    Config=Config,
    summary="give each forget instance to the nearest wrong class",
    goals=("misclassify",),
    cost="one input gradient an instance, then one forward and backward pass over the forget set a pass",
    paper="Chen et al., CVPR 2023, Boundary Unlearning",
    strength="learning_rate",
)
