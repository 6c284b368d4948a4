"""Join a Flax network to the seam: Linen and NNX modules become `Model`.

The functions made here are frozen dataclasses: two equal networks compare and
hash equal, so that a reloaded model does not make `jax.jit` trace again.
"""

from __future__ import annotations

from jaxunlearn.adapters.common import Normalised, normalised
from jaxunlearn.adapters.linen import LinenApply, LinenInit, LinenTaps, from_linen
from jaxunlearn.adapters.nnx import NnxApply, from_nnx

__all__ = [
    "LinenApply",
    "LinenInit",
    "LinenTaps",
    "NnxApply",
    "Normalised",
    "from_linen",
    "from_nnx",
    "normalised",
]
