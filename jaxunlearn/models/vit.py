"""Vision transformers in Linen, with parameter paths that mirror torchvision's names (Dosovitskiy et al. 2021).

``encoder/layers/encoder_layer__0/mlp_3/kernel`` is
``encoder.layers.encoder_layer_0.mlp.3.weight``: one underscore before a number
stands for a dot, two for one underscore (`jaxunlearn.convert`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._conv import conv_general_dilated

_EPSILON = 1e-6
_uniform = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(1e-6)


class Attention(nn.Module):
    """Multi-head self-attention whose queries, keys and values come from one matrix, as PyTorch keeps them.

    Attributes:
      heads: h, a divisor of the width.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return what each token takes from all, (batch, tokens, width)."""
        width = x.shape[-1]
        kernel = self.param("in_proj_kernel", _uniform, (width, 3 * width))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * width,))
        joined = x @ kernel + bias[None, None]
        query, key, value = (
            part.reshape(*x.shape[:2], self.heads, width // self.heads) for part in jnp.split(joined, 3, axis=-1)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(width // self.heads).astype(x.dtype)
        taken = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value)
        return nn.Dense(width, kernel_init=_uniform, name="out_proj")(taken.reshape(x.shape))


class Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and beside a shortcut.

    Attributes:
      heads: of the attention; hidden: units of the perceptron.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the block's output, (batch, tokens, width)."""
        x = x + Attention(self.heads, name="self_attention")(nn.LayerNorm(epsilon=_EPSILON, name="ln__1")(x))
        y = nn.LayerNorm(epsilon=_EPSILON, name="ln__2")(x)
        y = nn.Dense(self.hidden, kernel_init=_uniform, bias_init=_small, name="mlp_0")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(x.shape[-1], kernel_init=_uniform, bias_init=_small, name="mlp_3")(y)


class Encoder(nn.Module):
    """Positions, blocks, and a last normalisation."""

    depth: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return tokens, (batch, tokens, width)."""
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = _Layers(self.depth, self.heads, self.hidden, name="layers")(x)
        return nn.LayerNorm(epsilon=_EPSILON, name="ln")(x)


class _Layers(nn.Module):
    depth: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            x = Block(self.heads, self.hidden, name=f"encoder_layer__{i}")(x)
        return x


class _Heads(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)


class ViT(nn.Module):
    """A vision transformer for images in NHWC, without dropout.

    Attributes:
      patch: side of a patch in pixels, a divisor of the image's sides.
      width: length of a token; depth: blocks; heads: of each attention; hidden: units of each perceptron.
      num_classes: C.
      head: path of the classifier layer.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    num_classes: int
    head: str = "heads/head"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits, (batch, num_classes)."""
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
        x = Encoder(self.depth, self.heads, self.hidden, name="encoder")(x)
        return _Heads(self.num_classes, name="heads")(x[:, 0])
