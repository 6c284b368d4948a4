"""``jaxunlearn train``: train a classifier, and keep what some methods need beside it."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import (
    _tree,
    artefacts,
    checkpoint,
    curvature,
    data as data_sources,
    inference,
    models,
    proxies,
    report,
    training,
)
from jaxunlearn._types import Artefact, Model
from jaxunlearn.audits.accuracy import accuracy
from jaxunlearn.cli import _data, _device, _errors, _flags, _log, _model, _output, _process, _progress, _resume, _run
from jaxunlearn.data import Source
from jaxunlearn.job import opening
from jaxunlearn.report.folder import CHECKPOINT, TRAINING, put_in_place
from jaxunlearn.report.record import versions

#: Flags that change nothing of what is trained.
ASIDE = ("out", "overwrite", "quiet", "resume", "compile_cache", "json", "log_dir")
EPILOG = """\
exit status: 0 done; 2 wrong input or training that diverged; 130 interrupted, the same command with --resume goes on

example:
  jaxunlearn train --arch digits_cnn --data digits --codes 0.2 --out runs/digits
  jaxunlearn unlearn --weights runs/digits --data digits --forget class:3 --method mnemonic \\
      --artefact runs/digits/codes.safetensors --lambda1 0.001 --lambda2 10 --out runs/without-3
"""


def main(argv: Sequence[str]) -> int:
    """Train a network from fresh or given weights; write a folder with its checkpoint and what stands beside it."""
    args = _parser().parse_args(argv)
    command = shlex.join(("jaxunlearn", "train", *argv))
    if args.resume and args.out is not None and (facts := _finished(Path(args.out), command)) is not None:
        if args.json:
            _output.machine(_outcome(Path(args.out), facts))
        else:
            _output.line(f"{args.out}: this training is finished; nothing is left to do.")
        return _errors.OK
    _check(args)
    try:
        with _resume.only_run(args.out), _device.chosen(args) as device:
            return _train(args, command, device)
    except KeyboardInterrupt:
        if not _resume.kept(args.out):
            raise
        _errors.say("interrupted; the same command with --resume goes on from here")
        return _process.interrupted()


def _finished(out: Path, command: str) -> dict[str, Any] | None:
    """Return the facts of the training in that folder, if the same command made it; None where there is none."""
    try:
        facts = json.loads((out / TRAINING).read_text(encoding="utf-8"))
        same = _resume.same_command(facts["command"], command)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(facts) if same and not _resume.folder_of(out).exists() else None


def _parser() -> argparse.ArgumentParser:
    parser = _flags.Parser(
        prog="jaxunlearn train",
        usage="jaxunlearn train --arch NAME --data SOURCE --out DIR [options]",
        description="Train a classifier with SGD on the training split of a data set, from fresh weights or, with "
        "--weights, from given ones; keep it, and what some unlearning methods need from training time. The split is "
        "held in memory as float32, once more on the device: 614 MB each for 50,000 images of 32x32x3.",
        epilog=EPILOG,
    )
    _flags.add_model_flags(parser)
    _flags.add_data_flags(parser)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=_flags.whole(1), default=20, metavar="N", help="passes over the data; default: 20"
    )
    group.add_argument("--batch-size", type=_flags.whole(1), default=128, metavar="N", help="default: 128")
    group.add_argument(
        "--learning-rate", type=_flags.number(0), default=0.05, metavar="X", help="of the start; default: 0.05"
    )
    group.add_argument("--schedule", choices=("cosine", "constant"), default="cosine", help="default: cosine, to 0")
    group.add_argument("--momentum", type=_flags.number(0, 1), default=0.9, metavar="X", help="default: 0.9")
    group.add_argument(
        "--weight-decay", type=_flags.number(0), default=5e-4, metavar="X", help="of all parameters; default: 0.0005"
    )
    group.add_argument(
        "--augment", action="store_true", help="shift images by up to an eighth and mirror half of them; not for digits"
    )
    group.add_argument("--seed", type=_flags.seed, default=0, metavar="N", help="of everything random; default: 0")
    group = parser.add_argument_group("for methods with training-time support")
    group.add_argument(
        "--codes",
        type=_flags.number(0, 1),
        metavar="P",
        help="for mnemonic: show a random image that stands for the class in the place of this share of images "
        "(paper: 0.1 to 0.3), keep codes.safetensors",
    )
    group.add_argument(
        "--moments",
        action="store_true",
        help="for pgu: sum the second moments of every layer's inputs after training, keep moments.safetensors",
    )
    group = parser.add_argument_group("result")
    group.add_argument(
        "--out", type=_flags.path, metavar="DIR", help="folder to make: checkpoint, training.json, *.safetensors"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an earlier training in that folder")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with this command where it was killed or interrupted; without anything kept, begin",
    )
    group.add_argument(
        "--log-dir",
        type=_flags.path,
        metavar="DIR",
        help=f"keep loss and accuracy of each epoch there while the training goes on: {_log.EPOCHS}, and "
        "TensorBoard's files if tensorboardX is installed",
    )
    _flags.add_json_flag(group)
    _flags.add_run_flags(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise a `UserError` for what is missing or out of range, before any work."""
    with _errors.user_input():
        for name, what in (("data", data_sources.KINDS), ("out", "the folder to keep the result in")):
            if getattr(args, name) is None:
                raise ValueError(f"--{name} is missing: {what}")
        if args.arch is None and args.weights is None:
            raise ValueError(f"--arch is missing: the network to train, such as {models.names()[0]}")
    _run.check_apart(args)
    _run.check_out(args.out, overwrite=args.overwrite, marker=TRAINING)
    if args.log_dir is not None:
        begun = args.resume and _resume.folder_of(args.out).exists()
        _log.check(args.log_dir, args.out, replace=args.overwrite or begun, file=_log.EPOCHS)


