"""Correct: plain fine-tuning of the forget set to the labels asked for, nothing held.

Named in Cha et al. 2024; the published code has no trace of it, so this is the
plain reading: descent on the cross-entropy of the new labels.
"""

from __future__ import annotations

import dataclasses

from jaxunlearn._config import hparam
from jaxunlearn._types import MethodSpec
from jaxunlearn.methods._first_order import PUBLISHED, FirstOrder, FirstOrderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FirstOrderConfig):
    """Hyper-parameters of Correct."""

    forget_loss: str = hparam(
        "cross_entropy",
        "cross_entropy of the new label; margin: stops once the new label leads",
        choices=("margin", "cross_entropy"),
    )

    @classmethod
    def published(cls) -> Config:
        """Return the settings the published code uses for its other methods (L2UL-8)."""
        return cls(**PUBLISHED)


def make(config: Config) -> FirstOrder:
    """Bind Correct to its static settings."""
    return FirstOrder(config, check_every=0)


SPEC = MethodSpec(
    name="correct",
    make=make,
    Config=Config,
    summary="fine-tune the forget set to the labels asked for, nothing held",
    goals=("relabel",),
    cost="one forward and backward pass over the forget set a pass",
    paper="baseline of Cha et al., AAAI 2024 (our reading)",
    strength="learning_rate",
)
