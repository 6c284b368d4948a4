"""``jaxunlearn moments``: make for a trained network what the method pgu needs."""

from __future__ import annotations

import argparse
import errno
import time
from collections.abc import Sequence
from pathlib import Path

from jaxunlearn import artefacts, curvature, models
from jaxunlearn.cli import _data, _device, _errors, _flags, _model, _output, _progress, _run


def main(argv: Sequence[str]) -> int:
    """Sum the second moments of every layer's inputs over the training split; write them to one file."""
    parser = _flags.Parser(
        prog="jaxunlearn moments",
        usage="jaxunlearn moments --arch NAME --weights FILE --data SOURCE --out FILE [options]",
        description="Sum the second moments of what every linear layer and convolution of a network reads, over the "
        "training split, in double precision; keep them for `jaxunlearn unlearn --method pgu --artefact FILE`, which "
        "then needs the forget set only.",
    )
    _flags.add_model_flags(parser, models.names())
    _flags.add_data_flags(parser)
    parser.add_argument(
        "--layers", metavar="GLOBS", default="", help="kernels to sum for, such as layer3*,linear*; default: all"
    )
    parser.add_argument("--out", metavar="FILE", help="file to make, such as moments.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    _flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    out = _out(args)
    with _device.chosen(args), _progress.shown(quiet=args.quiet), _errors.user_input():
        source, model = _data.open_with_model(args, tell=True)
        began = time.perf_counter()
        patterns = [pattern.strip() for pattern in args.layers.split(",") if pattern.strip()]
        artefact = curvature.moments_artefact(model, source.view(source.splits["train"]), layers=patterns)
        seconds = time.perf_counter() - began
        with _errors.writing(out):
            artefacts.save(out, artefact)
    layers = curvature.layers_of(artefact)
    widest = max(len(curvature.moment(artefact, path)) for path in layers)
    found = f"{len(layers)} layer{'s' * (len(layers) > 1)} of up to {widest:,} inputs"
    _output.facts(
        [
            ("network", _model.describe(model)),
            ("moments", f"{found}, {len(artefact.arrays['instances']):,} images"),
            ("kept in", f"{out}, {out.stat().st_size / 1e6:.1f} MB, {seconds:.1f} s"),
        ]
    )
    return _errors.OK


def _out(args: argparse.Namespace) -> Path:
    """Return the file to make; raise a `UserError` where it cannot be made."""
    with _errors.user_input():
        if args.out is None:
            raise ValueError("--out is missing: the file to keep the moments in, such as moments.safetensors")
        out = Path(args.out).expanduser()
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder: name a file", str(out))
        if out.exists() and not args.overwrite:
            raise FileExistsError(errno.EEXIST, "exists: name another file, or ask to --overwrite it", str(out))
        _run.try_to_write(out.parent)
    _run.check_apart(args)
    return out
