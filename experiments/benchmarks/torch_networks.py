"""The benchmark's networks in eager PyTorch, filled with the weights of ours. Images are NCHW in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.torch_l2ul import CifarResNet
from jaxunlearn import convert
from jaxunlearn._types import Model


class Normalised(nn.Module):
    """A network after the normalisation of its inputs."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


class Block(nn.Module):
    """Two 3x3 convolutions and, where the shape changes, a projecting shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        projects = stride != 1 or inputs != outputs
        projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = nn.Sequential(*projection) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18 with the 3x3 stem that CIFAR takes, no max-pool."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for stage in (1, 2, 3, 4):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, Block(widths[stage], widths[stage], 1)))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each after a normalisation (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    """A vision transformer with torchvision's names."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, side: int, classes: int) -> None:
        super().__init__()
        tokens = (side // patch) ** 2 + 1
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        blocks = {f"encoder_layer_{i}": EncoderBlock(width, heads, 4 * width) for i in range(depth)}
        self.encoder.layers = nn.ModuleDict(blocks)
        self.encoder.ln = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleDict({"head": nn.Linear(width, classes)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        for block in self.encoder.layers.values():
            x = block(x)
        return self.heads["head"](self.encoder.ln(x)[:, 0])


def twin(model: Model) -> nn.Module:
    """Return the PyTorch network of one of ours, with its weights, in eval mode."""
    recipe, classes = model.spec.recipe, model.spec.num_classes
    if recipe.arch == "cifar_resnet20":
        network = CifarResNet(3, classes, recipe.mean, recipe.std)
        network.load_state_dict(_tensors(model, network))
        return network.eval()
    networks = {"resnet18_cifar": lambda: ResNet18(classes), "vit_tiny_cifar": lambda: ViT(4, 192, 6, 3, 32, classes)}
    network = networks[recipe.arch]()
    network.load_state_dict(_tensors(model, network))
    return Normalised(network, recipe.mean, recipe.std).eval()


def _tensors(model: Model, network: nn.Module) -> dict[str, Tensor]:
    counts = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    return counts | {name: torch.from_numpy(value) for name, value in convert.to_torch(model).items()}
