"""Check a certificate against a network: by exact inequalities, with rounding bounded, and by sampling as served."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, _tree, inference, wrappers
from jaxunlearn._types import Array, Model, Params
from jaxunlearn.patches import affine, rounding
from jaxunlearn.patches.certificate import Certificate, coordinates, support
from jaxunlearn.patches.piecewise import linear_piece
from jaxunlearn.patches.polytope import Polytope
from jaxunlearn.wrappers import Patch

#: Points are pushed out of a region to so many times the width of its tube.
BEYOND = (1.0, 1.5, 4.0)
#: Room for the rounding of float64, in the units of what is compared.
TINY = 1e-7


class Check(NamedTuple):
    """One kind of check over all regions: what, whether it holds, the numbers."""

    name: str
    holds: bool
    detail: str


class Verdict(NamedTuple):
    """What was found.

    Attributes:
      checks: one of each kind.
      certified, points, regions: regions whose label is promised, those whose label was checked at one point
        only, and all; of the rest nothing is said, a later group lies over their points.
      shared: the share of sampled points of certified regions that lie in the support or tube of a later
        group, so that nothing is promised for them.
    """

    checks: list[Check]
    certified: int
    points: int
    regions: int
    shared: float

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


def verify(certificate: Certificate, inside: Model, *, samples: int = 100, seed: int = 0) -> Verdict:
    """Check everything a certificate says of a network with its patch, from the certificate and the network alone.

    Exactly, by linear programmes in float64, with what float32 can round away
    bounded (features) or measured and doubled (inputs): every region lies where
    the network is affine, the target leads on all of it, no logit changes by
    more than tau. By sampling, in the dtype that is served: on points of a
    hit-and-run walk the support is 1 and the label the target's; beyond the tube
    the support is 0 and the logits have the very bits of the network inside.

    Args:
      certificate: what is promised.
      inside: the network inside, without the patch.
      samples: points of each region.
      seed: of the sampling.

    Raises:
      ValueError: the certificate is of another network.
    """
    _check_network(certificate, inside)
    rng = np.random.RandomState(seed)
    parts = []
    for number, promised in enumerate(certificate.certified):
        parts.append((_region if promised else _point)(certificate, inside, number, rng, samples))
        _progress.report("verifying regions", number + 1, len(certificate.certified))
    names = dict.fromkeys(name for part in parts for name in part)
    checks = []
    for name in names:
        found = [part[name] for part in parts if name in part]
        worst = max((value for _, value in found), default=0.0)
        checks.append(Check(name, all(holds for holds, _ in found), f"{_WORDS[name]} {worst:.3g}"))
    checks.append(_same_bits(certificate, inside, rng))
    taken = [part["samples"][1] for part in parts if "samples" in part]
    certified = int(np.sum(certificate.certified))
    points = sum("point" in part for part in parts)
    return Verdict(checks, certified, points, len(parts), float(np.mean(taken)) if taken else 0.0)


def _check_network(certificate: Certificate, inside: Model) -> None:
    """Raise a ValueError unless the certificate is of this network."""
    digest = _tree.model_digest(inside)
    if digest != certificate.model_digest:
        raise ValueError(
            f"the certificate was made for another network: its digest is {certificate.model_digest[:16]}..., "
            f"this one's {digest[:16]}..."
        )
    if tuple(inside.spec.box) != tuple(certificate.box) or inside.spec.num_classes != certificate.wrapper.num_classes:
        raise ValueError("the certificate was made for another network: its inputs or classes differ")
    of_inputs = certificate.wrapper.space == "input"
    n = int(np.prod(inside.spec.input_shape)) if of_inputs else len(wrappers.head_map(inside)[0])
    if n != certificate.wrapper.dim:
        what = "inputs have" if of_inputs else "head is given"
        raise ValueError(
            f"the certificate was made for another network: {certificate.wrapper.dim} values, this one's {what} {n}"
        )


def confirmed(certificate: Certificate, inside: Model, regions: np.ndarray, *, samples: int = 30) -> np.ndarray:
    """Return for each of some regions whether `verify` would find that everything holds on it.

    Args:
      certificate, inside, samples: as in `verify`.
      regions: their numbers.
    """
    rng = np.random.RandomState(0)
    found = [_region(certificate, inside, int(number), rng, samples) for number in regions]
    return np.array([all(holds for holds, _ in checks.values()) for checks in found], bool)


#: Check -> what its number is; each is the largest over all regions.
_WORDS = {
    "piece": "sticks out of where the network is affine by at most",
    "label": "largest lead of another label over the target, rounding included:",
    "size": "largest change of a logit less tau:",
    "samples": "share of points in later supports, of which nothing is promised, at most",
    "beyond the tube": "largest support:",
    "point": "largest lead of another label over the target at the point itself:",
}


def _region(
    certificate: Certificate, inside: Model, number: int, rng: np.random.RandomState, samples: int
) -> dict[str, tuple[bool, float]]:
    """Return for each check whether it holds on a certified region, and its number."""
    polytope, group = certificate.polytope(number), int(certificate.group[number])
    target, tau = int(certificate.targets[group]), float(certificate.taus[group])
    start = np.asarray(certificate.points[number], np.float64)
    if not polytope.contains(start[None]).all():
        return {"piece": (False, np.inf)}
    try:
        slope, shift = certificate.logits(inside, number)
    except ValueError:
        return {"piece": (False, np.inf)}
    out = _out_of_piece(certificate, inside, number, polytope)
    change = (
        np.asarray(certificate.own["maps"][group], np.float64),
        np.asarray(certificate.own["shifts"][group], np.float64),
    )
    drawn = polytope.sample(rng, start, samples)
    z, u = _served(certificate, drawn)
    kept = polytope.contains(u)
    z, u = z[kept], u[kept]
    before, after, supports = _logits(certificate, inside, z)
    largest = np.maximum(polytope.over_box(slope) + shift, polytope.over_box(-slope) - shift)
    off_by = _rounding(certificate, inside, group, before - (u @ slope.T + shift), largest)
    leads = []
    for row in affine.label_is(target, len(shift)).rows:
        rest = float(row @ (shift + change[1]) + np.abs(row) @ off_by)
        # A bound below 0 is good enough; 0 may be a tie.
        leads.append(rest + polytope.at_most(row @ (slope + change[0]), np.nextafter(-rest, -np.inf)))
    lead = float(np.max(leads, initial=-np.inf))  # NaN if one is
    size = affine.size_of(*change, [polytope], tau) - tau
    later = supports[:, certificate.group > group].max(axis=1, initial=0) > 0
    right = (after.argmax(axis=1) == target) & np.isfinite(after).all(axis=1)
    good = (supports[:, number] == 1) & (right | later)
    return {
        "piece": (out <= 0, out),
        "label": (lead < 0, lead),
        "size": (size <= TINY * max(tau, 1), size),
        "samples": (bool(good.all()) and len(z) > samples // 2, float(later.mean()) if len(z) else 1.0),
        "beyond the tube": _beyond(certificate, number, polytope, u, rng),
    }


def _point(
    certificate: Certificate, inside: Model, number: int, rng: np.random.RandomState, samples: int
) -> dict[str, tuple[bool, float]]:
    """Return the check of a region of which nothing is promised but the label at its point."""
    group = int(certificate.group[number])
    z, _ = _served(certificate, np.asarray(certificate.points[number], np.float64)[None])
    _, after, supports = _logits(certificate, inside, z)
    if supports[:, certificate.group > group].max(initial=0) > 0:
        return {}
    others = np.delete(after[0], certificate.targets[group])
    lead = float(others.max() - after[0, certificate.targets[group]])
    return {"point": (lead < 0, lead)}


def _out_of_piece(certificate: Certificate, inside: Model, number: int, polytope: Polytope) -> float:
    """Return by how much a region sticks out of the linear piece around its point at most; in features, 0."""
    if certificate.wrapper.space == "features":
        return 0.0  # the head is affine everywhere; that it makes the logits is checked with the samples
    piece = linear_piece(inside, certificate.points[number].reshape(inside.spec.input_shape))
    out = polytope.over_box(piece.normals) - piece.offsets
    if len(polytope.offsets):
        nearest = (piece.normals @ polytope.normals.T).argmax(axis=1)
        gap = np.abs(piece.normals - polytope.normals[nearest]) @ certificate.reach[certificate.group[number]]
        out = np.minimum(out, polytope.offsets[nearest] + gap - piece.offsets)
    for row in np.flatnonzero(out > 0):  # implied by several rows together, or not at all
        out[row] = polytope.at_most(piece.normals[row], -np.inf) - piece.offsets[row]
    return float(out.max(initial=0.0))


def _rounding(certificate: Certificate, inside: Model, group: int, seen: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return a bound on how far each served logit is from exact arithmetic on the regions of a group, (C,).

    Args:
      certificate, inside, group: which.
      seen: by how far logits without the patch were off at sampled inputs, (batch, C).
      largest: bounds of the logits without the patch, (C,).
    """
    own, reach, off = certificate.own, certificate.reach[group], certificate.off[group]
    maps, shifts = (np.asarray(own[name][group], np.float64) for name in ("maps", "shifts"))
    change = rounding.of_rows(maps, shifts, reach, off)
    if certificate.wrapper.space == "input":
        # The last share is that of the sum of both.
        return change + 2 * np.abs(seen).max(axis=0, initial=0.0) + rounding.EPS * largest
    kernel, bias = (np.asarray(part, np.float64) for part in wrappers.head_map(inside))
    return change + rounding.of_head(
        kernel, bias, np.abs(own["origin"]) + reach @ np.abs(np.asarray(certificate.inverse))
    )


