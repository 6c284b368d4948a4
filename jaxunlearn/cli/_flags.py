"""Flags shared by commands, and the hyper-parameter flags generated from a method's Config."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxunlearn.cli import _errors

DEVICES = ("auto", "cpu", "gpu", "tpu")
PRECISIONS = ("highest", "high", "default")
#: From here on a number is infinite as a float32.
FLOAT32 = 3.4e38


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, no usage block; and for which an empty value is none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; raise a `UserError` for an empty value where the default is not one."""
        found, left = super().parse_known_args(*args, **kwargs)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            values = value if isinstance(value, list) and value else [value]
            if value != action.default and any(one in ("", []) for one in values):  # argparse makes [] of --flag=--
                name = action.option_strings[0] if action.option_strings else str(action.metavar)
                raise _errors.UserError(f"{name} is empty: give it a value (is a variable of the shell not set?)")
        return found, left

    def error(self, message: str) -> Any:
        """Raise a `UserError` with the message."""
        message = re.sub(r"^(argument [^\s/]+)/\S+:", r"\1:", message)  # one of two spellings is enough
        message = re.sub(r"^argument (\S+): must be", r"\1 must be", message)
        needs = r"\1 needs a value (\1=VALUE if it begins with a dash)"
        message = re.sub(r"^argument (\S+): expected one argument", needs, message)
        raise _errors.UserError(message)


