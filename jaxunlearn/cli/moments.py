"""``jaxunlearn moments``: make for a trained network what the method pgu needs."""

from __future__ import annotations

import argparse
import errno
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import _tree, artefacts, curvature
from jaxunlearn._types import Artefact, Model
from jaxunlearn.cli import _data, _device, _errors, _flags, _model, _output, _process, _progress, _resume, _run
from jaxunlearn.report.record import versions

#: Flags that change nothing of what is summed.
ASIDE = ("out", "overwrite", "quiet", "resume", "json", "compile_cache")
EPILOG = """\
exit status: 0 done; 2 wrong input; 130 interrupted, the same command with --resume goes on

example:
  jaxunlearn moments --arch cifar_resnet20 --weights cifar10_resnet20.th --data tfds:cifar10 --data-dir DIR \\
      --layers layer3*,linear* --out moments.safetensors
"""


def main(argv: Sequence[str]) -> int:
    """Sum the second moments of every layer's inputs over the training split; write them to one file."""
    args = _parser().parse_args(argv)
    out = _out(args)
    try:
        with _resume.only_run(out), _device.chosen(args):
            return _moments(args, out)
    except KeyboardInterrupt:
        if not _resume.kept(out):
            raise
        _errors.say("interrupted; the same command with --resume goes on from here")
        return _process.interrupted()


def _parser() -> argparse.ArgumentParser:
    parser = _flags.Parser(
        prog="jaxunlearn moments",
        usage="jaxunlearn moments --arch NAME --weights FILE --data SOURCE --out FILE [options]",
        description="Sum the second moments of what every linear layer and convolution of a network reads, over the "
        "training split, in double precision; keep them for `jaxunlearn unlearn --method pgu --artefact FILE`, which "
        "then needs the forget set only.",
        epilog=EPILOG,
    )
    _flags.add_model_flags(parser)
    _flags.add_data_flags(parser)
    parser.add_argument(
        "--layers", metavar="GLOBS", default="", help="kernels to sum for, such as layer3*,linear*; default: all"
    )
    parser.add_argument("--out", metavar="FILE", help="file to make, such as moments.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with this command where it was killed or interrupted; without anything kept, begin",
    )
    _flags.add_json_flag(parser)
    _flags.add_run_flags(parser)
    return parser


def _out(args: argparse.Namespace) -> Path:
    """Return the file to make; raise a `UserError` where it cannot be made."""
    with _errors.user_input():
        if args.out is None:
            raise ValueError("--out is missing: the file to keep the moments in, such as moments.safetensors")
        out = Path(args.out).expanduser()
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder: name a file", str(out))
        if not args.resume:  # else what is there may be what was asked for
            _refuse_to_replace(out, args)
        _run.try_to_write(out.parent)
    _run.check_apart(args)
    return out


def _refuse_to_replace(out: Path, args: argparse.Namespace) -> None:
    if out.exists() and not args.overwrite:
        raise FileExistsError(errno.EEXIST, "exists: name another file, or ask to --overwrite it", str(out))


def _moments(args: argparse.Namespace, out: Path) -> int:
    patterns = [pattern.strip() for pattern in args.layers.split(",") if pattern.strip()]
    with _progress.shown(quiet=args.quiet), _errors.user_input():
        source, model = _data.open_with_model(args, tell=True)
        rows = _data.rows_of(source, "train")
        found = _finished(out, model, source.view(rows), patterns) if args.resume else None
        if found is None:
            _refuse_to_replace(out, args)
    if found is not None:
        return _told(args, out, model, found, None)
    asked: dict[str, Any] = {
        "settings": {name: value for name, value in vars(args).items() if name not in ASIDE},
        "network": _tree.model_digest(model),
        "data": [source.name, len(rows), _tree.digest({"y": source.labels[rows]})],
        "versions": versions(),
    }
    with _resume.journal(out, json.loads(json.dumps(asked)), go_on=args.resume) as told:
        if told and not (args.quiet or args.json):
            _output.facts([("resumed", told)])
        with _progress.shown(quiet=args.quiet), _errors.user_input():
            began = time.perf_counter()
            artefact = curvature.moments_artefact(model, source.view(rows), layers=patterns)
            seconds = time.perf_counter() - began
            with _errors.writing(out):
                artefacts.save(out, artefact)
    return _told(args, out, model, artefact, seconds)


def _finished(out: Path, model: Model, images: Any, patterns: Sequence[str]) -> Artefact | None:
    """Return the moments that are there already, if they are what is asked for."""
    try:
        found = artefacts.load(out, kind="moments", model=model)
    except (OSError, ValueError):
        return None
    return found if curvature.are_of(found, model, images, layers=patterns) else None


def _told(args: argparse.Namespace, out: Path, model: Model, artefact: Artefact, seconds: float | None) -> int:
    """Tell of the moments; ``seconds`` is None where they were there already."""
    inputs = {path: len(curvature.moment(artefact, path)) for path in curvature.layers_of(artefact)}
    images, size = len(artefact.arrays["instances"]), out.stat().st_size
    if args.json:
        facts = {"layers": inputs, "images": images, "bytes": size, "seconds": seconds}
        _output.machine({"path": str(out), "exit_status": _errors.OK, **facts})
    elif seconds is None:
        _output.line(f"{out}: these moments are there already; nothing is left to do.")
    else:
        found = f"{len(inputs)} layer{'s' * (len(inputs) > 1)} of up to {max(inputs.values()):,} inputs"
        _output.facts(
            [
                ("network", _model.describe(model)),
                ("moments", f"{found}, {images:,} images"),
                ("kept in", f"{out}, {size / 1e6:.1f} MB, {seconds:.1f} s"),
            ]
        )
    return _errors.OK
