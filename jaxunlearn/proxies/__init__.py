"""Proxies: inputs that stand in for data that may not be seen, to hold a network's function in place.

`cutmix` needs the forget images alone, `invert` the network alone. The user's
own unlabelled images are proxies as they are, or through `augment`. `draw_codes`
makes random images that training mixes in, to stand for a class later.
"""

from jaxunlearn.proxies.codes import codes_artefact, draw_codes
from jaxunlearn.proxies.copies import DEPTHS as DEPTHS, copies
from jaxunlearn.proxies.inversion import (
    InversionConfig,
    invert,
    invert_artefact,
)
from jaxunlearn.proxies.mixing import augment, cutmix, shift_and_mirror

__all__ = [
    "InversionConfig",
    "augment",
    "codes_artefact",
    "copies",
    "cutmix",
    "draw_codes",
    "invert",
    "invert_artefact",
    "shift_and_mirror",
]
