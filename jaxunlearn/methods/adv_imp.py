"""ADV+IMP: ADV with masked regularisation by weight importance (Cha et al. 2024, the full L2UL).

The penalty ``strength / 2 * sum_i W_i (theta_i - theta0_i)^2`` holds each weight
in proportion to W = 1 - normalised MAS on the forget set: what matters for the
forget set is free to move, the rest is held.
"""

from __future__ import annotations

import dataclasses

from jaxunlearn._config import hparam
from jaxunlearn._types import MethodSpec
from jaxunlearn.methods._first_order import PUBLISHED, AttackConfig, FirstOrder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AttackConfig):
    """Hyper-parameters of ADV+IMP."""

    strength: float = hparam(1.0, "lambda of the penalty (a sum over parameters)", traced=True, low=0.0)
    mas: str = hparam(
        "per_example",
        "per_example: mean of absolute gradients; batch_mean: absolute mean gradient of a batch, as published",
        choices=("per_example", "batch_mean"),
        deviation="L2UL-4",
    )
    mas_accumulate: str = hparam(
        "clean",
        "released: gradients are never zeroed between batches (batch_mean only)",
        choices=("clean", "released"),
        deviation="L2UL-5",
    )
    mas_train: bool = hparam(False, "importance with BatchNorm in train mode (batch_mean only)", deviation="L2UL-6")

    @classmethod
    def published(cls) -> Config:
        """Return the published settings (L2UL-2, L2UL-4, L2UL-5, L2UL-6, L2UL-8)."""
        return cls(targets="published", mas="batch_mean", mas_accumulate="released", mas_train=True, **PUBLISHED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mas != "batch_mean" and (self.mas_train or self.mas_accumulate != "clean"):
            raise ValueError(f"mas_train and mas_accumulate need mas='batch_mean'; got mas={self.mas!r}")


def make(config: Config) -> FirstOrder:
    """Bind ADV+IMP to its static settings."""
    return FirstOrder(config, companion="adversarial", importance=True)


SPEC = MethodSpec(
    name="adv-imp",
    make=make,
    Config=Config,
    summary="ADV, with weights held in proportion to their unimportance for the forget set (full L2UL)",
    goals=("misclassify", "relabel"),
    cost="as adv, and one weight gradient an instance for the importance",
    paper="Cha et al., AAAI 2024, L2UL",
    strength="learning_rate",
)
