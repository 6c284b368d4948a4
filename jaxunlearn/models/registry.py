"""The table of networks: their arguments, usual inputs, and whose tensor names they mirror."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn

from jaxunlearn.models.densenet import DenseNet
from jaxunlearn.models.mobilenet import MobileNetV1
from jaxunlearn.models.mobilenet_v2 import MobileNetV2
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.models.squeezenet import SqueezeNet
from jaxunlearn.models.vgg import VGG
from jaxunlearn.models.vit import ViT
from jaxunlearn.models.wide_resnet import WideResNet

#: Whose names and axes the weights of a network have.
TORCHVISION, KERAS, HUGGING_FACE = "torchvision", "Keras", "Hugging Face"
AKAMASTER, XTERNALZ, OWN = "CIFAR (akamaster)", "CIFAR (xternalz)", "torchvision's names"


class Arch(NamedTuple):
    """A network's fields and what it takes for granted."""

    fields: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: type[nn.Module] = ResNet
    #: Side of the input over the shorter side that a picture is resized to before its middle is cut out.
    crop: float = 1.0
    resample: str = "bilinear"
    layout: str = OWN
    #: Number of parameters at the usual arguments; a test compares it with the network.
    parameters: int = 0


#: Mean and standard deviation of each channel.
Normal: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
#: What the widespread code for wide ResNets divides by: (125.3, 123.0, 113.9) / 255 and (63.0, 62.1, 66.7) / 255.
_CIFAR10_WIDE = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
_DIGITS = ((0.3053,), (0.3760,))
#: From [0, 1] to [-1, 1].
_CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _cifar(depth: int, shortcut: str) -> Arch:
    blocks = (depth - 2) // 6
    fields = dict(depths=(blocks,) * 3, widths=(16, 32, 64), shortcut=shortcut)
    # The widespread third-party weights were trained with ImageNet's normalisation.
    return Arch(fields, 10, (32, 32, 3), *_IMAGENET, layout=AKAMASTER)


def _resnet(depths: tuple[int, ...], stem: str = "imagenet", max_pool: bool = True, **more: Any) -> dict[str, Any]:
    layout = dict(depths=depths, widths=(64, 128, 256, 512), shortcut="downsample", head="fc")
    return layout | dict(stem=stem, max_pool=max_pool) | more


def _small_stem(max_pool: bool, depths: tuple[int, ...] = (2, 2, 2, 2), **more: Any) -> Arch:
    return Arch(_resnet(depths, "cifar", max_pool, **more), 10, (32, 32, 3), *_CIFAR10)


def _imagenet(network: type[nn.Module], fields: dict[str, Any]) -> Arch:
    return Arch(fields, 1000, (224, 224, 3), _IMAGENET[0], _IMAGENET[1], network, 0.875, layout=TORCHVISION)


def _vit(patch: int, width: int, depth: int, heads: int) -> dict[str, Any]:
    return dict(patch=patch, width=width, depth=depth, heads=heads, hidden=4 * width)


def _mobilenet(width: float) -> Arch:
    return Arch(dict(width=width), 1000, (224, 224, 3), *_CENTRED, network=MobileNetV1, layout=KERAS)


def _hugging_face(network: type[nn.Module], fields: dict[str, Any], classes: int, normal: Normal, crop: float) -> Arch:
    return Arch(fields, classes, (224, 224, 3), normal[0], normal[1], network, crop, layout=HUGGING_FACE)


#: Transformers' MobileNetV2: TensorFlow's padding, rounding and BatchNorm. Its own BatchNorm moves the statistics
#: all but whole (momentum 0.997 in PyTorch's sense); here they keep 0.997 of themselves, as in TensorFlow.
_TENSORFLOW = dict(same_padding=True, rounded=True, first_shortcut=False, epsilon=1e-3, momentum=0.997, dropout=0.8)

