"""``jaxunlearn unlearn``: make a classifier forget chosen training images."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import loop, methods, report
from jaxunlearn._types import MethodSpec, Problem
from jaxunlearn.cli import (
    _data,
    _device,
    _errors,
    _estimate,
    _flags,
    _log,
    _output,
    _process,
    _progress,
    _proxies,
    _request,
    _resume,
    _run,
)
from jaxunlearn.job import resume
from jaxunlearn.job.previous import first_network
from jaxunlearn.job.request import MOST_PUBLIC
from jaxunlearn.report.tables import REASONS

#: Points of accuracy whose loss is worth a line of its own.
MUCH = 5.0
DESCRIPTION = "Make a pre-trained classifier forget chosen training images; measure before and after; keep the result."
EPILOG = """\
exit status: 0 the goal is met for every instance; 3 it is not (the result is kept); 2 wrong input; 130 interrupted

examples:
  jaxunlearn unlearn --arch resnet50 --weights mine.pth --data folder:photos --forget @list.txt --out runs/list
  jaxunlearn unlearn --arch resnet50 --weights mine.pth --data csv:people.csv --forget person=4711 --out runs/4711
"""


def main(argv: Sequence[str]) -> int:
    """Parse the flags, the method's included, and run the request."""
    first = _flags.Parser(add_help=False)
    first.add_argument("--method", default=methods.DEFAULT)
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
    if args.public and args.inversion:
        raise _errors.UserError("give --public or --inversion, not both: images of yours take the place of made ones")
    if args.json and args.dry_run:
        raise _errors.UserError("--json gives the result of a run, and --dry-run has none: leave one of them out")
    _run.check_apart(args)
    command = shlex.join(("jaxunlearn", "unlearn", *argv))

    if args.dry_run:
        if args.out is not None:
            _run.check_out(args.out, overwrite=args.overwrite)
        with _device.chosen(args) as device:
            return _unlearn(args, spec, config, command, device)
    if args.resume and (done := _resume.finished(args.out, command)) is not None:
        status = _status(done.results)
        if args.json:
            _output.outcome(done.path, done.results, status)
        else:
            _output.line(f"{done.path}: this run is finished; nothing is left to do.")
        return status
    args.overwrite = args.overwrite or (args.resume and _resume.replaces(args.out))
    _run.check_out(args.out, overwrite=args.overwrite)
    if args.log_dir is not None:
        begun = args.resume and _resume.folder_of(args.out).exists()
        _log.check(args.log_dir, args.out, replace=args.overwrite or begun)
    try:
        with _resume.only_run(args.out), _device.chosen(args) as device:
            return _unlearn(args, spec, config, command, device)
    except KeyboardInterrupt:
        if not _resume.kept(args.out):
            raise
        _errors.say("interrupted; the same command with --resume goes on from here")
        return _process.interrupted()


