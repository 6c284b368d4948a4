"""A small network that knows the digits it is asked to forget; compiles in a moment. For tests of the command line."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import convert, models, training
from jaxunlearn._types import Model
from jaxunlearn.data import open_source

ARCH = "tests.digits_net:Tiny"


class Tiny(nn.Module):
    """Convolution, BatchNorm, ReLU, dense: the user's own network, as ``--arch`` takes it."""

    num_classes: int = 10
    head = "linear"

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Conv(16, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), name="conv1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn1", use_fast_variance=False)(x)
        x = jnp.reshape(nn.relu(x), (x.shape[0], -1))
        return nn.Dense(self.num_classes, name="linear")(x)


@functools.cache
def fresh() -> Model:
    """Return the network with fresh weights."""
    return models.from_recipe(models.recipe(ARCH, num_classes=10, input_shape=(8, 8, 1)), key=jax.random.key(0))


@functools.cache
def network() -> Model:
    """Return the network, trained once a session."""
    source = open_source("digits")
    rows = source.splits["train"]
    x, y = source.images(rows), source.labels[rows]
    return training.train(fresh(), jax.random.key(1), x, y, epochs=20, batch_size=64, learning_rate=0.05).model


@functools.cache
def tensors() -> dict[str, np.ndarray]:
    """Return its weights in PyTorch's names and layout."""
    return convert.to_torch(network())
