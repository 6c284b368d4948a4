"""NegGrad: gradient ascent on the forget set, nothing held (the baseline of Cha et al. 2024)."""

from __future__ import annotations

import dataclasses

from jaxunlearn._types import MethodSpec
from jaxunlearn.methods._first_order import PUBLISHED, FirstOrder, FirstOrderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FirstOrderConfig):
    """Hyper-parameters of NegGrad."""

    @classmethod
    def published(cls) -> Config:
        """Return the published settings: ascent on cross-entropy, BatchNorm updated (L2UL-8)."""
        return cls(**PUBLISHED)


def make(config: Config) -> FirstOrder:
    """Bind NegGrad to its static settings; the stopping rule is looked at once a pass, as published."""
    return FirstOrder(config, check_every=0)


SPEC = MethodSpec(
    name="neggrad",
    make=make,
    Config=Config,
    summary="gradient ascent on the forget set, nothing held",
    goals=("misclassify",),
    cost="one forward and backward pass over the forget set a pass",
    paper="baseline of Cha et al., AAAI 2024",
    strength="learning_rate",
)
