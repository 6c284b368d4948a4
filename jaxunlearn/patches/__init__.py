"""Patches with a certificate: linear pieces of a network, affine patches on them, what they promise.

The geometry and the linear programmes of REASSURE (Fu & Li 2022) and PRUNE (Li
et al. 2025), in float64 on the host; `jaxunlearn.wrappers.Patch` is the network
that serves a patch, `jaxunlearn.methods.prune` the method that chooses them.
"""

from jaxunlearn.patches.affine import (
    AffinePatch,
    Region,
    Specification,
    interval_rule,
    label_is,
    size_of,
    smallest,
    smallest_on_boxes,
)
from jaxunlearn.patches.certificate import Certificate, coordinates, features, head_in_coordinates
from jaxunlearn.patches.piecewise import NotPiecewiseLinearError, Piece, count_conditions, linear_piece
from jaxunlearn.patches.polytope import Polytope
from jaxunlearn.patches.verify import Check, Verdict, confirmed, verify

__all__ = [
    "AffinePatch",
    "Certificate",
    "Check",
    "NotPiecewiseLinearError",
    "Piece",
    "Polytope",
    "Region",
    "Specification",
    "Verdict",
    "confirmed",
    "coordinates",
    "count_conditions",
    "features",
    "head_in_coordinates",
    "interval_rule",
    "label_is",
    "linear_piece",
    "size_of",
    "smallest",
    "smallest_on_boxes",
    "verify",
]