_ARCHS: dict[str, Arch] = {
    "digits_cnn": Arch(dict(depths=(1, 2), widths=(16, 32)), 10, (8, 8, 1), *_DIGITS),
    **{f"cifar_resnet{n}": _cifar(n, "A") for n in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{n}b": _cifar(n, "shortcut") for n in (8, 14, 20, 32, 44, 56, 110)},
    "resnet18_cifar": _small_stem(False),
    "resnet18_cifar_pool": _small_stem(True),
    "resnet50_cifar": _small_stem(False, (3, 4, 6, 3), bottleneck=True),
    "resnet50_cifar_pool": _small_stem(True, (3, 4, 6, 3), bottleneck=True),
    "wrn_28_10": Arch({}, 10, (32, 32, 3), *_CIFAR10_WIDE, network=WideResNet, layout=XTERNALZ),
    "vit_tiny_cifar": Arch(_vit(4, 192, 6, 3), 10, (32, 32, 3), *_CIFAR10, network=ViT),
    "resnet18": _imagenet(ResNet, _resnet((2, 2, 2, 2))),
    "resnet34": _imagenet(ResNet, _resnet((3, 4, 6, 3))),
    "resnet50": _imagenet(ResNet, _resnet((3, 4, 6, 3), bottleneck=True)),
    "wide_resnet50_2": _imagenet(ResNet, _resnet((3, 4, 6, 3), bottleneck=True, inner=2)),
    "densenet121": _imagenet(DenseNet, {}),
    "vgg16": _imagenet(VGG, {}),
    "vgg16_bn": _imagenet(VGG, dict(batch_norm=True)),
    "mobilenet_v2": _imagenet(MobileNetV2, {}),
    "squeezenet1_1": _imagenet(SqueezeNet, {}),
    "vit_b_16": _imagenet(ViT, _vit(16, 768, 12, 12)),
    **{f"mobilenet_v1_{percent:03d}": _mobilenet(percent / 100) for percent in (25, 50, 75, 100)},
    "hf_resnet": _hugging_face(ResNet, _resnet((3, 4, 6, 3), bottleneck=True), 1000, _IMAGENET, 0.875),
    "hf_mobilenet_v2": _hugging_face(MobileNetV2, _TENSORFLOW, 1001, _CENTRED, 0.875),
    "hf_vit": _hugging_face(ViT, _vit(16, 768, 12, 12) | dict(split=True, epsilon=1e-12), 1000, _CENTRED, 1.0),
}

_PARAMETERS = {
    "digits_cnn": 37_690,
    "cifar_resnet8": 75_290,
    "cifar_resnet14": 172_506,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet8b": 78_042,
    "cifar_resnet14b": 175_258,
    "cifar_resnet20b": 272_474,
    "cifar_resnet32b": 466_906,
    "cifar_resnet44b": 661_338,
    "cifar_resnet56b": 855_770,
    "cifar_resnet110b": 1_730_714,
    "resnet18_cifar": 11_173_962,
    "resnet18_cifar_pool": 11_173_962,
    "resnet50_cifar": 23_520_842,
    "resnet50_cifar_pool": 23_520_842,
    "wrn_28_10": 36_479_194,
    "vit_tiny_cifar": 2_693_578,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "densenet121": 7_978_856,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "mobilenet_v2": 3_504_872,
    "squeezenet1_1": 1_235_496,
    "vit_b_16": 86_567_656,
    "mobilenet_v1_025": 470_072,
    "mobilenet_v1_050": 1_331_592,
    "mobilenet_v1_075": 2_585_560,
    "mobilenet_v1_100": 4_231_976,
    "hf_resnet": 25_557_032,
    "hf_mobilenet_v2": 3_506_153,
    "hf_vit": 86_567_656,
}
#: The networks by name, in order of size within a family.
ARCHS: dict[str, Arch] = {name: arch._replace(parameters=_PARAMETERS[name]) for name, arch in _ARCHS.items()}

#: Networks whose names and tensors are timm's, too; one of its tags may stand behind a dot: ``resnet50.a1_in1k``.
TIMM = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "densenet121")

#: Other people's names of networks whose tensors have the same names and shapes -> ours.
ALIASES: dict[str, str] = {
    **{f"resnet{n}": f"cifar_resnet{n}" for n in (20, 32, 44, 56, 110)},
    **{alias: name for name in TIMM for alias in (f"tv_{name}", f"{name}.tv_in1k")},
    "wrn28_10": "wrn_28_10",
    "wide-resnet-28-10": "wrn_28_10",
    "mobilenetv2": "mobilenet_v2",
    "squeezenet": "squeezenet1_1",
}
