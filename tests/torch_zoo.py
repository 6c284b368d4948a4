"""More networks in PyTorch from their published layer lists: the oracles for `jaxunlearn.models`.

Names of tensors are torchvision's (DenseNet, VGG, MobileNetV2, SqueezeNet, ResNets of
bottlenecks, vision transformers) and those of xternalz/WideResNet-pytorch. All take normalised NCHW images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxunlearn import convert, models
from jaxunlearn._types import Model, Recipe
from tests import torch_reference
from tests.torch_reference import randomise


def alive(net: nn.Module, seed: int) -> nn.Module:
    """Give a network weights through which inputs reach the logits, and random norms; in eval mode, no dropout."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                inputs = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / inputs) ** 0.5)
                if module.bias is not None:
                    uniform(module.bias, -0.5, 0.5)
            if isinstance(module, nn.MultiheadAttention):
                width = module.embed_dim  # queries and keys long enough that tokens differ in what they attend to
                module.in_proj_weight.copy_(torch.randn(3 * width, width, generator=generator) * width**-0.5)
                uniform(module.in_proj_bias, -0.5, 0.5)
            if isinstance(module, nn.LayerNorm):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.5)
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for name, tensor in net.named_parameters():
            if name in ("class_token", "encoder.pos_embedding"):
                uniform(tensor, -1.0, 1.0)
    return randomise(net, seed)


