"""``jaxunlearn evaluate``: a classifier's accuracy, overall and by class."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from jaxunlearn import inference, report
from jaxunlearn.audits.accuracy import accuracy, accuracy_by_class
from jaxunlearn.cli import _data, _device, _errors, _flags, _output, _progress
from jaxunlearn.data import Source
from jaxunlearn.report.tables import percent


def main(argv: Sequence[str]) -> int:
    """Measure a network from a file of weights, a checkpoint or a run folder."""
    parser = _flags.Parser(
        prog="jaxunlearn evaluate",
        usage="jaxunlearn evaluate (--arch NAME --weights FILE --data SOURCE | --run DIR) [options]",
        description="Measure a classifier's accuracy, overall and by class.",
    )
    _flags.add_model_flags(parser)
    parser.add_argument("--run", metavar="DIR", help="a run folder: its unlearned network, by default on its own data")
    _flags.add_data_flags(parser)
    parser.add_argument("--split", metavar="NAME", help="default: test where there is one, else train")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: accuracy and by_class as fractions, n, split"
    )
    _flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    with _device.chosen(args), _progress.shown(quiet=args.quiet):
        source, split, given, count = _measure(args)
    rows = source.splits[split]
    y = source.labels[rows]
    overall, by_class = accuracy(given, y), accuracy_by_class(given, y, count)
    names = [source.class_name(c) if c < source.num_classes else str(c) for c in range(len(by_class))]
    if args.json:
        shares = dict(zip(names, by_class, strict=True))
        _output.machine({"accuracy": overall, "n": len(rows), "by_class": shares, "split": split})
        return _errors.OK
    counts = np.bincount(y, minlength=len(by_class))
    lines = [(name, str(n), percent(share)) for name, n, share in zip(names, counts, by_class, strict=True) if n]
    _output.table([("class", "n", "accuracy %"), *lines, (f"all of {split}", str(len(rows)), percent(overall))])
    return _errors.OK


def _measure(args: argparse.Namespace) -> tuple[Source, str, np.ndarray, int]:
    """Return the data, the split measured, the labels its rows are given, and the number of classes."""
    with _errors.user_input():
        run = None if args.run is None else report.read_run(args.run)
        source, model = _data.open_with_model(args, run, tell=True)
        split = args.split or ("test" if "test" in source.splits else "train")
        rows = _data.rows_of(source, split)
    given = inference.predictions(model, source.view(rows), label=f"measuring {split}")
    return source, split, given, model.spec.num_classes
