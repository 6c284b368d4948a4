"""Networks as people write them, with every layer that makes trouble: Dropout, GroupNorm, LayerNorm, BatchNorm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Linen(nn.Module):
    """Convolution, GroupNorm, dense, LayerNorm, Dropout, dense."""

    num_classes: int
    rate: float = 0.5
    head = "out"

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(16, (3, 3), strides=2, padding=1)(x)))
        x = nn.relu(nn.LayerNorm()(nn.Dense(32)(x.reshape(x.shape[0], -1))))
        x = nn.Dropout(self.rate, deterministic=deterministic)(x)
        return nn.Dense(self.num_classes, name="out")(x)


class Nnx(nnx.Module):
    """The same in NNX, and BatchNorm after the convolution."""

    head = "layers/2"

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.conv = nnx.Conv(channels, 16, (3, 3), strides=2, padding=1, rngs=rngs)
        self.bn = nnx.BatchNorm(16, rngs=rngs)
        self.group = nnx.GroupNorm(16, num_groups=4, rngs=rngs)
        flat = (height + 1) // 2 * ((width + 1) // 2) * 16
        layers = [nnx.Linear(flat, 32, rngs=rngs), nnx.LayerNorm(32, rngs=rngs), nnx.Linear(32, num_classes, rngs=rngs)]
        self.layers = nnx.List(layers)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.group(self.bn(self.conv(x))))
        x = jnp.tanh(self.layers[1](self.layers[0](x.reshape(x.shape[0], -1))))
        return self.layers[2](self.dropout(x))


class Broken(nnx.Module):
    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        raise RuntimeError("no such width\nat all")


class Demanding(nnx.Module):
    def __init__(self, num_classes: int, depth: int, rngs: nnx.Rngs) -> None:
        self.depth = depth


def factory(**arguments: object) -> None:
    raise AssertionError("a function must not be called: a recipe may be a stranger's")
