"""What a patch guarantees, as data that can be checked from files alone.

For each certified region of a patch: every input (or feature vector) in it gets
the target's label from the patched network as it is served, in float32; and
outside all supports the network is the one without a patch. The certificate is
about answers on a region, not about removal: the network inside is unchanged,
and whoever takes the patch off has it back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import wrappers
from jaxunlearn._types import Array, Artefact, Model, Params
from jaxunlearn.patches import rounding
from jaxunlearn.patches.piecewise import linear_piece
from jaxunlearn.patches.polytope import Polytope
from jaxunlearn.wrappers import Patch

KIND, VERSION = "certificate", 1
_FACTS = ("targets", "taus", "points", "certified")
#: Kinds of NumPy's dtypes that these may have.
_KINDS = {"targets": "iu", "taus": "f", "points": "f", "certified": "b"}
#: Inputs whose features are computed at a time.
BATCH = 64
#: Space -> what is promised.
_STATEMENTS = {
    "input": "every input in a certified region, outside the supports of later groups, gets the target's label",
    "features": "every input whose features lie in a certified region, outside the supports of later groups, gets the "
    "target's label",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """A patch with what it promises; J groups with R regions in all.

    Attributes:
      wrapper, own: the patch and its arrays, float32, as they are served.
      targets: (J,) the label on the regions of each group.
      taus: (J,) a bound on |p_k| on them.
      points: (R, n) a point in each region (its coordinates), or for a region that is not certified the
        instance it was made for.
      certified: (R,) whether the label is promised on the whole region; else it was checked at the point only.
      box: (low, high) of the network's inputs.
      model_digest: of the network inside.
      about: further facts, JSON-able.
    """

    wrapper: Patch
    own: Mapping[str, np.ndarray]
    targets: np.ndarray
    taus: np.ndarray
    points: np.ndarray
    certified: np.ndarray
    box: tuple[float, float]
    model_digest: str
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def group(self) -> np.ndarray:
        """(R,) the group of each region."""
        return np.repeat(np.arange(len(self.wrapper.members)), self.wrapper.members)

    @functools.cached_property
    def reach(self) -> np.ndarray:
        """(J, n) bounds of the coordinates on the regions of each group."""
        if not self.wrapper.boxed:
            return np.full((len(self.targets), self.wrapper.dim), max(map(abs, self.box)))
        ends = np.maximum(np.abs(self.own["low"]), np.abs(self.own["high"])).astype(np.float64)
        return np.array([ends[self.group == j].max(axis=0) for j in range(len(self.targets))])

    @property
    def statement(self) -> str:
        """What is promised, in this library's words whatever a file says."""
        return _STATEMENTS[self.wrapper.space]

    @functools.cached_property
    def inverse(self) -> np.ndarray | None:
        """The inverse of the basis, or None where coordinates are the inputs themselves.

        Raises:
          ValueError: there is none, or none that float64 can tell.
        """
        if "basis" not in self.own:
            return None
        basis = np.asarray(self.own["basis"], np.float64)
        try:
            inverse = np.linalg.inv(basis)
        except np.linalg.LinAlgError:
            inverse = np.zeros_like(basis)
        if not np.abs(basis @ inverse - np.eye(len(basis))).max() < 1e-9:
            raise ValueError("the certificate is of no use: its basis has no inverse")
        return inverse

    @functools.cached_property
    def away(self) -> np.ndarray:
        """(J, n) bounds of |z - origin| there, in the features."""
        low, high = (np.asarray(self.own[name], np.float64) for name in ("low", "high"))
        inverse = np.asarray(self.inverse)
        return np.array(
            [rounding.away(low[self.group == j], high[self.group == j], inverse) for j in range(len(self.targets))]
        )

    @functools.cached_property
    def off(self) -> np.ndarray:
        """(J, n) how far coordinates are off there at most, as they are computed; inputs are what they are."""
        if self.inverse is None:
            return np.zeros_like(self.reach)
        basis = np.asarray(self.own["basis"], np.float64)
        return np.array([rounding.of_coordinates(basis, away) for away in self.away])

    def model(self, inside: Model) -> Model:
        """Return a network with the patch around it."""
        own = {name: jnp.asarray(value) for name, value in self.own.items()}
        return wrappers.wrap(inside, "patch", dataclasses.asdict(self.wrapper), own)

    def polytope(self, region: int) -> Polytope:
        """Return a region by its number: where its support is exactly 1 however the computation rounds."""
        group, n = int(self.group[region]), self.wrapper.dim
        off = self.off[group]
        normals, offsets = np.zeros((0, n)), np.zeros(0)
        if self.wrapper.rows:
            normals, offsets = (np.asarray(self.own[name][group], np.float64) for name in ("normals", "offsets"))
            real = np.abs(normals).sum(axis=1) > 0  # the others fill up groups with fewer rows
            normals, offsets = normals[real], offsets[real]
            offsets = offsets - rounding.of_rows(normals, offsets, self.reach[group], off)
        if self.wrapper.boxed:
            low, high = (np.asarray(self.own[name][region], np.float64) for name in ("low", "high"))
            return Polytope(normals, offsets, low + off, high - off)
        return Polytope(normals, offsets, *(np.full(n, side) for side in self.box))

    def logits(self, inside: Model, region: int) -> tuple[np.ndarray, np.ndarray]:
        """Return slope (C, n) and shift (C,) of the logits of the network inside on a region, from that network.

        Raises:
          ValueError: the network is not affine there.
        """
        if self.wrapper.space == "input":
            piece = linear_piece(inside, self.points[region].reshape(inside.spec.input_shape))
            return piece.slope, piece.shift
        return head_in_coordinates(inside, self.own["origin"], self.inverse)

    def coordinates(self, inside: Model, x: Any) -> np.ndarray:
        """Return the coordinates of inputs in float64; features are taken as the network computes them."""
        if self.wrapper.space == "input":
            return np.asarray(x, np.float64).reshape(len(x), -1)
        return coordinates(features(inside, x), self.own["origin"], self.own["basis"])

    def labels(self, inside: Model, x: Any) -> np.ndarray:
        """Return for each input the label that is promised, or -1.

        It is that of the last group with a certified region around the input, unless
        the support of a still later group, its tube included, touches the input.

        Args:
          inside: the network inside.
          x: (batch, *input_shape).
        """
        u = self.coordinates(inside, x)
        served = u.astype(np.float32) if self.wrapper.space == "input" else features(inside, x)
        touched = np.asarray(support(self.wrapper, dict(self.own), served)) > 0
        label = np.full(len(u), -1)
        for j, target in enumerate(self.targets):
            mine = np.flatnonzero(self.group == j)
            label[touched[:, mine].any(axis=1)] = -1
            for region in mine[self.certified[mine]]:
                label[self.polytope(region).contains(u)] = target
        return label

    def covers(self, inside: Model, x: Any) -> np.ndarray:
        """Return for each input, (batch, *input_shape), whether its label is promised."""
        return self.labels(inside, x) >= 0

    def to_artefact(self) -> Artefact:
        """Return the certificate as an artefact of kind "certificate"."""
        facts = {name: np.asarray(getattr(self, name)) for name in _FACTS}
        return Artefact(
            kind=KIND,
            version=VERSION,
            arrays={**{f"patch/{name}": np.asarray(value) for name, value in self.own.items()}, **facts},
            meta={"patch": dataclasses.asdict(self.wrapper), "box": list(self.box), "about": dict(self.about)},
            model_digest=self.model_digest,
        )

    @classmethod
    def from_artefact(cls, artefact: Artefact) -> Certificate:
        """Return the certificate that an artefact holds.

        Raises:
          ValueError: another kind or version, or arrays that do not fit each other.
        """
        if artefact.kind != KIND:
            raise ValueError(f"this is an artefact of kind {artefact.kind!r}, not {KIND!r}")
        if artefact.version != VERSION:
            raise ValueError(f"the certificate has version {artefact.version}; this library reads version {VERSION}")
        try:
            wrapper = Patch(**{**artefact.meta["patch"], "members": tuple(artefact.meta["patch"]["members"])})
            own = {name: artefact.arrays[f"patch/{name}"] for name in wrapper.shapes()}
            facts: dict[str, Any] = {name: artefact.arrays[name] for name in _FACTS}
            low, high = map(float, artefact.meta["box"])
            about = artefact.meta["about"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the certificate is not whole: {type(error).__name__} {error}") from None
        if not isinstance(about, Mapping):
            raise ValueError(f"the certificate is not whole: about must be an object; got {about!r}")
        if wrapper.space == "features" and not wrapper.boxed:
            raise ValueError("the certificate is not whole: regions of features have boxes")
        groups, regions, n = len(wrapper.members), sum(wrapper.members), wrapper.dim
        wanted = {"targets": (groups,), "taus": (groups,), "points": (regions, n), "certified": (regions,)}
        for name, shape in (wrapper.shapes() | wanted).items():
            found = {**own, **facts}[name].shape
            if found != shape:
                raise ValueError(f"the certificate does not fit itself: {name} has shape {found}, not {shape}")
        _check_numbers(wrapper, own, facts)
        return cls(wrapper=wrapper, own=own, box=(low, high), model_digest=artefact.model_digest, about=about, **facts)


def _check_numbers(wrapper: Patch, own: Mapping[str, np.ndarray], facts: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError unless arrays have the dtypes and ranges that a certificate's have."""
    for name, array in own.items():
        if array.dtype != np.float32:  # what is checked would not be what is served
            raise ValueError(f"the certificate does not fit itself: {name} has dtype {array.dtype}, not float32")
    for name, kinds in _KINDS.items():
        if facts[name].dtype.kind not in kinds:
            raise ValueError(f"the certificate does not fit itself: {name} has dtype {facts[name].dtype}")
    for name, array in {**own, **facts}.items():
        if not np.isfinite(array).all():
            raise ValueError(f"the certificate holds NaN or infinity in {name}")
    targets, c = facts["targets"], wrapper.num_classes
    if targets.min() < 0 or targets.max() >= c:
        raise ValueError(f"the certificate's targets must be labels from 0 to {c - 1}; got {targets.tolist()}")
    for name in ("sharpness", "bounds"):
        if own[name].min() <= 0:
            raise ValueError(f"the certificate's {name} must be above 0; got {own[name].min():g}")


def coordinates(z: Any, origin: Any, basis: Any) -> np.ndarray:
    """Return u = (z - origin) @ basis in float64, (batch, n)."""
    return (np.asarray(z, np.float64) - np.asarray(origin, np.float64)) @ np.asarray(basis, np.float64)


def head_in_coordinates(inside: Model, origin: Any, inverse: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return slope (C, n) and shift (C,) of the logits in the coordinates u = (z - origin) @ basis, float64."""
    kernel, bias = (np.asarray(part, np.float64) for part in wrappers.head_map(inside))
    return (np.asarray(inverse, np.float64) @ kernel).T, np.asarray(origin, np.float64) @ kernel + bias


def features(model: Model, x: Any) -> np.ndarray:
    """Return the features of inputs as a network computes them, (batch, d), in batches of one size."""
    out = []
    for start in range(0, len(x), BATCH):
        rows = np.asarray(x[start : start + BATCH], np.float32)
        padded = np.concatenate([rows, np.zeros((BATCH - len(rows), *rows.shape[1:]), np.float32)])
        out.append(np.asarray(_features(model, padded))[: len(rows)])
    return np.concatenate(out)


@jax.jit
def _features(model: Model, x: Array) -> Array:
    return wrappers.features(model, x)


@functools.partial(jax.jit, static_argnums=0)
def support(wrapper: Patch, own: Params, z: Array) -> Array:
    """Return the support of every region as it is served, (batch, R), at flattened inputs or features."""
    return wrapper.support(own, wrapper.coordinates(own, z))
