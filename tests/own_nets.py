"""Networks as people write them, with every layer that makes trouble: Dropout, GroupNorm, LayerNorm, BatchNorm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tests.digits_net import Tiny


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


class Inside(nn.Module):
    """All layers in one module, by a name that wrappers give, too."""

    num_classes: int
    head = "net/linear"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return Tiny(self.num_classes, name="net")(x, train=train)


WIDTH = 3
ready = Linen(num_classes=10)
called: list[str] = []


def linen(num_classes: int) -> nn.Module:
    """Takes the number of classes alone."""
    called.append("linen")
    return Linen(num_classes=num_classes)


def nnx_model(*, rngs: nnx.Rngs, input_shape: tuple[int, ...], num_classes: int, width: int = 0) -> nnx.Module:
    """Takes all three, and something of its own."""
    called.append("nnx_model")
    return Nnx(num_classes, input_shape, rngs)


def seeded() -> nnx.Module:
    """Takes nothing: its weights are always the same."""
    return Nnx(10, (8, 8, 1), nnx.Rngs(7))


class Widths(nn.Module):
    """A network with a list among its fields, which alone could not be hashed."""

    widths: list[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.Dense(width)(x)
        return x


def listed(num_classes: int) -> nn.Module:
    return Widths([4, num_classes])


def demanding(num_classes: int, depth: int) -> nn.Module:
    raise AssertionError("not to be called")


def raising(num_classes: int) -> nn.Module:
    raise RuntimeError("no such width\nat all")


def ending() -> nn.Module:
    raise SystemExit(3)


def text() -> str:
    return "a network"


class Tokens(nn.Module):
    """An array whose name has no counterpart in PyTorch, and BatchNorm."""

    num_classes: int
    head = "out"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        tokens = self.param("tokens", nn.initializers.normal(1.0), (8, 6))
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="out")(jnp.tanh(x @ tokens))
