"""``jaxunlearn export``: write an unlearned network for the library that its weights came from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import convert, report
from jaxunlearn._types import Model
from jaxunlearn.cli import _device, _errors, _flags, _model, _output, _progress
from jaxunlearn.convert import Exported
from jaxunlearn.job import previous

EPILOG = """\
exit status: 0 written, read back and compared; 2 wrong input

example:
  jaxunlearn unlearn --arch cifar_resnet20 --weights cifar10_resnet20.th ... --out runs/a
  jaxunlearn export --run runs/a --out cifar10_resnet20_without.safetensors
"""


def main(argv: Sequence[str]) -> int:
    """Write the network of a run or checkpoint in the layout of its original."""
    parser = _flags.Parser(
        prog="jaxunlearn export",
        usage="jaxunlearn export (--run DIR | --weights DIR) [--like FILE] --out FILE [options]",
        description="Write a network so that its original in PyTorch, Transformers, Keras or Flax loads it: the same "
        "names, axes, dtypes and extra tensors, and bit for bit what has not changed.",
        epilog=EPILOG,
    )
    group = parser.add_argument_group("network")
    group.add_argument("--run", metavar="DIR", help="a run folder: its unlearned network")
    group.add_argument("--weights", metavar="DIR", help="or the folder of a checkpoint or of a training")
    group.add_argument(
        "--arch",
        "--model",
        metavar="NAME",
        help="package.module:NAME where a function of your own makes the network: a checkpoint alone has none called",
    )
    group.add_argument(
        "--like",
        metavar="FILE",
        help="the file of weights, or folder of Transformers, whose layout to take; default: where the run's network "
        "came from",
    )
    group = parser.add_argument_group("result")
    group.add_argument(
        "--out",
        metavar="FILE",
        help=f"file to make ({' '.join(convert.SUFFIXES)}), or folder where the original is one of Transformers",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an older file or folder of Transformers")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    _flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    with _errors.user_input():
        if (args.run is None) == (args.weights is None):
            raise ValueError("give --run or --weights: the folder of a run, or of a checkpoint")
        if args.out is None:
            raise ValueError("--out is missing: the file to make")
    with _device.chosen(args), _progress.shown(quiet=args.quiet), _errors.user_input():
        folder = Path(args.weights if args.run is None else args.run).expanduser()
        run = report.read_run(folder) if args.run is not None or report.is_run(folder) else None
        model = _load(args, folder, run)
        like, why = (args.like, "") if args.like is not None else _original(run, model)
        with _errors.writing(args.out):
            done = convert.export(model, Path(args.out).expanduser(), like=like, overwrite=args.overwrite)
    if args.json:
        _output.machine(done._asdict() | {"path": str(done.path), "like": None if like is None else str(like)})
    else:
        _tell(done, model, like, why)
    return _errors.OK


def _load(args: argparse.Namespace, folder: Path, run: report.Run | None) -> Model:
    if run is not None:
        return _model.from_checkpoint(args, run.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not the folder of a checkpoint, a training or a run")
    return _model.from_checkpoint(args, previous.checkpoint_in(folder))


def _original(run: report.Run | None, model: Model) -> tuple[Path | None, str]:
    """Return the file that a run's network came from, or None and why there is none."""
    seen: set[Path] = set()
    while run is not None and run.path not in seen:  # an edited one may say that it came from itself
        seen.add(run.path)
        origin: dict[str, Any] = run.results.get("origin") or {}
        if not origin:
            break
        path = Path(origin["weights"])
        if report.is_run(path):  # a network that an earlier run had made: where did that one come from?
            run = report.read_run(path)
            continue
        if path.is_dir() and not convert.huggingface.is_folder(path):
            return None, f"the network came from a checkpoint of ours, {path}"
        found = previous.original(origin, model)
        if found is not None:
            return path, ""
        return None, f"{path}, where the network came from, is not there any more or is another one by now"
    return None, "the checkpoint does not say where its network came from"


def _tell(done: Exported, model: Model, like: Path | str | None, why: str) -> None:
    """Print what was written and what is not as it was."""
    size = sum(file.stat().st_size for file in done.path.rglob("*")) if done.path.is_dir() else done.path.stat().st_size
    pairs = [
        ("network", _model.describe(model)),
        ("written", f"{done.path}, {size:,} bytes, {done.tensors} tensors in {done.layout}'s names"),
    ]
    if like is None:
        pairs.append(("original", f"{why}: names are the usual ones, all values written (--like FILE takes another's)"))
        if done.added:
            pairs.append(("counters", f"{len(done.added)} tensors num_batches_tracked are 0"))
    else:
        same = done.tensors - len(done.changed)
        pairs += [("original", str(like)), ("unchanged", f"{same} tensors, bit for bit as in the original")]
        pairs.append(("changed", f"{len(done.changed)} tensors" + _names(done.changed)))
        if done.narrowed:
            kept = f"{len(done.narrowed)} of them lost digits in the original's dtype{_names(done.narrowed)}"
            pairs.append(("rounded", kept))
    pairs.append(("read back", f"logits of random inputs differ by at most {done.difference:.2g}"))
    _output.facts(pairs)


def _names(names: Sequence[str]) -> str:
    more = f", ... ({len(names) - 3} more)" if len(names) > 3 else ""
    return f": {', '.join(names[:3])}{more}" if names else ""
