"""Oracle: ascent on the forget set while retain data hold the rest (Cha et al. 2024).

Fine-tuning with access to D_r, not retraining: an upper bound for ADV, in the
authors' ViT and UTKFace scripts only. The two means are added unweighted.
"""

from __future__ import annotations

import dataclasses

from jaxunlearn._types import MethodSpec
from jaxunlearn.methods._first_order import PUBLISHED, CompanionConfig, FirstOrder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CompanionConfig):
    """Hyper-parameters of Oracle."""

    @classmethod
    def published(cls) -> Config:
        """Return the published settings (L2UL-8: BatchNorm updated)."""
        return cls(**PUBLISHED)


def make(config: Config) -> FirstOrder:
    """Bind Oracle to its static settings."""
    return FirstOrder(config, companion="retain", weighting="sum")


SPEC = MethodSpec(
    name="oracle",
    make=make,
    Config=Config,
    summary="forget while the retain set itself holds the rest; needs retain data",
    goals=("misclassify", "relabel"),
    needs=("retain",),
    cost="one step a batch of the retain set",
    paper="Cha et al., AAAI 2024, ORACLE",
    strength="learning_rate",
)
