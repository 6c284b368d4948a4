"""Vision transformers in Linen, with parameter paths that mirror torchvision's names (Dosovitskiy et al. 2021).

``encoder/layers/encoder_layer__0/mlp_3/kernel`` is
``encoder.layers.encoder_layer_0.mlp.3.weight``: one underscore before a number
stands for a dot, two for one underscore (`jaxunlearn.convert`). The version of Transformers is
the same network with other arguments (`jaxunlearn.convert.huggingface` has its names).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._conv import conv_general_dilated
from jaxunlearn.models._layers import Dropout

_uniform = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(1e-6)
#: Activations by their names in Transformers.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017).

    Attributes:
      heads: h, a divisor of the width.
      split: whether queries, keys and values come from layers of their own, as in
        Transformers, or from one matrix, as in PyTorch.
      bias: whether these have a bias.
      dropout: of the attention weights.
    """

    heads: int
    split: bool = False
    bias: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return what each token takes from all, (batch, tokens, width)."""
        width = x.shape[-1]
        shape = (*x.shape[:2], self.heads, width // self.heads)
        query, key, value = (part.reshape(shape) for part in (self._split(x) if self.split else self._joined(x)))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(width // self.heads).astype(x.dtype)
        shares = Dropout(self.dropout)(jax.nn.softmax(scores, axis=-1), train=train)
        taken = jnp.einsum("bhqk,bkhd->bqhd", shares, value)
        return nn.Dense(width, kernel_init=_uniform, name="out_proj")(taken.reshape(x.shape))

    def _joined(self, x: Array) -> list[Array]:
        width = x.shape[-1]
        joined = x @ self.param("in_proj_kernel", _uniform, (width, 3 * width))
        if self.bias:
            joined = joined + self.param("in_proj_bias", nn.initializers.zeros, (3 * width,))[None, None]
        return jnp.split(joined, 3, axis=-1)

    def _split(self, x: Array) -> list[Array]:
        dense = partial(nn.Dense, x.shape[-1], use_bias=self.bias, kernel_init=_uniform)
        return [dense(name=name)(x) for name in ("query", "key", "value")]


class Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and beside a shortcut.

    Attributes:
      heads, split, bias, attention_dropout: of the attention.
      hidden: units of the perceptron; activation: between its layers, one of `ACTIVATIONS`.
      epsilon: of the normalisations.
      dropout: of what attention and perceptron add.
    """

    heads: int
    hidden: int
    split: bool = False
    bias: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return the block's output, (batch, tokens, width)."""
        drop = Dropout(self.dropout)
        attention = Attention(self.heads, self.split, self.bias, self.attention_dropout, name="self_attention")
        y = attention(nn.LayerNorm(epsilon=self.epsilon, name="ln__1")(x), train=train)
        x = x + drop(y, train=train)
        y = nn.LayerNorm(epsilon=self.epsilon, name="ln__2")(x)
        y = nn.Dense(self.hidden, kernel_init=_uniform, bias_init=_small, name="mlp_0")(y)
        y = ACTIVATIONS[self.activation](y)
        y = nn.Dense(x.shape[-1], kernel_init=_uniform, bias_init=_small, name="mlp_3")(y)
        return x + drop(y, train=train)


class Encoder(nn.Module):
    """Positions, blocks, and a last normalisation.

    Attributes:
      depth: blocks; block: their attributes, as pairs.
      epsilon: of the last normalisation; dropout: of the tokens.
    """

    depth: int
    block: tuple[tuple[str, Any], ...]
    epsilon: float = 1e-6
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return tokens, (batch, tokens, width)."""
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = Dropout(self.dropout)(x, train=train)
        x = _Layers(self.depth, self.block, name="layers")(x, train=train)
        return nn.LayerNorm(epsilon=self.epsilon, name="ln")(x)


class _Layers(nn.Module):
    depth: int
    block: tuple[tuple[str, Any], ...]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for i in range(self.depth):
            x = Block(**dict(self.block), name=f"encoder_layer__{i}")(x, train=train)
        return x


class _Heads(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)


class ViT(nn.Module):
    """A vision transformer for images in NHWC.

    Attributes:
      patch: side of a patch in pixels, a divisor of the image's sides.
      width: length of a token; depth: blocks; heads: of each attention; hidden: units of each perceptron.
      num_classes: C.
      split, bias, activation, epsilon, dropout, attention_dropout: of `Block`; dropout of the tokens, too.
      head: path of the classifier layer.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    num_classes: int
    split: bool = False
    bias: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    head: str = "heads/head"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        if any(side % self.patch for side in x.shape[1:3]):
            raise ValueError(f"patches of {self.patch} pixels do not cover {x.shape[1]}x{x.shape[2]}")
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding=((0, 0), (0, 0)),
            kernel_init=nn.initializers.lecun_normal(),
            conv_general_dilated=conv_general_dilated,
            name="conv_proj",
        )(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
        names = ("heads", "hidden", "split", "bias", "activation", "epsilon", "dropout", "attention_dropout")
        block = tuple((name, getattr(self, name)) for name in names)
        x = Encoder(self.depth, block, self.epsilon, self.dropout, name="encoder")(x, train=train)
        return _Heads(self.num_classes, name="heads")(x[:, 0])