def _train(args: argparse.Namespace, command: str, device: str) -> int:
    seconds: dict[str, float] = {}
    with _errors.user_input(), _progress.shown(quiet=args.quiet):
        source, model = _start(args)
        rows = _data.rows_of(source, "train")
    codes = None if args.codes is None else proxies.draw_codes(_key(args, 2), model)
    if not (args.quiet or args.json):
        _output.facts(_plan(args, model, source, device))
    settings = {name: value for name, value in vars(args).items() if name not in ASIDE}
    asked = {
        "settings": settings,
        "network": _tree.model_digest(model),
        "data": [source.name, len(rows), _tree.digest({"y": source.labels[rows]})],
        "versions": versions(),
    }
    with _resume.journal(args.out, json.loads(json.dumps(asked)), go_on=args.resume) as told:
        if told and not (args.quiet or args.json):
            _output.facts([("resumed", told)])
        with _progress.shown(quiet=args.quiet):
            began = time.perf_counter()
            with _log.epochs(args.log_dir, resume=args.resume) as curves:
                done = _fit(args, model, source.images(rows), source.labels[rows], codes, curves)
            seconds["train"] = time.perf_counter() - began
            made = _beside(args, done.model, codes, source, seconds)
            measured = _measure(done.model, source, made)
    epochs = {name: done.history[name].reshape(args.epochs, -1).mean(axis=1) for name in ("loss", "accuracy")}
    facts = {
        "tool": "jaxunlearn",
        "command": command,
        "arch": done.model.spec.recipe.arch if done.model.spec.recipe else "",
        "data": source.name,
        "reading": opening.facts_of(source),
        "settings": settings,
        "accuracy": measured,
        "history": {name: [round(float(value), 6) for value in values] for name, values in epochs.items()},
        "seconds": seconds,
        "digest": _tree.model_digest(done.model),
        "versions": versions(),
    }
    path = _write(args, done.model, made, facts)
    if args.json:
        _output.machine(_outcome(path, facts))
    else:
        _tell(args, path, measured, epochs, seconds, made)
    return _errors.OK


def _start(args: argparse.Namespace) -> tuple[Source, Model]:
    """Return the data, and the network to train: with given weights, else with fresh ones of the data's size."""
    if args.weights is not None:
        return _data.open_with_model(args)
    source = _data.open_source(args, args.data)
    mean, std = _normalisation(args, source.input_shape[-1])
    recipe = models.recipe(
        args.arch, num_classes=source.num_classes, input_shape=source.input_shape, mean=mean, std=std
    )
    model = _model.builder(args)(recipe, key=_key(args, 0))
    _model.check_fit(model, source)
    return source, model


