"""Residual networks in PyTorch from their published layer lists: the oracle for `jaxunlearn.models`.

He, Zhang, Ren, Sun 2015, sections 3.3 to 4.2; names as in the widespread PyTorch versions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: zero padding ("A") or a projection of a given name."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra, self.projection = stride, outputs - inputs, None
        if shortcut != "A" and (stride != 1 or self.extra):
            projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            setattr(self, shortcut, projection)
            self.projection = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.projection:
            x = getattr(self, self.projection)(x)
        elif self.stride != 1 or self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Stem, stages of blocks, global average, classifier, on normalised NCHW images."""

    def __init__(
        self,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        classes: int,
        *,
        channels: int = 3,
        stem: tuple[int, int, int] = (3, 1, 1),
        pool: bool = False,
        shortcut: str = "A",
        head: str = "linear",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], *stem, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool, self.head, self.stages = pool, head, len(depths)
        inputs = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = []
            for number in range(depth):
                blocks.append(Block(inputs, width, 2 if stage > 1 and number == 0 else 1, shortcut))
                inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        setattr(self, head, nn.Linear(inputs, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.pool else x
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


def build(arch: str, classes: int, **more: Any) -> ResNet:
    """Return the reference of a network by our name; depths and widths may be others."""
    if arch == "digits_cnn":
        fields: dict[str, Any] = dict(depths=(1, 2), widths=(16, 32), channels=1)
    elif arch.startswith("cifar_resnet"):
        depth = arch.removeprefix("cifar_resnet")
        blocks = (int(depth.removesuffix("b")) - 2) // 6
        shortcut = "shortcut" if depth.endswith("b") else "A"
        fields = dict(depths=(blocks,) * 3, widths=(16, 32, 64), shortcut=shortcut)
    else:
        fields = dict(depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), shortcut="downsample", head="fc")
        fields |= dict(stem=(7, 2, 3), pool=True) if arch == "resnet18" else dict(pool=arch == "resnet18_cifar_pool")
    return ResNet(classes=classes, **fields | more)


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Give a network random BatchNorm scales, shifts and statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                ):
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return net.eval()
