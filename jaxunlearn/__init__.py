"""Make a pre-trained classifier forget chosen training examples, and show what was forgotten.

Names are imported when first used, so that ``import jaxunlearn`` needs and
costs little more than nothing; ``__init__.pyi`` lists them for type checkers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> module it lives in.
_HOME = {
    "Artefact": "_types",
    "BaseConfig": "_config",
    "Batch": "_types",
    "Draws": "_types",
    "MethodSpec": "_types",
    "Model": "_types",
    "ModelSpec": "_types",
    "Phase": "_types",
    "Problem": "_types",
    "Preprocess": "_types",
    "Recipe": "_types",
    "Result": "_types",
    "fgsm": "attacks",
    "forgotten": "losses",
    "freeze": "transforms",
    "freeze_paths": "transforms",
    "from_linen": "adapters",
    "from_nnx": "adapters",
    "holding_weight": "importance",
    "hparam": "_config",
    "tune_cpu": "_cpu",
    "mas": "importance",
    "masked_regularization": "transforms",
    "normalised": "adapters",
    "pgd": "attacks",
    "unlearn": "job",
}
_ROOMS = (
    "adapters", "artefacts", "attacks", "audits", "checkpoint", "convert", "curvature", "data", "importance",
    "inference", "job", "loop", "losses", "methods", "models", "patches", "proxies", "report", "sharding", "testing",
    "training", "transforms", "wrappers",
)  # fmt: skip

__all__ = [*_HOME, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"jaxunlearn.{_HOME[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"jaxunlearn.{name}")
    raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
