"""ADV: forget while adversarial examples of the forget set hold the decision boundary (Cha et al. 2024)."""

from __future__ import annotations

import dataclasses

from jaxunlearn._types import MethodSpec
from jaxunlearn.methods._first_order import PUBLISHED, AttackConfig, FirstOrder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AttackConfig):
    """Hyper-parameters of ADV."""

    @classmethod
    def published(cls) -> Config:
        """Return the published settings (L2UL-2: targets, L2UL-8: BatchNorm updated)."""
        return cls(targets="published", **PUBLISHED)


def make(config: Config) -> FirstOrder:
    """Bind ADV to its static settings."""
    return FirstOrder(config, companion="adversarial")


SPEC = MethodSpec(
    name="adv",
    make=make,
    Config=Config,
    summary="forget while adversarial examples of the forget set hold the boundary",
    goals=("misclassify", "relabel"),
    cost="the attack (draws x attack steps input gradients an instance), then one step a companion batch",
    paper="Cha et al., AAAI 2024, L2UL with adversarial examples",
    strength="learning_rate",
)
