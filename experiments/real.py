"""Where experiments find their real data and weights."""

from __future__ import annotations

import os
from pathlib import Path

from jaxunlearn import convert, data, models
from jaxunlearn._types import Model

#: The forget set of the published comparison: original indices of CIFAR-10 training images.
LISTED = (36044, 49165, 37807, 11341, 6091, 16904, 36293, 28026, 24681, 17849, 49031, 20152, 23932, 33744, 8628, 3486)


def shared_dir() -> Path:
    """Return the folder of data and weights: JAXUNLEARN_SHARED, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("JAXUNLEARN_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        raise SystemExit("needs the shared data and weights beside the checkout (or JAXUNLEARN_SHARED)")
    return folder


def cifar10() -> data.Source:
    """Open CIFAR-10."""
    return data.open_source("tfds:cifar10", str(shared_dir() / "data" / "tfds"))


def weights(arch: str) -> Path:
    """Return the file of third-party weights of a CIFAR network, such as ``cifar_resnet20``."""
    return shared_dir() / "weights" / f"cifar10_{arch.removeprefix('cifar_')}.th"


def network(arch: str) -> Model:
    """Return a third-party CIFAR network, such as ``cifar_resnet20``, as our model."""
    return convert.load_weights(weights(arch), models.recipe(arch), models.from_recipe)
