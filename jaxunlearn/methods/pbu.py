"""PBU: ascend on the forget set, held near the original weights (Panda, Sourav, Prathosh, AAAI 2025).

Partially blinded: D_f is seen, D_r is not. With theta0 the original weights
and F the diagonal of their Fisher information on D_f (the exact expectation
over the network's own answers, `jaxunlearn.importance.fisher`)::

    L = -alpha CE(D_f) + beta sum_i F_i (theta_i - theta0_i)^2 + gamma sum_i (theta_i - theta0_i)^2

by Adam. With the goal "relabel" the first term is +alpha CE of the new labels
(ours; the paper has none).

Departures from the published code: PBU-1, there BatchNorm is in train mode on
D_f; PBU-2, there the epoch to keep is chosen by test accuracy, here a run ends
when D_f is forgotten; PBU-3, -CE has no lower bound and the published run
diverges after some epochs, hence that stop and, as an option, a bounded loss;
PBU-4, the published membership inference looks at the original weights (not ours);
PBU-5, the number of classes is the network's; PBU-6, F is taken in eval mode
throughout, dropout off.

The published strengths (721, 90, 4001) belong to an ImageNet ResNet-18 on
MNIST: the penalties are sums over its parameters. Adam nearly cancels a common
factor, so only their ratios matter: alpha is 1 here, beta and gamma are these
over 721.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import optax

from jaxunlearn import importance, losses, transforms
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, Params, Problem
from jaxunlearn.methods._descent import Descent, DescentConfig, Rows, State, chain, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DescentConfig):
    """Hyper-parameters of PBU."""

    learning_rate: float = hparam(1e-4, "Adam learning rate", traced=True, low=0.0)
    alpha: float = hparam(1.0, "weight of the forget loss", traced=True, low=0.0)
    beta: float = hparam(0.125, "weight of the distance in the Fisher metric", traced=True, low=0.0)
    gamma: float = hparam(5.55, "weight of the squared distance", traced=True, low=0.0)
    forget_loss: str = hparam(
        "cross_entropy",
        "cross_entropy: ascent without bound, as published; margin: bounded, no pull past the boundary",
        choices=("cross_entropy", "margin"),
        deviation="PBU-3",
    )
    slack: float = hparam(0.5, "how far past the boundary the margin loss pushes", traced=True, unit="logits", low=0.0)
    batch_norm: str = hparam(
        "frozen",
        "frozen: eval mode, running statistics stay; update: train mode, as published",
        choices=("frozen", "update"),
        deviation="PBU-1",
    )
    stop: str = hparam(
        "forgotten",
        "forgotten: with the pass after which every instance is; budget: with the last pass",
        choices=("forgotten", "budget"),
        deviation="PBU-2",
    )
    forget_batch: int = hparam(64, "forget instances a step", unit="instances", low=1)
    max_passes: int = hparam(500, "budget, in passes over the forget set", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the published settings for class 6 of MNIST (PBU-1); five passes, whatever was forgotten (PBU-2)."""
        return cls(alpha=721.0, beta=90.0, gamma=4001.0, batch_norm="update", max_passes=5, stop="budget")


@dataclasses.dataclass(frozen=True)
class PBU(Descent):
    """The method bound to its static settings."""

    def optimiser(self, hparams: Mapping[str, Array], problem: Problem | None = None) -> optax.GradientTransformation:
        held, anchor = (None, {}) if problem is None else (_held(problem, hparams), problem.model.params)
        # twice: the transformation's penalty has a factor 1/2
        return chain(hparams, adam=True, penalty=transforms.masked_regularization(held, anchor, 2.0))

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        """Return the first term; the optimiser adds the gradient of the others."""
        logits, model_state = self.logits(key, model, rows.forget.x)
        return state.hparams["alpha"] * mean(rows.forget.weight, self._forget_loss(logits, state, rows)), model_state

    def _forget_loss(self, logits: Array, state: State, rows: Rows) -> Array:
        y, target, slack = rows.forget.y, rows.forget.target, state.hparams["slack"]
        if self.config.forget_loss == "margin":
            if state.goal == "misclassify":
                return losses.bounded_margin(logits, y, slack)
            return losses.bounded_target(logits, target, slack)
        return losses.ascent(logits, y) if state.goal == "misclassify" else losses.cross_entropy(logits, target)


def _held(problem: Problem, hparams: Mapping[str, Array]) -> Params:
    """Return how much each weight is held, beta F + gamma."""
    model, forget = problem.model, problem.forget
    information = importance.fisher(model.apply_fn)(model.params, model.model_state, forget.x, weight=forget.weight)
    held: Params = jax.tree.map(lambda f: hparams["beta"] * f + hparams["gamma"], information)
    return held


def make(config: Config) -> PBU:
    """Bind PBU to its static settings."""
    return PBU(config)


SPEC = MethodSpec(
    name="pbu",
    make=make,
    Config=Config,
    summary="ascend on the forget set, held near the original weights, more where its Fisher information is large",
    goals=("misclassify", "relabel"),
    cost="one weight gradient an instance and class, then one forward and backward pass over the forget set a pass",
    paper="Panda, Sourav, Prathosh, AAAI 2025, arXiv 2403.16246",
    strength="learning_rate",
)
