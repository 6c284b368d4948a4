"""A small network between a classifier's features and its head (StructGuard, Hong et al. 2026)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn._types import Array, Params
from jaxunlearn.wrappers.inside import Inside, head_map

#: What is measured once and not trained.
STATISTICS = ("mean", "var")
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projector:
    """Features through a linear layer, BatchNorm with fixed statistics, ReLU and a linear layer, then the head.

    Attributes:
      dim: d, the length of the features.
      width: of the layer between.
      residual: whether what comes out is added to the features: with an outer
        layer of zeros the wrapped network is the network.
    """

    dim: int
    width: int
    residual: bool

    def __post_init__(self) -> None:
        _validate.positive_int("dim", self.dim)
        _validate.positive_int("width", self.width)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its arrays."""
        between = dict.fromkeys(("inner_bias", "scale", "bias", *STATISTICS), (self.width,))
        return between | {
            "inner_kernel": (self.dim, self.width),
            "outer_kernel": (self.width, self.dim),
            "outer_bias": (self.dim,),
        }

    def init(self, key: Array) -> dict[str, Array]:
        """Draw its arrays: LeCun-normal kernels, statistics of no effect; residual: an outer kernel of zeros."""
        for_inner, for_outer = jax.random.split(key)
        draw = jax.nn.initializers.lecun_normal()
        own = {name: jnp.zeros(shape) for name, shape in self.shapes().items()}
        own |= {name: jnp.ones(self.width) for name in ("scale", "var")}
        own["inner_kernel"] = draw(for_inner, (self.dim, self.width))
        if not self.residual:
            own["outer_kernel"] = draw(for_outer, (self.width, self.dim))
        return own

    def measured(self, own: Params, features: Array) -> dict[str, Array]:
        """Return its arrays with the statistics of given features, (n, d)."""
        inner = self._inner(own, features)
        return {**own, "mean": jnp.mean(inner, axis=0), "var": jnp.var(inner, axis=0)}

    def project(self, own: Params, features: Array) -> Array:
        """Return projected features, (batch, d)."""
        inner = self._inner(own, features) - own["mean"][None]
        inner = inner * (own["scale"] * jax.lax.rsqrt(own["var"] + _EPSILON))[None] + own["bias"][None]
        out = jax.nn.relu(inner) @ own["outer_kernel"] + own["outer_bias"][None]
        return features + out if self.residual else out

    def __call__(self, own: Params, inside: Inside) -> Array:
        """Return the head's logits of the projected features."""
        kernel, bias = head_map(inside.model)
        return self.project(own, inside.features()) @ kernel + bias[None]

    def _inner(self, own: Params, features: Array) -> Array:
        return features @ own["inner_kernel"] + own["inner_bias"][None]
