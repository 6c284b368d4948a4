"""``jaxunlearn unlearn``: make a classifier forget chosen training images."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import (
    _tree,
    artefacts,
    convert,
    curvature,
    data as data_sources,
    loop,
    methods,
    models,
    report,
    wrappers,
)
from jaxunlearn._types import Artefact, MethodSpec, Model
from jaxunlearn.cli import _data, _device, _errors, _estimate, _flags, _model, _output, _progress, _proxies, _run
from jaxunlearn.report.tables import REASONS

#: What is used where none is named.
METHOD = "minimal-edit"
#: Points of accuracy whose loss is worth a line of its own.
MUCH = 5.0
DESCRIPTION = "Make a pre-trained classifier forget chosen training images; measure before and after; keep the result."
EPILOG = """\
exit status: 0 the goal is met for every instance; 3 it is not (the result is kept); 2 wrong input; 130 interrupted

example:
  jaxunlearn unlearn --arch cifar_resnet20 --weights cifar10_resnet20.th --data tfds:cifar10 --data-dir DIR \\
      --forget 36044,49165 --out runs/two
"""


def main(argv: Sequence[str]) -> int:
    """Parse the flags, the method's included, and run the request."""
    first = _flags.Parser(add_help=False)
    first.add_argument("--method", default=METHOD)
    name = first.parse_known_args(argv)[0].method

    with _errors.user_input():
        spec = methods.get(name)
    parser = _parser(spec)
    args, left = parser.parse_known_args(argv)
    _flags.refuse_unknown(left, spec, parser)
    config = _flags.config_of(spec, args)
    if args.out is None and not args.dry_run:
        raise _errors.UserError("--out is missing: the folder to keep the result in")
    if args.goal not in spec.goals:
        raise _errors.UserError(
            f"method {spec.name!r} cannot pursue goal {args.goal!r}; it can: {', '.join(spec.goals)}"
        )
    if args.target is not None and args.goal != "relabel":
        raise _errors.UserError("--target is for --goal relabel")
    uses = {"--public": "public", "--inversion": "proxies", "--anchors": "anchors"}
    for name, kind in uses.items():
        given = getattr(args, name[2:])
        if given and kind not in (*spec.needs, *spec.uses):
            raise _errors.UserError(f"method {spec.name!r} has no use for {name}; leave it out")
    if args.inversion is not None and args.inversion < 0:
        raise _errors.UserError(f"--inversion must be at least 0; got {args.inversion}")
    if args.public and args.inversion:
        raise _errors.UserError("give --public or --inversion, not both: images of yours take the place of made ones")
    if args.eval_limit is not None and args.eval_limit < 1:
        raise _errors.UserError(f"--eval-limit must be at least 1; got {args.eval_limit}")
    command = shlex.join(("jaxunlearn", "unlearn", *argv))

    if args.out is not None:
        _run.check_out(args.out, overwrite=args.overwrite)
    with _device.chosen(args) as device:
        return _unlearn(args, spec, config, command, device)


