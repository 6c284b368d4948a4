"""Where experiments find their real data and weights."""

from __future__ import annotations

import os
from pathlib import Path

#: The forget set of the published comparison: original indices of CIFAR-10 training images.
LISTED = (36044, 49165, 37807, 11341, 6091, 16904, 36293, 28026, 24681, 17849, 49031, 20152, 23932, 33744, 8628, 3486)


def shared_dir() -> Path:
    """Return the folder of data and weights: JAXUNLEARN_SHARED, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("JAXUNLEARN_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        raise SystemExit("needs the shared data and weights beside the checkout (or JAXUNLEARN_SHARED)")
    return folder