def _parser(spec: MethodSpec) -> argparse.ArgumentParser:
    parser = _flags.Parser(
        prog="jaxunlearn unlearn",
        usage="jaxunlearn unlearn --arch NAME --weights FILE --data SOURCE --forget SPEC --out DIR [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    _flags.add_model_flags(parser)
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
    group.add_argument(
        "--method",
        default=methods.DEFAULT,
        metavar="NAME",
        help=f"see `jaxunlearn methods`; default: {methods.DEFAULT}",
    )
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
        help=f"unlabelled images of yours, as for --data; at most {MOST_PUBLIC:,} of them are used, drawn by --seed",
    )
    group.add_argument(
        "--inversion",
        type=_flags.whole(0),
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
    group.add_argument(
        "--out", type=_flags.path, metavar="DIR", help="folder to make: report.html, results.json, pictures, checkpoint"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")
    group.add_argument(
        "--eval-limit",
        type=_flags.whole(1),
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
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with this command where it was killed or interrupted; without anything kept, begin",
    )
    group.add_argument(
        "--log-dir",
        type=_flags.path,
        metavar="DIR",
        help="keep the curves of the steps there while the run goes on: steps.csv, and TensorBoard's files if "
        "tensorboardX is installed",
    )
    _flags.add_json_flag(group)
    group.add_argument("--dry-run", action="store_true", help="say what would be done, estimate memory and time, stop")
    _flags.add_run_flags(parser)
    _flags.add_method_flags(parser, spec)
    return parser


def _unlearn(args: argparse.Namespace, spec: MethodSpec, config: Any, command: str, device: str) -> int:
    seconds: dict[str, float] = {}
    with _errors.user_input(), _run.timed(seconds, "load"), _progress.shown(quiet=args.quiet):
        request, previous, reading = _request.read(args, spec)
        problem = request.problem(spec)
        _request.check_layers(request, config)
        loop.check(spec, problem, config)
        if not args.dry_run:
            _data.look(request.source, request.sets())
    if args.dry_run:
        return _estimated(args, request, problem, spec, config, device)
    more = {"inversion": args.inversion, "device": device, "precision": args.precision}
    asked = resume.asked(request, problem, spec, config, **more)
    with _resume.journal(args.out, asked, go_on=args.resume) as told:
        if not (args.quiet or args.json):
            resumed = [] if told is None else [("resumed", told)]
            _output.facts([*_request.plan(request, spec, config, args, device), *resumed])
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
            "first_network": first_network(request, spec),
        }
        with _progress.shown(quiet=args.quiet):
            if args.inversion:
                with _run.timed(seconds, "inversion"):
                    made = _proxies.inversion(request.first, args.inversion)
                    request = dataclasses.replace(request, inversion=made)
                problem = request.problem(spec)
            before = _run.Measured(request.model, request, when="before")
            about: dict[str, Any] = dict(command=command, seconds=seconds, extras=extras)
            with _log.opened(args.log_dir, resume=args.resume) as curves:
                about |= dict(deep=args.measure_depth, images=args.images, callback=curves)
                record = _run.run(request, problem, spec, config, before, **about)
    if record.result.stop_reason == "interrupted":
        _resume.leave(args.out)
        if record.result.steps == 0:
            raise KeyboardInterrupt
    path, status = _run.write(args.out, record, overwrite=args.overwrite), _status(record.results)
    if args.json:
        _output.outcome(path, record.results, status)
    else:
        _show(record, path)
    _say(record, path)
    return status


def _estimated(
    args: argparse.Namespace, request: _run.Request, problem: Problem, spec: MethodSpec, config: Any, device: str
) -> int:
    _output.facts(_request.plan(request, spec, config, args, device))
    with _progress.shown(quiet=args.quiet):
        pairs = _estimate.estimate(request, problem, spec, config, inversion=args.inversion or 0)
    print()
    _output.facts(pairs)
    return _errors.OK


def _status(results: Mapping[str, Any]) -> int:
    """Return the exit status that says how a run ended."""
    if results["stop_reason"] == "interrupted":
        return _process.interrupted()
    kept = all(item["forgotten"] for item in results.get("earlier", ()))
    return _errors.OK if results["goal_met"] and kept else _errors.NOT_FORGOTTEN


def _show(record: report.RunRecord, path: Path) -> None:
    """Print the result."""
    print()
    _output.summary([record])
    _output.depth(record)
    print()
    for line in (_strange(record), _lost(record)):
        if line is not None:
            print(line)
    if record.earlier:
        kept = sum(item["forgotten"] for item in record.earlier)
        print(f"Of {len(record.earlier)} instances forgotten in earlier runs, {kept} are still forgotten.")
    _output.line(f"{path}: open report.html; results.json, pictures and the checkpoint lie beside it.")


def _say(record: report.RunRecord, path: Path) -> None:
    """Say on standard error what was not reached."""
    k, done = len(record.ids), int(record.forgotten.sum())
    back = [str(item["id"]) for item in record.earlier if not item["forgotten"]]
    if record.result.stop_reason == "interrupted":
        _errors.say(
            f"interrupted after {record.result.steps} steps, {done} of {k} instances forgotten; "
            f"the result so far is kept in {path}" + "; --resume goes on from here" * _resume.kept(path)
        )
    elif done < k:
        left = [name for name, met in zip(record.ids, record.forgotten, strict=True) if not met]
        _errors.say(
            f"{len(left)} of {k} instances are not forgotten ({_names(left)}): "
            f"{REASONS[record.result.stop_reason]} after {record.result.steps} steps; the result is kept in {path}"
        )
    elif back:
        _errors.say(
            f"{len(back)} of {len(record.earlier)} instances of earlier runs are remembered again "
            f"({_names(back)}); the result is kept in {path}"
        )


def _strange(record: report.RunRecord) -> str | None:
    """Return a line where the network knew so few of the images before that it may not be read as it was meant."""
    k, knew = len(record.ids), sum(item["before"] == item["label"] for item in record.results["instances"])
    if 2 * knew >= k:
        return None
    doubt = "are --mean, --std and the order of the classes right? `jaxunlearn evaluate` shows what the network knows"
    return f"Before, the network knew only {knew} of the {k}: {doubt}."


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
