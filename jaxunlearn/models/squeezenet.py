"""SqueezeNet 1.1 in Linen (Iandola et al. 2016), with parameter paths that mirror torchvision's names.

``features_3/expand1x1/kernel`` is ``features.3.expand1x1.weight``.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn._types import Array
from jaxunlearn.models._layers import Dropout, conv, max_pool

#: Squeezed and expanded channels of each fire module, by its number among the layers.
_FIRES = {3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128), 9: (48, 192), 10: (48, 192)}
_FIRES |= {11: (64, 256), 12: (64, 256)}
_POOLS = (2, 5, 8)


class SqueezeNet(nn.Module):
    """Fire modules, then a 1x1 convolution whose rectified outputs are averaged, for images in NHWC.

    Because of that ReLU the classifier is no linear layer on features, and there is no ``head``.

    Attributes:
      num_classes: C.
      dropout: before the classifier.
      classifier: name of the classifier layer.
    """

    num_classes: int
    dropout: float = 0.5
    classifier: str = "classifier_1"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        x = nn.relu(conv(64, 3, 2, "features_0", pad=0, use_bias=True)(x))
        for number in range(2, 13):
            name = f"features_{number}"
            x = max_pool(x, 3, 2, ceil=True) if number in _POOLS else _Fire(*_FIRES[number], name=name)(x)
        x = Dropout(self.dropout)(x, train=train)
        x = nn.relu(conv(self.num_classes, 1, 1, self.classifier, use_bias=True)(x))
        return jnp.mean(x, axis=(1, 2))


class _Fire(nn.Module):
    """A 1x1 convolution that narrows, then a 1x1 and a 3x3 side by side (figure 1 of the paper)."""

    squeezed: int
    expanded: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(conv(self.squeezed, 1, 1, "squeeze", use_bias=True)(x))
        one = conv(self.expanded, 1, 1, "expand1x1", use_bias=True)(x)
        three = conv(self.expanded, 3, 1, "expand3x3", use_bias=True)(x)
        return nn.relu(jnp.concatenate([one, three], axis=-1))
