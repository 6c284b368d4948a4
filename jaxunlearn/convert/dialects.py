"""Other names for the tensors of PyTorch networks, as tables that are read one way and written the other.

A rule is a name of ours, a name there and what is added to its numbers: ``#``
stands for a number, in the same order on both sides. Rules are of whole names or
of modules, whose last step (``weight``, ``running_mean``) stays as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TypeAlias

#: Name here, name there, what the numbers there have more.
Rule: TypeAlias = tuple[str, str, tuple[int, ...]]

_LEAF = r"(\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?"


def _layer(here: tuple[str, str], there: str, shift: tuple[int, ...] = ()) -> list[Rule]:
    """Return the rules of a convolution and its BatchNorm, as Transformers names them."""
    return [(name, f"{there}.{kind}", shift) for name, kind in zip(here, ("convolution", "normalization"), strict=True)]


def _table(*rules: Rule | list[Rule]) -> tuple[Rule, ...]:
    return tuple(rule for part in rules for rule in (part if isinstance(part, list) else [part]))


_STAGE, _BLOCK = "resnet.encoder.stages.#.layers.#", "features.#.conv"
RESNET = _table(
    _layer(("conv1", "bn1"), "resnet.embedder.embedder"),
    _layer(("layer#.#.conv#", "layer#.#.bn#"), f"{_STAGE}.layer.#", (-1, 0, -1)),
    _layer(("layer#.#.downsample.0", "layer#.#.downsample.1"), f"{_STAGE}.shortcut", (-1, 0)),
    ("fc", "classifier.1", ()),
)
MOBILENET_V2 = _table(
    _layer(("features.0.0", "features.0.1"), "mobilenet_v2.conv_stem.first_conv"),
    _layer(("features.1.conv.0.0", "features.1.conv.0.1"), "mobilenet_v2.conv_stem.conv_3x3"),
    _layer(("features.1.conv.1", "features.1.conv.2"), "mobilenet_v2.conv_stem.reduce_1x1"),
    _layer((f"{_BLOCK}.0.0", f"{_BLOCK}.0.1"), "mobilenet_v2.layer.#.expand_1x1", (-2,)),
    _layer((f"{_BLOCK}.1.0", f"{_BLOCK}.1.1"), "mobilenet_v2.layer.#.conv_3x3", (-2,)),
    _layer((f"{_BLOCK}.2", f"{_BLOCK}.3"), "mobilenet_v2.layer.#.reduce_1x1", (-2,)),
    _layer(("features.18.0", "features.18.1"), "mobilenet_v2.conv_1x1"),
    ("classifier.1", "classifier", ()),
)
_VIT_ENDS = _table(
    ("class_token", "vit.embeddings.cls_token", ()),
    ("encoder.pos_embedding", "vit.embeddings.position_embeddings", ()),
    ("conv_proj", "vit.embeddings.patch_embeddings.projection", ()),
    ("encoder.ln", "vit.layernorm", ()),
    ("heads.head", "classifier", ()),
)


def _vit(block: str, **names: str) -> tuple[Rule, ...]:
    here = "encoder.layers.encoder_layer_#"
    return _VIT_ENDS + tuple(
        (f"{here}.{name.replace('__', '.')}", f"{block}.{there}", ()) for name, there in names.items()
    )


_NORMS = dict(ln_1="layernorm_before", ln_2="layernorm_after")
#: As files have it.
VIT = _vit(
    "vit.encoder.layer.#",
    self_attention__query="attention.attention.query",
    self_attention__key="attention.attention.key",
    self_attention__value="attention.attention.value",
    self_attention__out_proj="attention.output.dense",
    mlp__0="intermediate.dense",
    mlp__3="output.dense",
    **_NORMS,
)
#: As Transformers 5 has it in memory.
VIT_5 = _vit(
    "vit.layers.#",
    self_attention__query="attention.q_proj",
    self_attention__key="attention.k_proj",
    self_attention__value="attention.v_proj",
    self_attention__out_proj="attention.o_proj",
    mlp__0="mlp.fc1",
    mlp__3="mlp.fc2",
    **_NORMS,
)
#: torchvision's own files of DenseNets, older than the names in its code.
_DENSE = "features.denseblock#.denselayer#"
DENSENET = _table((f"{_DENSE}.norm#", f"{_DENSE}.norm.#", ()), (f"{_DENSE}.conv#", f"{_DENSE}.conv.#", ()))
#: ResNets for CIFAR call the projections and the classifier after kuangliu/pytorch-cifar or after torchvision.
KUANGLIU: tuple[Rule, ...] = (("layer#.#.downsample.#", "layer#.#.shortcut.#", ()), ("fc", "linear", ()))
AS_TORCHVISION: tuple[Rule, ...] = tuple((there, here, ()) for here, there, _ in KUANGLIU)


def rename(rules: tuple[Rule, ...], name: str) -> str:
    """Return the name there of a tensor of ours; the same where no rule is for it.

    >>> rename(RESNET, "layer3.0.conv2.weight")
    'resnet.encoder.stages.2.layers.0.layer.1.convolution.weight'
    """
    for here, there, shift in rules:
        found = re.fullmatch(_pattern(here), name)
        if found:
            *numbers, leaf = found.groups()
            moved = (str(int(n) + add) for n, add in zip(numbers, shift or [0] * len(numbers), strict=True))
            return re.sub("#", lambda _: next(moved), there) + (leaf or "")
    return name


@functools.cache
def _pattern(here: str) -> str:
    return re.escape(here).replace(r"\#", r"(\d+)") + _LEAF


def _by(rules: tuple[Rule, ...]) -> Callable[[str], str]:
    return functools.partial(rename, rules)


#: Name of a dialect -> what it calls a tensor of ours.
DIALECTS: dict[str, Callable[[str], str]] = {
    "Transformers ResNet": _by(RESNET),
    "Transformers MobileNetV2": _by(MOBILENET_V2),
    "Transformers ViT": _by(VIT),
    "Transformers 5 ViT": _by(VIT_5),
    "old DenseNet": _by(DENSENET),
    "kuangliu": _by(KUANGLIU),
    "torchvision ResNet": _by(AS_TORCHVISION),
}
