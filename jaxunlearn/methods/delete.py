"""DELETE: distil the network's own answers, less the true class, into it (Zhou et al., CVPR 2025).

For a forget instance x with label y, logits z and original logits z0::

    q = softmax(z0 with z0_y = -inf)          L = mean over the batch of KL(q || softmax(z))

so the probability of y goes to 0 and the other classes keep their proportions.
No label is chosen, nothing but D_f is used. The original network is in eval
mode, its answers are taken once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxunlearn import _repeat
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, Params, Problem
from jaxunlearn.methods._descent import Descent, MomentumConfig, Rows, State, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MomentumConfig):
    """Hyper-parameters of DELETE."""

    learning_rate: float = hparam(1e-5, "SGD learning rate", traced=True, low=0.0)
    max_passes: int = hparam(500, "budget, in passes over the forget set", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the published settings of CIFAR-10, ResNet-18: 20 passes to the end, BatchNorm updated."""
        return cls(learning_rate=1e-4, max_passes=20, batch_norm="update", stop="budget")


@dataclasses.dataclass(frozen=True)
class Delete(Descent):
    """The method bound to its static settings."""

    def given(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> Array:
        """Return the original answers without the true class, q, (n, C)."""
        return _repeat.call(_original_answers, (), problem.model, problem.forget.x, problem.forget.y)

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        logits, model_state = self.logits(key, model, rows.forget.x)
        return mean(rows.forget.weight, divergence(rows.given, logits)), model_state


def _original_answers(model: Model, x: Array, label: Array) -> Array:
    return without_label(model(x), label)


def without_label(logits: Array, label: Array) -> Array:
    """Return softmax over the classes other than the label, (batch, C), 0 at the label.

    >>> without_label(jnp.array([[9.0, 0.0, 0.0]]), jnp.array([0])).tolist()
    [[0.0, 0.5, 0.5]]
    """
    return jax.nn.softmax(logits, where=~jax.nn.one_hot(label, logits.shape[-1], dtype=bool))


def divergence(target: Array, logits: Array) -> Array:
    """Return KL(target || softmax(logits)) per example, (batch,); its gradient is softmax(logits) - target.

    >>> print(divergence(jnp.array([[0.0, 0.5, 0.5]]), jnp.zeros((1, 3))).round(4))
    [0.4055]
    """
    # xlogy: a probability of 0 has value and gradient 0, where 0 * log 0 would be NaN
    return jnp.sum(xlogy(target, target) - target * jax.nn.log_softmax(logits), axis=-1)


def make(config: Config) -> Delete:
    """Bind DELETE to its static settings."""
    return Delete(config)


SPEC = MethodSpec(
    name="delete",
    make=make,
    Config=Config,
    summary="distil the network's own answers without the true class",
    goals=("misclassify",),
    cost="one forward and backward pass over the forget set a pass",
    paper="Zhou et al., CVPR 2025, Decoupled Distillation to Erase",
    strength="learning_rate",
)
