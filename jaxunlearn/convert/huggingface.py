"""Folders of Transformers' image classifiers: ``config.json`` says which, ``preprocessor_config.json`` its inputs.

Nothing in them is run; a value that changes what the network computes and that
this library has no counterpart of is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import _files
from jaxunlearn._types import Preprocess, Recipe

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
#: Files of weights that a folder may have, the preferred one first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Pillow's filters by number.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MISSING: Any = object()
#: Layers of a network, channels of a layer and pixels of a side: more is a mistake, and would be built for hours.
_LAYERS, _CHANNELS, _SIDE = 256, 10**6, 4096


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder of Transformers, known by its ``config.json``."""
    return path.is_dir() and (path / CONFIG).is_file()


def weights_file(folder: Path) -> Path:
    """Return the file of weights in a folder.

    Raises:
      ValueError: there is none, or one in several parts.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if any((folder / f"{name}.index.json").is_file() for name in WEIGHTS):
        raise ValueError(
            f"the weights of {folder} are in several files: save the model anew in one, max_shard_size='99GB'"
        )
    raise ValueError(f"{folder} has a {CONFIG}, but no weights: {' or '.join(WEIGHTS)} is missing")


@_files.one_line()
def read_recipe(folder: Path) -> Recipe:
    """Return the network of a folder, with its normalisation and how pictures are made to fit.

    Args:
      folder: with ``config.json`` and, if it is there, ``preprocessor_config.json``;
        where that is missing, the usual normalisation of the kind of network is taken.

    Raises:
      OSError: a file cannot be read.
      ValueError: another kind of network, or a file that is damaged or asks for what is not here.
    """
    config = _Fields(folder / CONFIG)
    kind = config.get("model_type", str)
    if kind not in _KINDS:
        raise ValueError(f"{config.path} is of a {kind!r}; those that fit are {', '.join(_KINDS)}")
    if config.values.get("auto_map"):
        raise ValueError(f"{config.path} has an auto_map: the network is code of its own, which is not run")
    architecture = next(iter(config.get("architectures", list, ["ForImageClassification"])), "")
    if not str(architecture).endswith("ForImageClassification"):
        raise ValueError(f"{config.path} is of a {architecture}, not of a network for image classification")
    arch, arguments, normal = _KINDS[kind]
    fields = arguments(config)
    side = config.get("image_size", (int, list), None)
    sides = None if side is None else _pair(side, f"{config.path}: image_size")
    preprocess, normal = _preprocessor(folder, side, normal)
    if sides is not None and kind == "vit" and preprocess.crop != sides:
        raise ValueError(f"{folder}: images of {preprocess.crop} are made for a network that takes {sides}")
    classes = config.count("num_labels", len(config.get("id2label", dict, {"0": "", "1": ""})))
    shape = (*preprocess.crop, config.count("num_channels", 3))
    mean, std = normal if normal is not None else (None, None)
    fields |= {"input_shape": shape, "num_classes": classes}
    return Recipe(arch=arch, kwargs=tuple(sorted(fields.items())), mean=mean, std=std, preprocess=preprocess)


class _Fields:
    """A JSON object whose values are checked as they are taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: Any = _files.read_json(path)
        if not isinstance(self.values, Mapping):
            raise ValueError(f"{path} must hold a JSON object; it holds a {type(self.values).__name__}")

    def get(self, name: str, kind: Any, default: Any = _MISSING) -> Any:
        """Return a value of some type, or the default where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            if default is _MISSING:
                raise ValueError(f"{self.path} lacks {name}")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.path}: {name} is {value!r}, which is not what belongs there")
        return value

    def count(self, name: str, default: int, most: int = _CHANNELS) -> int:
        """Return a whole number of at least 1."""
        value: int = self.get(name, int, default)
        if not 1 <= value <= most:
            raise ValueError(f"{self.path}: {name} must be from 1 to {most:,}; got {value}")
        return value

    def counts(self, name: str, default: tuple[int, ...], most: int = _CHANNELS) -> tuple[int, ...]:
        """Return a list of whole numbers of at least 1, and at most so many in all."""
        values = self.get(name, list, default)
        if not values or not all(type(value) is int and value > 0 for value in values):
            raise ValueError(f"{self.path}: {name} must be a list of numbers of at least 1; got {values}")
        if sum(values) > most:
            raise ValueError(f"{self.path}: {name} may sum up to {most:,}; got {values}")
        return tuple(values)

    def real(self, name: str, default: float, most: float = 1.0) -> float:
        """Return a number from 0 to another, as it is written."""
        value: float = self.get(name, (int, float), default)
        if not 0 <= value <= most:
            raise ValueError(f"{self.path}: {name} must be from 0 to {most:g}; got {value}")
        return value

    def only(self, name: str, default: Any, *allowed: Any) -> Any:
        """Return one of the values that are provided for."""
        value = self.values.get(name, default)
        if value not in (allowed or (default,)):
            there = ", ".join(map(repr, allowed or (default,)))
            raise ValueError(f"{self.path}: {name} is {value!r}; provided for is {there}")
        return value


def _resnet(config: _Fields) -> dict[str, Any]:
    config.only("hidden_act", "relu")
    widths = config.counts("hidden_sizes", (256, 512, 1024, 2048))
    depths = config.counts("depths", (3, 4, 6, 3), _LAYERS)
    if len(widths) != len(depths):
        raise ValueError(f"{config.path}: hidden_sizes and depths must have one length; got {widths} and {depths}")
    bottleneck = config.only("layer_type", "bottleneck", "bottleneck", "basic") == "bottleneck"
    if bottleneck and any(width % 4 for width in widths):
        raise ValueError(f"{config.path}: hidden_sizes of bottlenecks must be multiples of 4; got {widths}")
    return {
        "bottleneck": bottleneck,
        "depths": depths,
        "widths": tuple(width // 4 for width in widths) if bottleneck else widths,
        "stem_width": config.count("embedding_size", 64),
        "first_stride": 2 if config.get("downsample_in_first_stage", bool, False) else 1,
        "stride_first": config.get("downsample_in_bottleneck", bool, False),
    }


def _mobilenet_v2(config: _Fields) -> dict[str, Any]:
    config.only("hidden_act", "relu6")
    config.only("output_stride", 32)
    config.only("first_layer_is_expansion", True)
    width = config.real("depth_multiplier", 1.0, most=100)
    if not width > 0:
        raise ValueError(f"{config.path}: depth_multiplier must be above 0; got {width}")
    return {
        "width": width,
        "divisor": config.count("depth_divisible_by", 8),
        "least": config.count("min_depth", 8),
        "expand": config.real("expand_ratio", 6.0, most=100),
        "wide_end": config.get("finegrained_output", bool, True),
        "same_padding": config.get("tf_padding", bool, True),
        "epsilon": config.real("layer_norm_eps", 1e-3),
        "dropout": config.real("classifier_dropout_prob", 0.8),
    }


def _vit(config: _Fields) -> dict[str, Any]:
    patch = _pair(config.get("patch_size", (int, list), 16), f"{config.path}: patch_size")
    if patch[0] != patch[1]:
        raise ValueError(f"{config.path}: patch_size must be square; got {patch}")
    width, heads = config.count("hidden_size", 768), config.count("num_attention_heads", 12)
    if width % heads:
        raise ValueError(f"{config.path}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return {
        "patch": patch[0],
        "width": width,
        "heads": heads,
        "depth": config.count("num_hidden_layers", 12, _LAYERS),
        "hidden": config.count("intermediate_size", 3072),
        "activation": config.only("hidden_act", "gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
        "bias": config.get("qkv_bias", bool, True),
        "epsilon": config.real("layer_norm_eps", 1e-12),
        "dropout": config.real("hidden_dropout_prob", 0.0),
        "attention_dropout": config.real("attention_probs_dropout_prob", 0.0),
    }


#: Kind of network -> our name, its arguments, and mean and deviation where the folder has none.
_KINDS: dict[str, tuple[str, Callable[[_Fields], dict[str, Any]], Any]] = {
    "resnet": ("hf_resnet", _resnet, _IMAGENET),
    "mobilenet_v2": ("hf_mobilenet_v2", _mobilenet_v2, _CENTRED),
    "vit": ("hf_vit", _vit, _CENTRED),
}


def _preprocessor(folder: Path, side: Any, normal: Any) -> tuple[Preprocess, Any]:
    """Return how pictures become inputs, and mean and deviation per channel or None."""
    usual = 224 if side is None else side
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preprocess(resize=_pair(usual), crop=_pair(usual)), normal
    fields = _Fields(path)
    fields.only("do_resize", True)
    if fields.get("do_rescale", bool, True):
        factor = fields.get("rescale_factor", (int, float), 1 / 255)
        if abs(255 * factor - 1) > 1e-6:
            raise ValueError(f"{path}: rescale_factor is {factor}; provided for is 1/255")
    if not fields.get("do_normalize", bool, True):
        normal = None
    elif fields.get("image_mean", list, None) is not None or fields.get("image_std", list, None) is not None:
        normal = tuple(_floats(fields, name) for name in ("image_mean", "image_std"))
    kind = fields.get("image_processor_type", str, None) or fields.get("feature_extractor_type", str, "")
    number = fields.get("resample", int, 3 if "ConvNext" in kind else 2)
    if number not in _FILTERS:
        raise ValueError(f"{path}: resample is {number}; provided for are {_FILTERS}")
    filtered = _FILTERS[number]
    if "ConvNext" in kind or "crop_pct" in fields.values:
        edge = _edge(fields, 384)
        share = fields.get("crop_pct", (int, float), 224 / 256)
        if edge >= 384:  # the whole picture, whatever its proportions
            return Preprocess(resize=(edge, edge), crop=(edge, edge), resample=filtered), normal
        if not 0.1 <= share <= 1:
            raise ValueError(f"{path}: crop_pct must be from 0.1 to 1; got {share}")
        return Preprocess(resize=int(edge / share), crop=(edge, edge), resample=filtered), normal
    size = fields.get("size", (int, list, dict), usual)
    cropped = fields.get("do_center_crop", bool, "MobileNetV2" in kind)
    crop = _pair(_sides(fields, "crop_size", 224 if "MobileNetV2" in kind else usual)) if cropped else None
    if isinstance(size, dict) and "shortest_edge" in size:
        if crop is None:
            raise ValueError(f"{path}: size has a shortest_edge and nothing is cut out, so that inputs differ in size")
        return Preprocess(resize=_edge(fields, 256), crop=crop, resample=filtered), normal
    if isinstance(size, int) and cropped:  # of old files: the shorter side
        return Preprocess(resize=_pair(size, f"{path}: size")[0], crop=crop or _pair(size), resample=filtered), normal
    whole = _pair(_sides(fields, "size", usual))
    return Preprocess(resize=whole, crop=crop or whole, resample=filtered), normal


def _floats(fields: _Fields, name: str) -> tuple[float, ...]:
    values = fields.get(name, list)
    if not values or not all(isinstance(value, int | float) and abs(value) < 1e6 for value in values):
        raise ValueError(f"{fields.path}: {name} must be a list of numbers; got {values}")
    return tuple(float(value) for value in values)


def _edge(fields: _Fields, default: int) -> int:
    """Return the length of the shorter side, given as such or as a bare number."""
    size = fields.get("size", (int, dict), default)
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    if type(edge) is not int or not 1 <= edge <= _SIDE:
        raise ValueError(f"{fields.path}: size must have a shortest_edge from 1 to {_SIDE}; got {size}")
    return edge


def _sides(fields: _Fields, name: str, default: Any) -> Any:
    """Return the value of a size: a number, [height, width], or an object of the two."""
    size = fields.get(name, (int, list, dict), default)
    size = [size.get("height"), size.get("width")] if isinstance(size, dict) else size
    pair = size if isinstance(size, list) else [size, size]
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= _SIDE for side in pair):
        given = fields.values.get(name, default)
        raise ValueError(f"{fields.path}: {name} must be height and width, from 1 to {_SIDE}; got {given}")
    return size


def _pair(size: Any, what: str = "a size") -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= _SIDE for side in pair):
        raise ValueError(f"{what} must be one number or two, from 1 to {_SIDE}; got {size}")
    return pair