def _served(certificate: Certificate, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 inputs or features near coordinates, and their exact coordinates."""
    with np.errstate(over="ignore", invalid="ignore"):  # far beyond a wide tube there is no float32
        if certificate.wrapper.space == "input":
            z = u.astype(np.float32)
            return z, z.astype(np.float64)
        origin, basis = certificate.own["origin"], certificate.own["basis"]
        z = (np.asarray(origin, np.float64) + u @ certificate.inverse).astype(np.float32)
        return z, coordinates(z, origin, basis)


def _logits(certificate: Certificate, inside: Model, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits without and with the patch and the supports, as served, at inputs or features."""
    own = {name: jnp.asarray(value) for name, value in certificate.own.items()}
    supports = np.asarray(support(certificate.wrapper, own, _padded(z)))[: len(z)]
    if certificate.wrapper.space == "input":
        x = z.reshape(-1, *inside.spec.input_shape)
        return inference.logits(inside, x), inference.logits(certificate.model(inside), x), supports
    before, after = _through_head(certificate.wrapper, own, *wrappers.head_map(inside), _padded(z))
    return np.asarray(before)[: len(z)], np.asarray(after)[: len(z)], supports


@functools.partial(jax.jit, static_argnums=0)
def _through_head(wrapper: Patch, own: Params, kernel: Array, bias: Array, z: Array) -> tuple[Array, Array]:
    logits = jnp.matmul(z, kernel, precision=jax.lax.Precision.HIGHEST) + bias[None]
    return logits, wrapper.patched(own, logits, z)


def _padded(z: np.ndarray) -> np.ndarray:
    """Return rows filled up to a multiple of 64, so that few sizes compile."""
    return np.concatenate([z, np.zeros((-len(z) % 64, *z.shape[1:]), z.dtype)])


def _beyond(
    certificate: Certificate, number: int, polytope: Polytope, u: np.ndarray, rng: np.random.RandomState
) -> tuple[bool, float]:
    """Return whether the support is exactly 0 at points that violate one constraint by the tube or more."""
    group = int(certificate.group[number])
    own, wrapper = certificate.own, certificate.wrapper
    rows = len(polytope.offsets)
    off = certificate.off[group]
    slack = rounding.of_rows(polytope.normals, polytope.offsets, certificate.reach[group], off)
    width = 1 / float(own["sharpness"]) + 4 * np.concatenate([slack, off, off])
    normals = np.concatenate([polytope.normals, np.eye(wrapper.dim), -np.eye(wrapper.dim)])
    count = len(width) if wrapper.boxed else rows  # the box of the inputs is not part of a support
    if not count:  # the whole box of the inputs
        return True, 0.0
    which = rng.randint(count, size=len(u))
    inside = polytope.slacks(u)[np.arange(len(u)), which]
    moved = u + ((inside + width[which] * rng.choice(BEYOND, size=len(u)))[:, None] * normals[which])
    z, exact = _served(certificate, moved)
    still = (
        polytope.slacks(exact)[np.arange(len(u)), which]
        <= -1 / float(own["sharpness"]) - 2 * (width[which] - 1 / float(own["sharpness"])) / 4
    )
    largest = np.asarray(support(wrapper, dict(own), _padded(z)))[: len(z), number][still].max(initial=0.0)
    return float(largest) == 0, float(largest)


def _same_bits(certificate: Certificate, inside: Model, rng: np.random.RandomState) -> Check:
    """Check that logits keep their bits at random inputs outside all supports."""
    low, high = inside.spec.box
    x = rng.uniform(low, high, (128, *inside.spec.input_shape)).astype(np.float32)
    before, after = inference.logits(inside, x), inference.logits(certificate.model(inside), x)
    u = certificate.coordinates(inside, x)
    z = u.astype(np.float32) if certificate.wrapper.space == "input" else _served(certificate, u)[0]
    free = np.asarray(support(certificate.wrapper, dict(certificate.own), z)).max(axis=1) == 0
    same = bool((before[free].view(np.uint32) == after[free].view(np.uint32)).all())
    holds = same
    detail = f"{int(free.sum())} of {len(x)} random inputs lie outside all supports; their logits "
    detail += "have the same bits" if same else "do not have the same bits"
    if certificate.wrapper.space == "features":
        kernel, bias = (np.asarray(part, np.float64) for part in wrappers.head_map(inside))
        logits, at = (np.asarray(part, np.float64) for part in _heads(inside, x))
        apart = np.abs(logits - (at @ kernel + bias))
        holds &= bool((apart <= [rounding.of_head(kernel, bias, row) for row in np.abs(at)]).all())
        detail += f"; the head's affine map differs from the logits by {apart.max():.2g}"
    return Check("outside", holds, detail)


@jax.jit
def _heads(inside: Model, x: Array) -> tuple[Array, Array]:
    """Return logits and, from the same pass, the features."""
    return inside(x), wrappers.features(inside, x)