def _normalisation(args: argparse.Namespace, channels: int) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Return mean and deviation of the flags; else, where a network is usually of other channels, its mean ones."""
    if args.mean is not None or args.std is not None or ":" in args.arch:
        return args.mean, args.std
    usual = models.known(args.arch)
    if channels == len(usual.mean):
        return None, None
    mean, std = ((round(float(np.mean(values)), 4),) * channels for values in (usual.mean, usual.std))
    return mean, std


def _key(args: argparse.Namespace, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(args.seed), purpose)


def _plan(args: argparse.Namespace, model: Model, source: Source, device: str) -> list[tuple[str, str]]:
    rate = f"learning rate {args.learning_rate:g} ({args.schedule}), momentum {args.momentum:g}"
    how = f"{args.epochs} epoch{'s' * (args.epochs > 1)}, batches of {args.batch_size}, {rate}"
    how += f", weight decay {args.weight_decay:g}"
    how += ", augmented" if args.augment else ""
    how += "" if args.codes is None else f", codes in the place of {100 * args.codes:g} % of images"
    return [
        ("network", _model.describe(model)),
        ("from", "fresh weights" if args.weights is None else str(args.weights)),
        *_data.about(source),
        ("training", f"{how}, seed {args.seed}"),
        ("device", device),
    ]


def _fit(
    args: argparse.Namespace, model: Model, x: Any, y: Any, codes: Any, curves: training.Callback
) -> training.TrainResult:
    settings = {name: getattr(args, name) for name in ("epochs", "batch_size", "learning_rate", "momentum")}
    try:
        with _errors.user_input():
            return training.train(
                model,
                _key(args, 1),
                x,
                y,
                **settings,
                weight_decay=args.weight_decay,
                schedule=args.schedule,
                augment=proxies.shift_and_mirror if args.augment else None,
                codes=codes,
                mix=args.codes,
                callback=curves,
            )
    except FloatingPointError as error:
        raise _errors.UserError(str(error).replace("learning_rate", "--learning-rate")) from error


def _beside(
    args: argparse.Namespace, model: Model, codes: Any, source: Source, seconds: dict[str, float]
) -> list[Artefact]:
    """Return what methods need beside the trained network."""
    made, rows = [], source.splits["train"]
    if codes is not None:
        made.append(proxies.codes_artefact(model, codes, source.labels[rows], mix=args.codes))
    if args.moments:
        began = time.perf_counter()
        with _errors.user_input():
            made.append(curvature.moments_artefact(model, source.view(rows)))
        seconds["moments"] = time.perf_counter() - began
    return made


def _measure(model: Model, source: Source, made: Sequence[Artefact]) -> dict[str, float]:
    """Return the accuracy on the test split, where there is one, and on the codes that training showed."""
    measured, rows = {}, source.splits.get("test", np.empty(0, int))
    if len(rows):
        given = inference.predictions(model, source.view(rows), label="measuring test")
        measured["test"] = accuracy(given, source.labels[rows])
    for codes in (artefact.arrays for artefact in made if artefact.kind == "codes"):
        measured["codes"] = accuracy(inference.logits(model, codes["codes"]), codes["classes"])
    return measured


def _write(args: argparse.Namespace, model: Model, made: Sequence[Artefact], facts: dict[str, Any]) -> Path:
    def fill(folder: Path) -> None:
        checkpoint.save(folder / CHECKPOINT, model)
        for artefact in made:
            artefacts.save(folder / f"{artefact.kind}.safetensors", artefact)
        (folder / TRAINING).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    with _errors.user_input():
        path = report.check_out(args.out, overwrite=args.overwrite, marker=TRAINING)
        with _errors.writing(args.out):
            put_in_place(path, fill)
    return path


def _outcome(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what is told to machines of a training."""
    return {
        "path": str(path),
        "exit_status": _errors.OK,
        **{name: facts[name] for name in ("accuracy", "history", "seconds", "digest")},
        "artefacts": sorted(str(file) for file in path.glob("*.safetensors")),
    }


def _tell(
    args: argparse.Namespace,
    path: Path,
    measured: dict[str, float],
    epochs: dict[str, np.ndarray],
    seconds: dict[str, float],
    made: Sequence[Artefact],
) -> None:
    print()
    last = f"{100 * epochs['accuracy'][-1]:.2f} % right in the last epoch, {seconds['train']:.1f} s"
    shares = [(name, f"{100 * share:.2f} % right") for name, share in measured.items()]
    _output.facts([("trained", last), *shares])
    beside = "".join(f", {artefact.kind}.safetensors" for artefact in made)
    _output.line(f"{path}: checkpoint, {TRAINING}{beside}; use it as --weights {args.out}")