def _parser(spec: MethodSpec) -> argparse.ArgumentParser:
    parser = _flags.Parser(
        prog="jaxunlearn unlearn",
        usage="jaxunlearn unlearn --arch NAME --weights FILE --data SOURCE --forget SPEC --out DIR [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    _flags.add_model_flags(parser, models.names())
    _flags.add_data_flags(parser, apart=True)
    group = parser.add_argument_group("request")
    group.add_argument(
        "--forget",
        metavar="SPEC",
        required=True,
        help="ids or file names (36044,49165), @FILE with one a line or a CSV with a column id or file, row:17,18, "
        "class:3, class:NAME, COLUMN=VALUE (person=4711), all, or random:16 (by --seed)",
    )
    group.add_argument("--goal", choices=("misclassify", "relabel"), default="misclassify", help="default: misclassify")
    group.add_argument(
        "--target",
        metavar="LABEL",
        help="relabel: one label for all, random (default, another than the true one) or @FILE with lines id,label",
    )
    group.add_argument(
        "--from",
        dest="previous",
        metavar="RUN",
        help="go on from the network of an earlier run; what it forgot is to stay forgotten, and is measured again",
    )
    group.add_argument("--seed", type=_flags.seed, default=0, metavar="N", help="of everything random; default: 0")
    group.add_argument("--method", default=METHOD, metavar="NAME", help=f"see `jaxunlearn methods`; default: {METHOD}")
    group.add_argument(
        "--preset",
        choices=("default", "published"),
        default="default",
        help="what the hyper-parameters start from: our defaults or the published code's settings",
    )
    group = parser.add_argument_group("what stands in for data, for methods that use it")
    group.add_argument(
        "--public",
        metavar="SOURCE",
        help=f"unlabelled images of yours, as for --data; at most {_proxies.MOST:,} of them are used",
    )
    group.add_argument(
        "--inversion",
        type=int,
        metavar="N",
        help="images made from the network's own statistics, once, then kept in the user's cache folder; default: 0",
    )
    group.add_argument(
        "--artefact",
        action="append",
        default=[],
        metavar="FILE",
        help="what training time left behind for a method that needs it; may be given several times",
    )
    group.add_argument(
        "--anchors",
        metavar="FILE",
        help="an embedding of each class for methods that use them, such as a text encoder's of the class names: "
        ".npz or .safetensors with one array, (classes, any length)",
    )
    group = parser.add_argument_group("result")
    group.add_argument("--out", metavar="DIR", help="folder to make: results.json, report.md, pictures, checkpoint")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")
    group.add_argument(
        "--eval-limit",
        type=int,
        metavar="N",
        help="measure the retain and the test set on N instances each, a fixed random choice; default: all",
    )
    group.add_argument(
        "--measure-depth",
        action="store_true",
        help="measure how deep it goes, too: mirrored, shifted and noisy versions of the images, small perturbations, "
        "relearning",
    )
    group.add_argument(
        "--no-images",
        dest="images",
        action="store_false",
        help="leave the images themselves, and what is made from them, out of reports",
    )
    group.add_argument("--dry-run", action="store_true", help="say what would be done, estimate memory and time, stop")
    _flags.add_run_flags(parser)
    _flags.add_method_flags(parser, spec)
    return parser


def _unlearn(args: argparse.Namespace, spec: MethodSpec, config: Any, command: str, device: str) -> int:
    seconds: dict[str, float] = {}
    with _errors.user_input(), _run.timed(seconds, "load"), _progress.shown(quiet=args.quiet):
        request, previous, reading = _request(args, spec)
        problem = request.problem(spec)
        loop.check(spec, problem, config)
        _check_layers(request, config)
        if not args.dry_run:
            _data.look(request.source, request.sets())
    if args.dry_run or not args.quiet:
        _output.facts(_plan(request, spec, config, args, device))
    if args.dry_run:
        with _progress.shown(quiet=args.quiet):
            pairs = _estimate.estimate(request, problem, spec, config, inversion=args.inversion or 0)
        print()
        _output.facts(pairs)
        return _errors.OK

    extras = {
        "forget": args.forget,
        "target": args.target,
        "preset": args.preset,
        "device": device,
        "precision": args.precision,
        "from": previous,
        "eval_limit": args.eval_limit,
        "reading": reading,
        "public": args.public,
        "first_network": _first(request, spec),
    }
    with _progress.shown(quiet=args.quiet):
        if args.inversion:
            with _run.timed(seconds, "inversion"):
                made = _proxies.inversion(request.first, args.inversion)
                request = dataclasses.replace(request, inversion=made)
            problem = request.problem(spec)
        before = _run.Measured(request.model, request, when="before")
        about: dict[str, Any] = dict(command=command, seconds=seconds, extras=extras)
        record = _run.run(request, problem, spec, config, before, deep=args.measure_depth, images=args.images, **about)
    if record.result.stop_reason == "interrupted" and record.result.steps == 0:
        raise KeyboardInterrupt
    return _tell(record, _run.write(args.out, record, overwrite=args.overwrite))


def _first(request: _run.Request, spec: MethodSpec) -> str | None:
    """Return what became of the network before the first of several requests, if a method asks for it."""
    if not request.earlier or "original" not in spec.uses:
        return None
    return "gone" if request.original is None else "used"


def _check_layers(request: _run.Request, config: Any) -> None:
    """Raise unless the tensors that a method is told to edit are there."""
    patterns = [pattern.strip() for pattern in getattr(config, "layers", "").split(",") if pattern.strip()]
    if patterns:
        try:
            curvature.select_paths(request.model.params, patterns)
        except ValueError as error:
            raise ValueError(f"--layers: {error}") from None


def _request(args: argparse.Namespace, spec: MethodSpec) -> tuple[_run.Request, str | None, dict[str, Any]]:
    """Return what is asked, the folder of the run it goes on from, and how the data are opened again."""
    previous = None if args.previous is None else report.read_run(args.previous)
    source, model = _data.open_with_model(args, previous)
    rows = data_sources.parse_forget(args.forget, source, seed=args.seed)
    target = None
    if args.goal == "relabel":
        classes = model.spec.num_classes
        target = data_sources.parse_targets(args.target or "random", source, rows, seed=args.seed, num_classes=classes)
    origin = _model.origin(args, model, previous)
    request = _run.Request(
        model=model,
        source=source,
        rows=rows,
        target=target,
        goal=args.goal,
        seed=args.seed,
        earlier=[] if previous is None else _run.earlier_of(previous, source, rows),
        original=None if previous is None else _model.original(origin, model),
        origin=origin,
        public=_data.public(args, model, _proxies.MOST, args.seed),
        artefacts=_artefacts(args.artefact, spec, model, previous) | _anchors(args.anchors, model),
        limits={} if args.eval_limit is None else dict.fromkeys(("retain", "test"), args.eval_limit),
    )
    reading = _data.record(args, source, previous)
    return request, None if previous is None else str(previous.path), reading


def _artefacts(
    files: Sequence[str], spec: MethodSpec, model: Model, previous: report.Run | None
) -> dict[str, Artefact]:
    """Return what the user offers by kind, and what an earlier run left behind for the network that it made."""
    found: dict[str, Artefact] = {}
    known = {_tree.model_digest(layer) for layer in wrappers.layers(model)}  # a certificate is of the network inside
    for path in () if previous is None else previous.artefacts:
        artefact = artefacts.load(path)
        if artefact.model_digest in known:
            found[artefact.kind] = artefact
    for file in files:
        artefact = artefacts.load(file, model=model)
        if artefact.kind not in (*spec.needs, *spec.uses):
            what = f"{Path(file).name}, an artefact of kind {artefact.kind!r}"
            raise ValueError(f"method {spec.name!r} has no use for {what}; leave it out")
        found[artefact.kind] = artefact
    return found


def _anchors(file: str | None, model: Model) -> dict[str, Any]:
    """Return the user's embeddings of the classes, if there are any."""
    if file is None:
        return {}
    arrays = convert.read_state_dict(file)
    shapes = {name: array.shape for name, array in arrays.items()}
    (array,) = arrays.values() if len(arrays) == 1 else (None,)
    if array is None or array.ndim != 2 or len(array) != model.spec.num_classes:
        raise ValueError(f"--anchors {file} must hold one array of {model.spec.num_classes} rows; it has {shapes}")
    return {"anchors": array}


def _plan(
    request: _run.Request, spec: MethodSpec, config: Any, args: argparse.Namespace, device: str
) -> list[tuple[str, str]]:
    """Return what is about to happen, for the reader."""
    source, sets = request.source, request.sets()
    names = source.ids[request.rows].tolist()
    shown = ", ".join(names[:8]) + (f", ... ({len(names) - 8} more)" if len(names) > 8 else "")
    goal = {"misclassify": "misclassify: none may keep its label", "relabel": "relabel: each gets a chosen other label"}
    base = spec.Config()
    changed = [
        f"{f.name}={getattr(config, f.name)}"
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != (getattr(base, f.name) if not args.dry_run else "")
    ]
    measured = ", ".join(f"{len(rows):,} {name}" for name, rows in sets.items())
    limit = " (a fixed random choice)" if request.limits else ""
    limit += ", and how deep it goes" if args.measure_depth else ""
    pairs = [
        ("network", _model.describe(request.model)),
        *_data.about(source, sets),
        ("forget", f"{len(names)} instance{'s' * (len(names) > 1)}: {shown}"),
        ("goal", goal[request.goal]),
        ("method", f"{spec.name}, seed {request.seed}, " + (", ".join(changed) or "default hyper-parameters")),
        ("measured", measured + limit),
        ("device", device),
    ]
    if request.earlier:
        held = ", to stay forgotten" if "held" in spec.uses else ", not held by this method"
        if _first(request, spec) == "gone":
            held += "; the network before the first of them is not there any more: this one stands in for it"
        count = f"{len(request.earlier)} instances of earlier runs, measured again, not in retain"
        pairs.insert(3, ("earlier", count + held))
    if "proxies" in spec.uses:
        pairs.insert(-2, ("proxies", _stand_ins(request, config, args)))
    return pairs


def _stand_ins(request: _run.Request, config: Any, args: argparse.Namespace) -> str:
    """Return which images stand in for the data that are not seen, and what would be better."""
    cut, deep = "cut-and-paste images of the forget set", getattr(config, "depth", "none") != "none"
    given = "" if request.public is None else f"{len(request.public):,} public images"
    given = f"{args.inversion:,} images made from the network" if args.inversion else given
    if given:
        return given if deep else f"{cut}, and {given}"
    return cut + (
        "; --inversion 500 takes minutes, once for a network, and keeps a little more accuracy" if deep else ""
    )


def _tell(record: report.RunRecord, path: Path) -> int:
    """Print the result and return the exit status."""
    print()
    _output.summary([record])
    _output.depth(record)
    print()
    k, done = len(record.ids), int(record.forgotten.sum())
    lost = _lost(record)
    if lost is not None:
        print(lost)
    if record.earlier:
        kept = sum(item["forgotten"] for item in record.earlier)
        print(f"Of {len(record.earlier)} instances forgotten in earlier runs, {kept} are still forgotten.")
    back = [str(item["id"]) for item in record.earlier if not item["forgotten"]]
    print(f"{path}: open report.md; results.json, pictures and the checkpoint lie beside it.")
    if record.result.stop_reason == "interrupted":
        print(
            f"jaxunlearn: interrupted after {record.result.steps} steps, {done} of {k} instances forgotten; "
            f"the result so far is kept in {path}",
            file=sys.stderr,
        )
        return _errors.INTERRUPTED
    if done < k:
        left = [name for name, met in zip(record.ids, record.forgotten, strict=True) if not met]
        print(
            f"jaxunlearn: {len(left)} of {k} instances are not forgotten ({_names(left)}): "
            f"{REASONS[record.result.stop_reason]} after {record.result.steps} steps; the result is kept in {path}",
            file=sys.stderr,
        )
        return _errors.NOT_FORGOTTEN
    if back:
        print(
            f"jaxunlearn: {len(back)} of {len(record.earlier)} instances of earlier runs are remembered again "
            f"({_names(back)}); the result is kept in {path}",
            file=sys.stderr,
        )
        return _errors.NOT_FORGOTTEN
    return _errors.OK


def _lost(record: report.RunRecord) -> str | None:
    """Return a line on accuracy that went with what was forgotten, if it is much."""
    for name, words in (("test", "test images"), ("retain", "the other training images")):
        before, after = record.before.get(name), record.after.get(name)
        if before is not None and after is not None:
            points = 100 * (before - after)
            what = "fewer images at a time, less depth or another method (`jaxunlearn compare`) may cost less"
            return f"Accuracy on {words} fell by {points:.1f} points: {what}." if points > MUCH else None
    return None


def _names(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + ", ..." * (len(ids) > 5)
