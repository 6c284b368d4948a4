"""Random label: fine-tune the forget set to random labels, with no retain data (after Graves et al. 2021, SalUn's RL).

Descent on the cross-entropy of a random label for each forget instance. The
published forms repair the network on D_r in the same run: amnesiac unlearning
with wrong labels that are fixed once, RL with labels drawn anew in every pass.
Both draw on D_r, which is left out here; what it cost shows.

Departure from the published code of RL: BASE-2, there a label is drawn among all
classes and may be the true one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax

from jaxunlearn import attacks, losses
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, Batch, MethodSpec, Model, Params, Problem
from jaxunlearn.methods._descent import Descent, MomentumConfig, Rows, State, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MomentumConfig):
    """Hyper-parameters of random label."""

    learning_rate: float = hparam(1e-5, "SGD learning rate", traced=True, low=0.0)
    weight_decay: float = hparam(0.0, "coupled weight decay, on all parameters", traced=True, low=0.0)
    labels: str = hparam(
        "wrong",
        "wrong: any other class, equally often; any: the true one, too, as published for RL",
        choices=("wrong", "any"),
        deviation="BASE-2",
    )
    redraw: bool = hparam(False, "draw labels anew in every pass, as RL does; else once, as amnesiac unlearning does")
    max_passes: int = hparam(500, "budget, in passes over the forget set", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the published settings of RL on CIFAR-10 (BASE-2), without its passes over D_r."""
        return cls(
            learning_rate=0.01,
            weight_decay=5e-4,
            labels="any",
            redraw=True,
            max_passes=10,
            batch_norm="update",
            stop="budget",
        )


@dataclasses.dataclass(frozen=True)
class RandomLabel(Descent):
    """The method bound to its static settings."""

    def given(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> Array:
        return self.draw(key, problem.forget, problem.model.spec.num_classes)

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        logits, model_state = self.logits(key, model, rows.forget.x)
        label = self.draw(key, rows.forget, model.spec.num_classes) if self.config.redraw else rows.given
        return mean(rows.forget.weight, losses.cross_entropy(logits, label)), model_state

    def draw(self, key: Array, forget: Batch, classes: int) -> Array:
        """Return a label for each instance, (n,), keyed by instance."""

        def one(index: Array, y: Array) -> Array:
            own = jax.random.fold_in(key, index)
            if self.config.labels == "any":
                return jax.random.randint(own, (), 0, classes)
            return attacks.random_targets(own, y, classes)

        return jax.vmap(one)(forget.index, forget.y)


def make(config: Config) -> RandomLabel:
    """Bind random label to its static settings."""
    return RandomLabel(config)


SPEC = MethodSpec(
    name="random-label",
    make=make,
    Config=Config,
    summary="fine-tune the forget set to random labels, nothing held",
    goals=("misclassify",),
    cost="one forward and backward pass over the forget set a pass",
    paper="after Graves et al., AAAI 2021 (amnesiac), and Fan et al., ICLR 2024 (RL in SalUn), without retain data",
    strength="learning_rate",
)
