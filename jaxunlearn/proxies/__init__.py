"""Proxies: inputs that stand in for data that may not be seen, to hold a network's function in place.

`cutmix` needs the forget images alone, `invert` the network alone. The user's
own unlabelled images are proxies as they are, or through `augment`. `draw_codes`
makes random images that training mixes in, to stand for a class later.
"""

from jaxunlearn.proxies.codes import codes_artefact as codes_artefact, draw_codes as draw_codes
from jaxunlearn.proxies.copies import DEPTHS as DEPTHS, copies as copies
from jaxunlearn.proxies.inversion import (
    InversionConfig as InversionConfig,
    invert as invert,
    invert_artefact as invert_artefact,
)
from jaxunlearn.proxies.mixing import augment as augment, cutmix as cutmix, shift_and_mirror as shift_and_mirror