class Bottleneck(nn.Module):
    """He et al. 2015, figure 5, with the stride in the 3x3 convolution."""

    def __init__(self, inputs: int, planes: int, stride: int, wide: int) -> None:
        super().__init__()
        inner, outputs = planes * wide, 4 * planes
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class BottleneckResNet(nn.Module):
    """Stem, stages of bottlenecks, global average, classifier."""

    def __init__(
        self,
        classes: int,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        *,
        wide: int = 1,
        small_stem: bool = False,
        pool: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], *((3, 1, 1) if small_stem else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool, inputs = pool, widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = []
            for number in range(depth):
                blocks.append(Bottleneck(inputs, width, 2 if stage > 1 and number == 0 else 1, wide))
                inputs = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.pool else x
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class WideBlock(nn.Module):
    """Zagoruyko & Komodakis 2016, figure 1(d), with the shortcut behind the first BatchNorm where it projects."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.drop, self.convShortcut = drop, None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(x))
        carried = x if self.convShortcut is None else self.convShortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        return carried + self.conv2(F.dropout(y, self.drop, self.training))


class WideStage(nn.Module):
    def __init__(self, depth: int, inputs: int, outputs: int, stride: int, drop: float) -> None:
        super().__init__()
        blocks = [
            WideBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, drop) for i in range(depth)
        ]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, classes: int, depth: int = 28, width: int = 10, drop: float = 0.0) -> None:
        super().__init__()
        n, sizes = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(n, sizes[0], sizes[1], 1, drop)
        self.block2 = WideStage(n, sizes[1], sizes[2], 2, drop)
        self.block3 = WideStage(n, sizes[2], sizes[3], 2, drop)
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, 1, 1, bias=False)

    def forward(self, earlier: list[torch.Tensor]) -> torch.Tensor:
        y = self.conv1(F.relu(self.norm1(torch.cat(earlier, 1))))
        return self.conv2(F.relu(self.norm2(y)))


class DenseBlock(nn.ModuleDict):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Huang et al. 2017, table 1 and section 3: DenseNet-BC."""

    def __init__(
        self, classes: int, blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, stem: int = 64
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, stem, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(stem))
        self.features.add_module("relu0", nn.ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        n = stem
        for i, depth in enumerate(blocks, 1):
            layers = {f"denselayer{j + 1}": DenseLayer(n + j * growth, growth, 4) for j in range(depth)}
            self.features.add_module(f"denseblock{i}", DenseBlock(layers))
            n += depth * growth
            if i < len(blocks):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(n))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(n, n // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2, 2))
                self.features.add_module(f"transition{i}", transition)
                n //= 2
        self.features.add_module(f"norm{len(blocks) + 1}", nn.BatchNorm2d(n))
        self.classifier = nn.Linear(n, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


class VGG(nn.Module):
    """Simonyan & Zisserman 2015, table 1, column D."""

    def __init__(
        self,
        classes: int,
        stages: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
        *,
        batch_norm: bool = False,
        hidden: int = 4096,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n = 3
        for stage in stages:
            for m in stage:
                layers += [nn.Conv2d(n, m, 3, padding=1), *([nn.BatchNorm2d(m)] if batch_norm else []), nn.ReLU()]
                n = m
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        first = [nn.Linear(n * 49, hidden), nn.ReLU(), nn.Dropout(0.5)]
        second = [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5)]
        self.classifier = nn.Sequential(*first, *second, nn.Linear(hidden, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Inverted(nn.Module):
    """Sandler et al. 2018, figure 3(b)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        layers = [_conv_bn(inputs, inner, 1)] if expand != 1 else []
        layers += [_conv_bn(inner, inner, 3, stride, inner), nn.Conv2d(inner, outputs, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def _conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, table 2; channel counts are multiples of 8, no more than 10 % below their width."""

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()

        def scaled(channels: float) -> int:
            near = max(8, int(channels * width + 4) // 8 * 8)
            return near + 8 if near < 0.9 * channels * width else near

        n = scaled(32)
        layers: list[nn.Module] = [_conv_bn(3, n, 3, 2)]
        table = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expand, channels, repeats, stride in table:
            for i in range(repeats):
                layers.append(Inverted(n, scaled(channels), 1 if i else stride, expand))
                n = scaled(channels)
        last = max(1280, scaled(1280))
        self.features = nn.Sequential(*layers, _conv_bn(n, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Fire(nn.Module):
    """Iandola et al. 2016, figure 1."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        last = nn.Conv2d(512, classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), last, nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x)).flatten(1)


class EncoderLayer(nn.Module):
    """Dosovitskiy et al. 2021, figure 1, on the right."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        first, second = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(first, nn.GELU(), nn.Dropout(0.0), second, nn.Dropout(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, tokens: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.layers, self.ln = nn.Sequential(), nn.LayerNorm(width, eps=1e-6)
        for i in range(depth):
            self.layers.add_module(f"encoder_layer_{i}", EncoderLayer(width, heads, hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ln(self.layers(x + self.pos_embedding))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, table 1, on PyTorch's own attention."""

    def __init__(self, classes: int, side: int, patch: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.encoder = Encoder(1 + (side // patch) ** 2, width, depth, heads, hidden)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_proj(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])


class Case(NamedTuple):
    """A network at its published size, and a small one of the same kind."""

    full: Callable[[], Any]
    small: Callable[[], Any]
    fields: dict[str, Any]
    side: int


DEPTHS = dict(depths=(1, 2, 1, 1), widths=(8, 16, 16, 24))
STAGES = dict(stages=((8, 8), (16,), (24,)), hidden=32)
DENSE = dict(blocks=(2, 3, 2), growth=8, stem=16)
VIT = dict(width=24, depth=2, heads=3, hidden=40)
BASIC = dict(depths=(1, 1), widths=(8, 16))
CASES = {
    "resnet34": Case(
        lambda: torch_reference.ResNet(
            (3, 4, 6, 3), (64, 128, 256, 512), 1000, stem=(7, 2, 3), pool=True, shortcut="downsample", head="fc"
        ),
        lambda: torch_reference.ResNet((2, 1), (8, 16), 7, stem=(7, 2, 3), pool=True, shortcut="downsample", head="fc"),
        dict(depths=(2, 1), widths=(8, 16)),
        64,
    ),
    "resnet50": Case(
        lambda: BottleneckResNet(1000),
        lambda: BottleneckResNet(7, **DEPTHS),
        DEPTHS,
        64,
    ),
    "resnet50_cifar": Case(
        lambda: BottleneckResNet(10, small_stem=True, pool=False),
        lambda: BottleneckResNet(7, small_stem=True, pool=False, **DEPTHS),
        DEPTHS,
        16,
    ),
    "resnet50_cifar_pool": Case(
        lambda: BottleneckResNet(10, small_stem=True),
        lambda: BottleneckResNet(7, small_stem=True, **DEPTHS),
        DEPTHS,
        16,
    ),
    "wide_resnet50_2": Case(
        lambda: BottleneckResNet(1000, wide=2),
        lambda: BottleneckResNet(7, wide=2, **DEPTHS),
        DEPTHS,
        64,
    ),
    "wrn_28_10": Case(
        lambda: WideResNet(10),
        lambda: WideResNet(7, 16, 2),
        dict(depth=16, width=2),
        16,
    ),
    "densenet121": Case(lambda: DenseNet(1000), lambda: DenseNet(7, **DENSE), DENSE, 64),
    "vgg16": Case(lambda: VGG(1000), lambda: VGG(7, **STAGES), STAGES, 36),
    "vgg16_bn": Case(
        lambda: VGG(1000, batch_norm=True),
        lambda: VGG(7, batch_norm=True, **STAGES),
        STAGES,
        36,
    ),
    "mobilenet_v2": Case(
        lambda: MobileNetV2(1000),
        lambda: MobileNetV2(7, 0.35),
        dict(width=0.35),
        64,
    ),
    "squeezenet1_1": Case(lambda: SqueezeNet(1000), lambda: SqueezeNet(7), {}, 67),
    "vit_b_16": Case(lambda: ViT(1000, 224, 16, 768, 12, 12, 3072), lambda: ViT(7, 48, 16, 24, 2, 3, 40), VIT, 48),
    "vit_tiny_cifar": Case(lambda: ViT(10, 32, 4, 192, 6, 3, 768), lambda: ViT(7, 16, 4, 24, 2, 3, 40), VIT, 16),
}
#: Those of `tests.torch_reference`, which have tests of their own in ``test_models.py``.
RESIDUAL = {
    name: Case(
        partial(torch_reference.build, name, models.known(name).num_classes),
        partial(torch_reference.build, name, 7, **(BASIC if name.startswith("resnet18") else {})),
        BASIC if name.startswith("resnet18") else {},
        8 if name == "digits_cnn" else 64 if name == "resnet18" else 16,
    )
    for name in models.names()
    if name.startswith(("digits_cnn", "cifar_resnet", "resnet18"))
}


def pair(arch: str, count: int, *, full: bool = False) -> tuple[Model, Any, np.ndarray, Any]:
    """Our network with the weights of PyTorch's, that one, images for ours and for it: small, or of the usual size.

    The logits of a network of the usual size are scaled to a standard deviation of 3.
    """
    case = (CASES | RESIDUAL)[arch]
    net = alive(case.full() if full else case.small(), seed=1)
    shape = models.known(arch).input_shape
    recipe = models.recipe(arch)
    if not full:
        shape = (case.side, case.side, shape[-1])
        recipe = models.recipe(arch, num_classes=7, input_shape=shape, **case.fields)
    x = np.random.default_rng(2).random((count, *shape), np.float32)
    if full:  # 16 x 16 squares at most: noise of single pixels is averaged out, and images are alike
        square = max(shape[0] // 16, 1)
        x = x[:, ::square, ::square].repeat(square, 1).repeat(square, 2)
    normal = torch.from_numpy((x - np.float32(recipe.mean)) / np.float32(recipe.std)).permute(0, 3, 1, 2)
    if full:
        with torch.no_grad():
            factor = 3 / net(normal).std()
            for tensor in head(net, recipe).parameters():
                tensor.mul_(factor)
    model = convert.from_torch(net.state_dict(), models.from_recipe(recipe, abstract=True))
    return model, net, x, normal


def head(net: nn.Module, recipe: Recipe) -> Any:
    """Return the classifier of a network in PyTorch."""
    return net.get_submodule(".".join(models.classifier(recipe) or ()).replace("_", "."))
