"""A third-party CIFAR-10 network without BatchNorm, whose training images are known."""

from __future__ import annotations

import flax.linen as nn
import numpy as np

from experiments import real
from jaxunlearn import convert, models
from jaxunlearn._types import Array, Model


class SmallCNN(nn.Module):
    """Two convolutions and three dense layers; features flattened channels first, as its PyTorch weights ask for."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits, (batch, num_classes)."""
        for i, features in enumerate((6, 16), 1):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID", name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for i, features in enumerate((200, 100), 1):
            x = nn.relu(nn.Dense(features, name=f"fc{i}")(x))
        return nn.Dense(self.num_classes, name="fc3")(x)


def network() -> Model:
    """Return the network with its weights."""
    half = (0.5, 0.5, 0.5)
    recipe = models.recipe(
        "experiments.small_cnn:SmallCNN", num_classes=10, input_shape=(32, 32, 3), mean=half, std=half
    )
    path = real.shared_dir() / "weights" / "cifar10_smallcnn_known_members.pth"
    return convert.load_weights(path, recipe, models.from_recipe)


def part() -> np.ndarray:
    """Return "train", "eval" or "test" for each image of CIFAR-10, the 50,000 of its training set first, (60000,)."""
    path = real.shared_dir() / "weights" / "cifar10_smallcnn_membership.npz"
    split: np.ndarray = np.load(path, allow_pickle=False)["split"]
    return split
