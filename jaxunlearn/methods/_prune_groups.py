"""Groups of regions with one affine patch, made for instances, and their join to one ordered patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import patches, wrappers
from jaxunlearn._types import Model
from jaxunlearn.patches import Polytope, Region, Specification, rounding
from jaxunlearn.wrappers import Patch

#: Variables of a linear programme up to which it has multipliers of its own for every half-space.
EXACT = 30_000
#: Distance, in units of the input box, that the support of an instance on a face of its region is widened by.
HAIR = 1e-5


class Group(NamedTuple):
    """A group as it is served, and what is promised of it; see `jaxunlearn.patches.Certificate`.

    Attributes:
      own: arrays of `jaxunlearn.wrappers.Patch` for this group alone, without ``bounds``.
      target, tau: label and size.
      points: (r, n); certified: (r,).
    """

    own: dict[str, np.ndarray]
    target: int
    tau: float
    points: np.ndarray
    certified: np.ndarray


class Frame(NamedTuple):
    """Coordinates of the features: u = (z - origin) @ basis, float32."""

    origin: np.ndarray
    basis: np.ndarray


def fit(regions: Sequence[Region], spec: Specification, rule: str, shared_logits: bool) -> patches.AffinePatch:
    """Return an affine patch for regions by "smallest" or by the "interval" rule."""
    if rule == "interval":
        return patches.interval_rule(regions, spec)
    classes, size = len(regions[0].shift), sum(region.polytope.size for region in regions)
    if shared_logits and (2 * classes + len(spec.rows)) * size > EXACT:
        return patches.smallest_on_boxes(regions, spec)
    return patches.smallest(regions, spec)


def around_boxes(
    model: Model,
    frame: Frame,
    boxes: tuple[np.ndarray, np.ndarray],
    points: np.ndarray,
    said: int,
    target: int,
    *,
    gamma: float,
    margin: float,
    rule: str,
    representative_only: bool,
) -> Group:
    """Return a group of boxes in the features, cut to where the network says one label.

    Args:
      model: the network without a patch.
      frame: the coordinates.
      boxes: low and high, (r, n) each; the first is the representative's.
      points: (r, n), a point in each.
      said: the label that the network gives there now.
      target: the label that it is to give.
      gamma, margin, rule: settings of the method.
      representative_only: whether the patch must hold on the first box alone (PRUNE-4).
    """
    basis = frame.basis.astype(np.float64)
    inverse = np.linalg.inv(basis)
    slope, shift = patches.head_in_coordinates(model, frame.origin, inverse)
    reach = rounding.ROOM * np.maximum(np.abs(boxes[0]), np.abs(boxes[1])).max(axis=0)
    off = rounding.of_coordinates(basis, rounding.ROOM * rounding.away(*boxes, inverse))
    normals = np.delete(slope - slope[said], said, axis=0)
    offsets = np.delete(shift[said] - shift, said)
    size = np.linalg.norm(normals, axis=1)
    told = size > 0
    rows = rounding.serve_rows((normals / size[:, None])[told], (offsets / size)[told], reach, off)
    own = {**{name: value[None] for name, value in rows.items()}, **rounding.serve_boxes(*boxes, off)}
    wrapper = _wrapper("features", own, len(shift))
    regions = [Region(polytope, slope, shift) for polytope in _polytopes(wrapper, own | frame._asdict(), model)]
    wanted = regions[:1] if representative_only else regions
    found = fit(wanted, patches.label_is(target, len(shift), margin), rule, True)
    kernel, bias = (np.asarray(part, np.float64) for part in wrappers.head_map(model))
    head = rounding.of_head(kernel, bias, np.abs(frame.origin) + rounding.away(*boxes, inverse))
    lost = 2 * float(np.max(head + rounding.of_rows(found.slope, found.shift, reach, off)))
    if margin < lost < 10 * margin:  # float32 may round away more than the margin: ask for so much more
        found = fit(wanted, patches.label_is(target, len(shift), margin + 2 * lost), rule, True)
    certified = np.array([region.polytope.contains(points[i : i + 1])[0] for i, region in enumerate(regions)])
    if representative_only:
        certified[1:] = False
    return _served(own, found, target, gamma, points, certified)


def around_pieces(
    model: Model,
    points: np.ndarray,
    target: int,
    *,
    gamma: float,
    margin: float,
    rule: str,
    representative_only: bool,
) -> list[Group]:
    """Return groups of one region each, the linear pieces of the network around inputs, with one affine patch.

    An input that lies on a face of its piece, or too near for float32, is held by a support that is a hair
    wider than what is proved, and is then not certified.

    Args:
      model: a piecewise-linear network without a patch.
      points: (r, n) flattened inputs; the first is the representative.
      target, gamma, margin, rule, representative_only: as in `around_boxes`.
    """
    low, high = model.spec.box
    n = points.shape[1]
    reach, off = np.full(n, max(abs(low), abs(high))), np.zeros(n)
    pieces = [patches.linear_piece(model, point.reshape(model.spec.input_shape)) for point in points]
    owns, regions, centres, certified = [], [], [], []
    for point, piece in zip(points, pieces, strict=True):
        box = np.full(n, low), np.full(n, high)
        whole = Polytope(piece.normals, piece.offsets, *box).trimmed()
        if not len(whole.offsets):
            raise ValueError(
                "the network is linear on all inputs, so that a patch in space 'input' would change every answer; "
                "use 'features'"
            )
        rows = rounding.serve_rows(whole.normals, whole.offsets, reach, off)
        own = {name: value[None] for name, value in rows.items()}
        (proved,) = _polytopes(_wrapper("input", own, len(piece.shift)), own, model)
        try:
            centre, radius = proved.centre()
        except ValueError:
            centre, radius = point, 0.0
        sure = radius > 0 and bool(proved.contains(point[None])[0])
        if not sure:
            needed = whole.normals @ point + HAIR * (high - low)
            own["offsets"] = np.maximum(own["offsets"], needed.astype(np.float32)[None])
        owns.append(own)
        regions.append(Region(proved if radius > 0 else whole, piece.slope, piece.shift))
        centres.append(centre if sure else point)
        certified.append(sure)
    spec = patches.label_is(target, len(pieces[0].shift), margin)
    found = fit(regions[:1] if representative_only or rule == "interval" else regions, spec, rule, False)
    if representative_only or rule == "interval":
        certified[1:] = [False] * (len(points) - 1)
        centres[1:] = list(points[1:])
    return [
        _served(own, found, target, gamma, centre[None], np.array([sure]))
        for own, centre, sure in zip(owns, centres, certified, strict=True)
    ]


def join(groups: Sequence[Group], model: Model, frame: Frame | None) -> tuple[Patch, dict[str, np.ndarray]]:
    """Return one ordered patch of groups, later ones over earlier ones.

    ``K`` bounds the change from each group to the next on the whole of the input box, or on
    the smallest box around all regions and their tubes in the features, with room for rounding.
    """
    rows = max(group.own["normals"].shape[1] for group in groups)
    own: dict[str, np.ndarray] = {}
    for name in groups[0].own:
        parts = [group.own[name] for group in groups]
        if name in ("normals", "offsets"):  # rows that always hold: 0 u <= 1
            fill = 0 if name == "normals" else 1
            pad = [[(0, 0), (0, rows - part.shape[1])] + [(0, 0)] * (part.ndim - 2) for part in parts]
            parts = [np.pad(part, width, constant_values=fill) for part, width in zip(parts, pad, strict=True)]
        own[name] = np.concatenate(parts) if np.ndim(parts[0]) else parts[-1]
    low, high = (np.full(own["maps"].shape[-1], side) for side in model.spec.box)
    if frame is not None:
        own |= frame._asdict()
        tube = 1 / float(own["sharpness"])
        low, high = own["low"].min(axis=0) - tube, own["high"].max(axis=0) + tube
    steps = [np.diff(own[name].astype(np.float64), axis=0, prepend=0) for name in ("maps", "shifts")]
    middle, half = (high + low) / 2, (high - low) / 2
    largest = np.abs(steps[0] @ middle + steps[1]) + np.abs(steps[0]) @ half
    own["bounds"] = (1.01 * largest.max(axis=1) + 1e-3).astype(np.float32)
    members = tuple(len(group.points) for group in groups)
    return _wrapper("input" if frame is None else "features", own, len(own["shifts"][0]), members), own


def split(wrapper: Patch, own: Mapping[str, np.ndarray], facts: Mapping[str, np.ndarray]) -> list[Group]:
    """Take a joined patch apart again."""
    ends, groups = np.cumsum(wrapper.members), []
    for j, (end, size) in enumerate(zip(ends, wrapper.members, strict=True)):
        mine = slice(end - size, end)
        parts = {name: own[name][j : j + 1] for name in ("maps", "shifts", "normals", "offsets")}
        parts |= {name: own[name][mine] for name in ("low", "high") if wrapper.boxed}
        parts["sharpness"] = own["sharpness"]
        target, tau = int(facts["targets"][j]), float(facts["taus"][j])
        groups.append(Group(parts, target, tau, facts["points"][mine], facts["certified"][mine]))
    return groups


def facts(groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """Return what a certificate says beside the patch."""
    return {
        "targets": np.array([group.target for group in groups], np.int32),
        "taus": np.array([group.tau for group in groups]),
        "points": np.concatenate([group.points for group in groups]),
        "certified": np.concatenate([group.certified for group in groups]),
    }


def certificate(
    wrapper: Patch, own: Mapping[str, np.ndarray], facts: Mapping[str, Any], model: Model
) -> patches.Certificate:
    """Return the certificate of a patch around a network, not bound to it yet."""
    return patches.Certificate(wrapper=wrapper, own=own, box=model.spec.box, model_digest="", **facts)


def _served(
    own: dict[str, np.ndarray],
    found: patches.AffinePatch,
    target: int,
    gamma: float,
    points: np.ndarray,
    certified: np.ndarray,
) -> Group:
    maps, shifts = found.slope.astype(np.float32)[None], found.shift.astype(np.float32)[None]
    whole = {**own, "maps": maps, "shifts": shifts, "sharpness": np.asarray(gamma, np.float32)}
    return Group(whole, target, found.tau * (1 + 1e-5) + 1e-6, points, certified)


def _wrapper(space: str, own: Mapping[str, np.ndarray], classes: int, members: tuple[int, ...] = ()) -> Patch:
    _, rows, n = own["normals"].shape
    boxed = "low" in own
    members = members or (len(own["low"]) if boxed else 1,)
    return Patch(space=space, dim=n, num_classes=classes, members=members, rows=rows, boxed=boxed)


def _polytopes(wrapper: Patch, own: Mapping[str, np.ndarray], model: Model) -> list[Polytope]:
    """Return the regions of a single group on which its support is 1 however the computation rounds."""
    r, n = sum(wrapper.members), wrapper.dim
    nothing = {"targets": np.zeros(1), "taus": np.zeros(1), "points": np.zeros((r, n)), "certified": np.zeros(r)}
    made = certificate(wrapper, own, nothing, model)
    return [made.polytope(number) for number in range(r)]
