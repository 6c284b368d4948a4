"""MU-Mis: lower the network's sensitivity to the forget instances (Cheng et al., ICLR 2026).

What an instance contributed to training shows as the sensitivity of its own
logit to its input. With z the logits, y the label and c another class::

    L = mean over the batch of  ||d z_y / d x||^2 - ||d z_c / d x||^2

c is drawn anew for every instance at every step, or z_c is the sum over all
other classes. The gradient differentiates twice. The aim is that forget
instances look unseen: a network that never saw them would still be right on
many, so a run may end at a reference accuracy on D_f (ours; the stopping rule of
the paper was not seen by us, nor were its learning rates).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import attacks, losses
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, Params
from jaxunlearn.methods._descent import Descent, MomentumConfig, Rows, State, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MomentumConfig):
    """Hyper-parameters of MU-Mis."""

    learning_rate: float = hparam(1e-5, "SGD learning rate", traced=True, low=0.0)
    others: str = hparam(
        "one",
        "the class whose sensitivity is raised: one at random for each instance and step, or the sum of all others",
        choices=("one", "all"),
    )
    reference: float = hparam(0.0, "accuracy on the forget set at or below which a run ends", low=0.0, high=1.0)
    max_passes: int = hparam(500, "budget, in passes over the forget set", unit="passes", low=1)


@dataclasses.dataclass(frozen=True)
class MUMis(Descent):
    """The method bound to its static settings."""

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        """Return the objective; classes are keyed by step and instance."""
        forget, classes = rows.forget, model.spec.num_classes
        _, pull, model_state = jax.vjp(lambda x: self.logits(key, model, x), forget.x, has_aux=True)
        own = jax.nn.one_hot(forget.y, classes)
        if self.config.others == "all":
            other = 1.0 - own
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, forget.index)
            drawn = jax.vmap(lambda key, y: attacks.random_targets(key, y, classes))(keys, forget.y)
            other = jax.nn.one_hot(drawn, classes)
        sensitivity = [_square(pull(direction)[0]) for direction in (own, other)]
        return mean(forget.weight, sensitivity[0] - sensitivity[1]), model_state

    def stopped(self, state: State) -> Array:
        """Return whether the accuracy on the forget set is down at the reference."""
        if self.config.reference == 0 or self.config.stop == "budget":
            return jnp.asarray(False)
        forget = state.rows.forget
        known = ~losses.forgotten(state.model(forget.x), forget, "misclassify")
        return jnp.sum(known) <= self.config.reference * jnp.sum(forget.weight)


def _square(v: Array) -> Array:
    """Return the squared norm of each row, (batch,)."""
    return jnp.sum(v * v, axis=tuple(range(1, v.ndim)))


def make(config: Config) -> MUMis:
    """Bind MU-Mis to its static settings."""
    return MUMis(config)


SPEC = MethodSpec(
    name="mu-mis",
    make=make,
    Config=Config,
    summary="lower the sensitivity of each forget instance's own logit to its input",
    goals=("misclassify",),
    cost="a forward pass, two input gradients and their weight gradient over the forget set a pass",
    paper="Cheng et al., ICLR 2026, arXiv 2402.15109",
    strength="learning_rate",
)
