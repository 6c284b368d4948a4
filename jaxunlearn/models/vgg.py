"""VGG networks in Linen (Simonyan & Zisserman 2015), with parameter paths that mirror torchvision's names.

``features_0/kernel`` is ``features.0.weight``: layers are numbered with their ReLUs and max-pools.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import BatchNorm, Dropout, adaptive_mean, conv, max_pool

_small = nn.initializers.normal(0.01)


class VGG(nn.Module):
    """3x3 convolutions and max-pools, then a perceptron on a grid of averages, for images in NHWC.

    Attributes:
      num_classes: C.
      stages: channels of the convolutions before each 2x2 max-pool.
      batch_norm: whether BatchNorm follows each convolution.
      grid: side of the grid of averages.
      hidden: units of the perceptron's two hidden layers.
      dropout: after each of them.
      head: name of the classifier layer.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    batch_norm: bool = False
    grid: int = 7
    hidden: int = 4096
    dropout: float = 0.5
    head: str = "classifier_6"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        number = 0
        for stage in self.stages:
            for features in stage:
                x = conv(features, 3, 1, f"features_{number}", use_bias=True)(x)
                if self.batch_norm:
                    x = BatchNorm(name=f"features_{number + 1}")(x, train=train)
                x, number = nn.relu(x), number + 2 + self.batch_norm
            x, number = max_pool(x, 2, 2), number + 1
        x = adaptive_mean(x, self.grid)
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)  # PyTorch flattens channels first
        for name in ("classifier_0", "classifier_3"):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=_small, name=name)(x))
            x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.num_classes, kernel_init=_small, name=self.head)(x)
