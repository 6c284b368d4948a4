"""MobileNetV1 in Linen (Howard et al. 2017), with the layers, names and padding of its Keras weights.

``conv_dw_1/kernel`` is Keras's ``conv_dw_1/depthwise_kernel`` (`jaxunlearn.convert`).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import BatchNorm, conv

#: Output channels at width 1 and stride of each of the 13 blocks (table 1 of the paper).
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
_start = nn.initializers.lecun_normal()


class MobileNetV1(nn.Module):
    """Depthwise-separable convolutions with ReLU6, for images in NHWC.

    The classifier is a 1x1 convolution with bias on the averaged features. Of
    Keras's layers only the dropout of 0.001 before it is left out.

    Attributes:
      num_classes: C.
      width: multiplier of all channel counts but C, above 0 (paper: 1, 0.75, 0.5, 0.25).
      head: name of the classifier layer.
    """

    num_classes: int
    width: float = 1.0
    head: str = "conv_preds"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        x = _layer(x, int(32 * self.width), 3, 2, "conv1", train=train)
        for i, (features, stride) in enumerate(_BLOCKS, 1):
            x = _layer(x, x.shape[-1], 3, stride, f"conv_dw_{i}", groups=x.shape[-1], train=train)
            x = _layer(x, int(features * self.width), 1, 1, f"conv_pw_{i}", train=train)
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        return conv(self.num_classes, 1, 1, self.head, use_bias=True, kernel_init=_start)(x)[:, 0, 0]


def _layer(x: Array, features: int, size: int, stride: int, name: str, *, groups: int = 1, train: bool) -> Array:
    pad = (size // 2 if stride == 1 else 0, size // 2)  # as Keras pads: at stride 2 below and to the right only
    x = conv(features, size, stride, name, pad=(pad, pad), groups=groups, kernel_init=_start)(x)
    return nn.relu6(BatchNorm(0.99, 1e-3, name=f"{name}_bn")(x, train=train))
