"""A patch network beside a classifier: it changes the logits on chosen polytopes and nowhere else.

The construction of REASSURE (Fu & Li 2022) as PRUNE uses it (Li et al. 2025):
a support network that is 1 on a polytope and 0 a little outside, an affine
patch that it switches, several of them in an order in which later ones win.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn._types import Array, Params
from jaxunlearn.wrappers.inside import Inside

SPACES = ("input", "features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """Groups of polytopes, one affine patch a group, in flattened inputs or in whitened features.

    With u the coordinates, ``phi(s) = clip(gamma s + 1, 0, 1)``, and s running over
    the slacks of a region's half-spaces (``offsets - normals u``) and box
    (``high - u``, ``u - low``), its support is ``g = max(1 - sum (1 - phi(s)), 0)``: 1 on
    the region, 0 as soon as a slack is below -1/gamma. With G_j the largest support in group j or a later
    one, p_j the affine patch of group j and l_j = p_j - p_(j-1), the logits change by ::

        h = sum over j with G_j > 0 of  relu(l_j + K_j (G_j - 1)) - relu(-l_j + K_j (G_j - 1))

    which is p_j on a region of group j that no later support touches (and computed as p_j there, not as a
    sum of differences, so that groups do not add up their rounding). Where all supports are 0 the
    logits are the very ones of the network inside, bit for bit, and that holds everywhere, not only on the
    box that K_j was computed for.

    Attributes:
      space: "input", u is the flattened input; or "features", u is ``(z - origin) @ basis`` for
        the input z of the head.
      dim: n, the length of u.
      num_classes: C.
      members: number of regions of each group, in order.
      rows: half-spaces of a group, shared by its regions; 0 for none.
      boxed: whether every region is cut with a box of its own.
    """

    space: str
    dim: int
    num_classes: int
    members: tuple[int, ...]
    rows: int
    boxed: bool

    def __post_init__(self) -> None:
        _validate.one_of("space", self.space, SPACES)
        for name in ("dim", "num_classes"):
            _validate.positive_int(name, getattr(self, name))
        if not self.members:
            raise ValueError("members must name at least one group of regions; got ()")
        for count in self.members:
            _validate.positive_int("members", count)
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 0:
            raise ValueError(f"rows must be an integer of at least 0; got {self.rows!r}")
        if not isinstance(self.boxed, bool):
            raise ValueError(f"boxed must be true or false; got {self.boxed!r}")
        if not (self.rows or self.boxed):
            raise ValueError("a region needs half-spaces or a box; got rows=0, boxed=False")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its arrays, see the class."""
        groups, regions, n = len(self.members), sum(self.members), self.dim
        found: dict[str, tuple[int, ...]] = {
            "maps": (groups, self.num_classes, n),
            "shifts": (groups, self.num_classes),
            "bounds": (groups,),
            "sharpness": (),
        }
        if self.rows:
            found |= {"normals": (groups, self.rows, n), "offsets": (groups, self.rows)}
        if self.boxed:
            found |= {"low": (regions, n), "high": (regions, n)}
        if self.space == "features":
            found |= {"basis": (n, n), "origin": (n,)}
        return found

    def __call__(self, own: Params, inside: Inside) -> Array:
        # The barrier keeps the compiler from computing these logits otherwise than without a patch.
        logits = jax.lax.optimization_barrier(inside.logits)
        z = inside.features() if self.space == "features" else inside.x.reshape(inside.x.shape[0], -1)
        return self.patched(own, logits, z)

    def patched(self, own: Params, logits: Array, z: Array) -> Array:
        """Return the changed logits, (batch, C).

        Args:
          own: the arrays.
          logits: of the network inside, (batch, C).
          z: flattened inputs or features, (batch, n).
        """
        u = self.coordinates(own, z)
        support = self.support(own, u)
        return jnp.where(jnp.any(support > 0, axis=1, keepdims=True), logits + self.change(own, u, support), logits)

    def coordinates(self, own: Params, z: Array) -> Array:
        """Return u, (batch, n)."""
        if self.space == "input":
            return z
        return _product(z - own["origin"][None], own["basis"])

    def support(self, own: Params, u: Array) -> Array:
        """Return the support g of every region, (batch, regions), in [0, 1]."""
        gamma = own["sharpness"]

        def shortfall(slack: Array) -> Array:
            return jnp.sum(1 - jnp.clip(gamma * slack + 1, 0, 1), axis=-1)

        missing: Any = 0.0
        if self.rows:
            along = jnp.einsum("bn,jmn->bjm", u, own["normals"], precision=jax.lax.Precision.HIGHEST)
            missing = shortfall(own["offsets"][None] - along)[:, np.repeat(np.arange(len(self.members)), self.members)]
        if self.boxed:
            missing += shortfall(own["high"][None] - u[:, None]) + shortfall(u[:, None] - own["low"][None])
        return jnp.maximum(1 - missing, 0)

    def change(self, own: Params, u: Array, support: Array) -> Array:
        """Return h, (batch, C): what is added to the logits."""
        ends = np.cumsum(self.members)
        largest = [jnp.max(support[:, end - size : end], axis=1) for end, size in zip(ends, self.members, strict=True)]
        later = jax.lax.cummax(jnp.stack(largest, axis=1), axis=1, reverse=True)[..., None]
        patches = jnp.einsum("bn,jcn->bjc", u, own["maps"], precision=jax.lax.Precision.HIGHEST) + own["shifts"][None]
        steps = jnp.diff(patches, axis=1, prepend=jnp.zeros_like(patches[:, :1]))
        down = own["bounds"][None, :, None] * (later - 1)
        terms = jax.nn.relu(steps + down) - jax.nn.relu(-steps + down)
        # G_j does not rise with j: up to the last group where it is 1 the terms are differences that sum to its patch.
        whole = later == 1
        last = whole & ~jnp.concatenate([whole[:, 1:], jnp.zeros_like(whole[:, :1])], axis=1)
        return jnp.sum(jnp.where(last, patches, 0) + jnp.where((later > 0) & ~whole, terms, 0), axis=1)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