class _Formatter(argparse.HelpFormatter):
    """Wrap one paragraph, leave a layout of several lines alone."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a network and its weights."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--arch",
        "--model",
        metavar="NAME",
        help="one of `jaxunlearn models`, such as resnet50, or package.module:NAME of your own: a Linen or NNX class, "
        "or a function that returns such a module; --model is another spelling",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="PyTorch file (.pth .pt .th; no code in it is run), .safetensors, .npz or Flax's .msgpack; or the folder "
        "of a checkpoint, a run or Transformers, which knows its network",
    )
    group.add_argument(
        "--num-classes", type=whole(1), metavar="N", help="outputs of the network; default: as its weights say"
    )
    group.add_argument(
        "--input-shape",
        type=_shape,
        metavar="H,W,C",
        help="of an image, in pixels and channels; default: its usual one",
    )
    group.add_argument(
        "--mean", type=_numbers, metavar="A,B,C", help="normalisation inside the network; default: its usual one"
    )
    group.add_argument("--std", type=_numbers, metavar="A,B,C", help="goes with --mean")


def add_data_flags(parser: argparse.ArgumentParser, *, apart: bool = False) -> None:
    """Add the flags that name a data set; with ``apart`` those for retain and test sets that lie elsewhere, too."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="SOURCE",
        help="folder:DIR with CLASS/NAME.jpg (or train/CLASS/NAME.jpg, test/...), csv:FILE with columns file, label, "
        "parquet:FILE_OR_DIR, npz:FILE, tfds:NAME, tfds:NAME:CONFIG or digits",
    )
    if apart:
        group.add_argument(
            "--retain-data",
            metavar="SOURCE",
            help="the retain set D_r; default: what is left of the training split of --data, if anything",
        )
        group.add_argument(
            "--test-data", metavar="SOURCE", help="the test set D_test; default: the test split of --data, if any"
        )
    group.add_argument(
        "--data-dir", metavar="DIR", help="tfds: where the data lie; csv: the folder that its files are relative to"
    )
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="the network's class names, one a line, in the order of its outputs; for data whose classes have names",
    )
    group.add_argument(
        "--on-bad-image",
        choices=("fail", "skip"),
        help="what to do about a picture that cannot be read; skip looks at all of them first and lists those it left "
        "out; default: fail",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change where and how loudly, not what."""
    group = parser.add_argument_group("running")
    group.add_argument("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    group.add_argument(
        "--precision", choices=PRECISIONS, default="highest", help="of matrix products on GPU and TPU; default: highest"
    )
    group.add_argument(
        "--compile-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep compiled programs in the user's cache folder, so that the next run starts at once; default: on",
    )
    group.add_argument("--quiet", action="store_true", help="no progress, only results and errors")


def add_json_flag(group: Any) -> None:
    """Add the flag of commands whose result is for machines, too."""
    group.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on standard output, and nothing else"
    )


def add_method_flags(parser: argparse.ArgumentParser, spec: Any) -> None:
    """Add one flag for each hyper-parameter of a method; what is not given is absent from the namespace."""
    group = parser.add_argument_group(f"hyper-parameters of {spec.name}", f"{spec.summary} ({spec.paper})")
    published = spec.Config.published()
    for field in dataclasses.fields(spec.Config):
        kind, choices = type(field.default), field.metadata["choices"]
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field, getattr(published, field.name))}
        if kind is bool:
            how |= {"action": argparse.BooleanOptionalAction}
        elif choices is not None:
            how |= {"choices": choices, "type": type(choices[0])}
        elif kind in (int, float):
            bounds = field.metadata["low"], field.metadata["high"]
            how |= (
                {"type": whole(*bounds), "metavar": "N"} if kind is int else {"type": number(*bounds), "metavar": "X"}
            )
        else:
            how |= {"type": kind, "metavar": "TEXT"}
        group.add_argument(flag(field.name), **how)


def config_of(spec: Any, args: argparse.Namespace) -> Any:
    """Return the method's Config: the preset, then the flags that were given.

    Raises:
      UserError: a value out of range, named by its flag.
    """
    from jaxunlearn import _config

    names = [field.name for field in dataclasses.fields(spec.Config)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    base = spec.Config.published() if args.preset == "published" else None
    try:
        return _config.from_mapping(spec.Config, given, base=base)
    except (ValueError, TypeError) as error:
        # The first word of the message is the field; elsewhere only a name with a "_" cannot be an English word.
        message = str(error)
        for name in names:
            message = re.sub(rf"\b{name}\b" if "_" in name else rf"^{name}\b", flag(name), message)
        raise _errors.UserError(message) from error


def refuse_unknown(left: Sequence[str], spec: Any, parser: argparse.ArgumentParser) -> None:
    """Raise a `UserError` for the first argument that nobody asked for."""
    if not left:
        return
    from jaxunlearn import methods

    unknown = left[0].partition("=")[0]
    if not unknown.startswith("-"):
        raise _errors.UserError(f"unexpected argument {unknown!r}")
    ours = [flag(field.name) for field in dataclasses.fields(spec.Config)]
    owners = [
        other.name
        for other in methods.all_specs().values()
        if unknown in [flag(field.name) for field in dataclasses.fields(other.Config)]
    ]
    if owners:
        raise _errors.UserError(
            f"method {spec.name!r} has no flag {unknown}, a flag of {', '.join(owners)}; its flags: {' '.join(ours)}"
        )
    close = difflib.get_close_matches(unknown, parser._option_string_actions, n=1)
    raise _errors.UserError(
        f"unknown flag {unknown}; "
        + (f"did you mean {close[0]}?" if close else f"the flags of method {spec.name!r}: {' '.join(ours)}")
    )


def flag(name: str) -> str:
    """Return the flag of a field.

    >>> flag("learning_rate")
    '--learning-rate'
    """
    return "--" + name.replace("_", "-")


def _help(field: dataclasses.Field[Any], published: Any) -> str:
    meta, facts = field.metadata, []
    low, high = meta["low"], meta["high"]
    if low is not None and high is not None:
        facts.append(f"{low:g} to {high:g}")
    elif low is not None:
        facts.append(f"at least {low:g}")
    elif high is not None:
        facts.append(f"at most {high:g}")
    if field.default != "":
        facts.append(f"default {_plain(field.default)}")
    if published != field.default:
        facts.append(f"published {_plain(published)}")
    if meta["deviation"]:
        facts.append(meta["deviation"])
    unit = f", in {meta['unit']}" if meta["unit"] and meta["unit"].rstrip("s") not in meta["help"] else ""
    more = f" ({'; '.join(facts)})" if facts else ""
    return f"{meta['help']}{unit}{more}".replace("%", "%%")


def _plain(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


def whole(low: float | None = None, high: float | None = None) -> Callable[[str], int]:
    """Return what reads a whole number in a range; as most, and where none is given, what an int32 holds.

    >>> whole(1)("3")
    3
    """

    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text) else None
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number{_bounds(low, high)}; got {text!r}")
        if high is None and abs(value) >= 2**31:
            raise argparse.ArgumentTypeError(f"must be a whole number of at most {2**31 - 1}; got {text!r}")
        return value

    return read


def number(low: float | None = None, high: float | None = None) -> Callable[[str], float]:
    """Return what reads a number in a range that is finite as a float32, too.

    >>> number(0)("0.5")
    0.5
    """

    def read(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not abs(value) < FLOAT32 or (low is not None and value < low) or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a finite number{_bounds(low, high)}; got {text!r}")
        return value

    return read


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:.10g} to {high:.10g}"
    return f" of at least {low:g}" if low is not None else f" of at most {high:g}" if high is not None else ""


#: Reads a place to write to: a shell leaves the ~ of --out=~/run as it is, and a folder of that name is not meant.
path = os.path.expanduser
#: Reads a seed: what `jax.random.key` takes on every platform.
seed = whole(0, 2**32 - 1)


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9][0-9]{0,3},[1-9][0-9]{0,3},[1-9][0-9]{0,2}", text):
        raise argparse.ArgumentTypeError(f"must be height,width,channels such as 32,32,3; got {text!r}")
    return tuple(int(part) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(number(), text.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be finite numbers separated by commas; got {text!r}") from None
