"""What a wrapper is given of the network inside it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxunlearn._types import Array, Model

#: The subtree in ``params`` of the network inside.
NETWORK = "network"


class Inside(NamedTuple):
    """The network inside at one batch.

    Attributes:
      model: the network, with its current weights.
      x: the inputs, (batch, *input_shape).
      logits: its logits, (batch, C).
    """

    model: Model
    x: Array
    logits: Array

    def features(self) -> Array:
        """Return its features, (batch, d), in eval mode; see `features`."""
        return features(self.model, self.x)


def features(model: Model, x: Array) -> Array:
    """Return what the head is given, one flat row an input, (batch, d), in eval mode.

    Raises:
      ValueError: the model does not say where its head is, or has no taps.
    """
    path = "/".join(model.spec.head or ())
    if not path or model.spec.taps_fn is None:
        raise ValueError("the network has no features to look at: its spec needs a head and taps_fn")
    taps = model.spec.taps_fn(model.params, model.model_state, x)
    if f"{path}:in" not in taps:
        raise ValueError(f"the network has no tap at the input of its head {path!r}")
    return jnp.reshape(taps[f"{path}:in"], (x.shape[0], -1))


def head_map(model: Model) -> tuple[Array, Array]:
    """Return the head as an affine map of the features: kernel (d, C) and bias (C,).

    Dense layers and 1 x 1 convolutions on one pixel are such maps.

    Raises:
      ValueError: there is no head, or none with a kernel.
    """
    node = model.params
    for name in model.spec.head or ():
        node = node[name]
    if not model.spec.head or "kernel" not in node:
        raise ValueError("the network has no head with a kernel: its spec must name the classifier layer")
    kernel = jnp.reshape(node["kernel"], (-1, model.spec.num_classes))
    return kernel, node["bias"] if "bias" in node else jnp.zeros(model.spec.num_classes, kernel.dtype)
