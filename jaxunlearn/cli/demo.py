"""``jaxunlearn demo``: the whole job on data that ship with a dependency, in a minute or two."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxunlearn import __version__, checkpoint, data, methods, models, report, training
from jaxunlearn._types import Model
from jaxunlearn.cli import _cache, _device, _errors, _flags, _output, _progress, _resume, _run
from jaxunlearn.data import Source
from jaxunlearn.report.folder import WEB

#: Sixteen training digits, all ten classes among them.
IDS = "5,57,151,312,501,640,666,761,1030,1166,1173,1238,1259,1279,1457,1765"
METHODS = ("neggrad", "adv", "adv-imp", "minimal-edit")
#: Whose report to look at first.
BEST = "minimal-edit"
#: In pixels: an 8x8 image has a twelfth of the values of a CIFAR image, for which the default of 4 is meant.
EPSILON = 1.0
TRAINING: dict[str, Any] = dict(epochs=20, batch_size=64, learning_rate=0.05, momentum=0.9, weight_decay=5e-4)


def main(argv: Sequence[str]) -> int:
    """Train, forget four ways, print one table, write one run folder a method."""
    parser = _flags.Parser(
        prog="jaxunlearn demo",
        description="Train a small residual network on scikit-learn's handwritten digits, make it forget 16 training "
        f"digits with {', '.join(METHODS)}, and write one run folder for each. Needs no download; under two minutes "
        "on two cores. The trained network is kept in the user's cache folder.",
    )
    parser.add_argument("--out", type=_flags.path, metavar="DIR", required=True, help="folder for the run folders")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier runs of the demo there")
    _flags.add_json_flag(parser)
    _flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    if report.is_run(args.out):
        raise _errors.UserError(f"{args.out} is a run itself: choose another folder")
    for method in METHODS:
        _run.check_out(Path(args.out) / method, overwrite=args.overwrite)
    command = shlex.join(("jaxunlearn", "demo", *argv))
    first = Path(args.out) / METHODS[0]  # the lock lies beside what it is of: inside, where we may write
    with _resume.only_run(first), _device.chosen(args) as device:
        return _demo(args, command, device)


def _demo(args: argparse.Namespace, command: str, device: str) -> int:
    with _errors.user_input():
        source = data.open_source("digits")
    told = not (args.quiet or args.json)
    model = _network(source, quiet=args.quiet, told=told)
    rows = data.parse_forget(IDS, source, seed=0)
    request = _run.Request(model=model, source=source, rows=rows)
    named = f"{len(rows)} of {len(source.splits['train']):,} training digits: {IDS.replace(',', ', ')}"
    if told:
        _output.facts([("forget ", named)])
    records = []
    with _progress.shown(quiet=args.quiet):
        before = _run.Measured(model, request, when="before")
        for method in METHODS:
            records.append(_forget(request, method, before, command, device))
            if records[-1].result.stop_reason == "interrupted":
                raise KeyboardInterrupt
    return _tell(args, records)


def _network(source: Source, *, quiet: bool, told: bool) -> Model:
    """Return the trained network, from the cache where it is there and whole."""
    recipe = models.recipe("digits_cnn")
    settings = {**TRAINING, "recipe": recipe.to_json(), "version": __version__, "jax": jax.__version__}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = _cache.folder() / f"digits_cnn-{key}"
    try:
        model = checkpoint.load(folder, models.from_recipe)
        if told:
            _output.facts([("network", f"digits_cnn, trained earlier and kept in {folder}")])
        return model
    except (OSError, ValueError):  # not there yet, or damaged: train it
        pass
    began = time.perf_counter()
    train = source.splits["train"]
    with _progress.shown(quiet=quiet):
        fresh = models.from_recipe(recipe, key=jax.random.key(0))
        model = training.train(fresh, jax.random.key(1), source.images(train), source.labels[train], **TRAINING).model
    took = time.perf_counter() - began
    if told:
        _output.facts([("network", f"digits_cnn, trained on {len(train):,} digits in {took:.0f} s")])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder, model)
    except OSError as error:
        _errors.say(f"the network could not be kept in {folder}: {_errors.describe(error)}")
    return model


def _forget(request: _run.Request, method: str, before: _run.Measured, command: str, device: str) -> report.RunRecord:
    spec = methods.get(method)
    attacks = "epsilon" in {field.name for field in dataclasses.fields(spec.Config)}
    config = spec.Config(**({"epsilon": EPSILON} if attacks else {}))
    extras = {"device": device, "forget": IDS}
    return _run.run(request, request.problem(spec), spec, config, before, command=command, extras=extras)


def _tell(args: Any, records: Sequence[report.RunRecord]) -> int:
    out = Path(os.path.abspath(args.out))
    folders: list[Path] = []
    try:
        for record in records:
            folders.append(_run.write(out / record.method, record, overwrite=args.overwrite))
    except KeyboardInterrupt:
        if not folders:
            raise
        done = ", ".join(folder.name for folder in folders)
        raise KeyboardInterrupt(f"interrupted; of {len(records)} folders in {out} there are {done}") from None
    left = [record.method for record in records if not record.forgotten.all()]
    status = _errors.NOT_FORGOTTEN if left else _errors.OK
    if args.json:
        runs = {
            record.method: {"path": str(folder), **_output.found(record.results)}
            for record, folder in zip(records, folders, strict=True)
        }
        _output.machine({"path": str(out), "exit_status": status, "runs": runs})
    else:
        _show(records, folders)
    if left:
        _errors.say(f"not every digit is forgotten by {', '.join(left)}")
    return status


def _show(records: Sequence[report.RunRecord], folders: Sequence[Path]) -> None:
    """Print the table, what its columns mean, and what to open."""
    print()
    _output.summary(records)
    print()
    _output.facts(
        [
            ("D_f", "the digits to forget: should fall to 0"),
            ("D_r", "all other training digits: should stay"),
            ("D_test", "digits never trained on: should stay"),
        ]
    )
    print("Forgotten means that these very digits are misclassified: not that shifted or")
    print("mirrored copies are, nor that the network is like one that never saw them.")
    print()
    print("open:")
    for folder in sorted(folders, key=lambda folder: folder.name != BEST):
        _output.line(f"  {folder / WEB}")
