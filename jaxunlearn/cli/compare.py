"""``jaxunlearn compare``: several methods on one forget set, one table, one picture; goes on where it was stopped."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import _validate, artefacts, methods
from jaxunlearn.cli import _comparison, _data, _errors, _flags, _output, _process, _resume, _run
from jaxunlearn.cli._comparison import FACTORS, Entry

BEFORE, RUNS, PICTURE = "before.json", "runs", "compare.png"
DESCRIPTION = (
    "Run several methods on one forget set, each run in a process of its own; print one table, draw one picture. "
    "Stopped, the same command goes on where it was; more methods, seeds or trials may be asked of the same folder."
)
EPILOG = """\
exit status: 0 done (the table says what each method forgot); 2 wrong input; 130 interrupted, finished runs are kept

example:
  jaxunlearn compare --arch cifar_resnet20 --weights cifar10_resnet20.th --data tfds:cifar10 --data-dir DIR \\
      --forget random:16 --methods adv-imp,minimal-edit,minimal-edit:depth=crops --seeds 3 --out runs/compare
"""


def main(argv: Sequence[str]) -> int:
    """Parse the flags, do the runs that are missing, tell what all of them gave."""
    args = _parser().parse_args(argv)
    _check(args)
    with _resume.only_run(args.out):
        return _compare(args, Path(args.out), shlex.join(("jaxunlearn", "compare", *argv)))


def _compare(args: argparse.Namespace, out: Path, command: str) -> int:
    with _errors.user_input():
        entries = _entries(args.methods)
        facts = _facts(args, out)
    entries, left_out = _sorted_out(entries, facts, args)
    if not entries:
        raise _errors.UserError("no method can run: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    about = _about(facts, args)
    if not (args.quiet or args.json):
        _output.facts(about)
    runs = _Runs(args, out, facts, planned=sum(_planned(entry, args) for entry in entries))
    groups: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, str] = {}
    try:
        for entry in entries:
            try:
                factor = _tuned(entry, runs, args, chosen)
                groups[entry.label] = [runs.get(entry, seed, factor) for seed in range(args.seeds)]
            except _errors.UserError as error:
                left_out[entry.label] = str(error)
                _errors.say(f"{entry.label}: {error}")
    except KeyboardInterrupt:
        _errors.say(f"interrupted; what is done is kept in {out}, the same command goes on")
        return _process.interrupted()
    shutil.rmtree(out / _comparison.KEPT, ignore_errors=True)
    with _errors.writing(out):
        rows = _write(out, about, facts, groups, chosen, left_out, command)
    if not args.json:
        _show(out, rows, left_out)
    elif groups:
        _output.machine(_outcome(out, facts, groups, chosen, left_out))
    return _errors.OK if groups else _errors.WRONG_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = _flags.Parser(
        prog="jaxunlearn compare",
        usage="jaxunlearn compare --arch NAME --weights FILE --data SOURCE --forget SPEC --out DIR [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    _flags.add_model_flags(parser)
    _flags.add_data_flags(parser, apart=True)
    group = parser.add_argument_group("request")
    group.add_argument("--forget", metavar="SPEC", required=True, help="as for `jaxunlearn unlearn`")
    group.add_argument("--forget-seed", type=_flags.seed, default=0, metavar="N", help="of random:K; default: 0")
    group.add_argument("--goal", choices=("misclassify", "relabel"), default="misclassify", help="default: misclassify")
    group.add_argument("--target", metavar="LABEL", help="relabel: as for `jaxunlearn unlearn`")
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--methods",
        metavar="A,B:FIELD=VALUE,...",
        help="names, each with settings if you like (adv-imp:preset=published, minimal-edit:depth=crops); default: all "
        "that need no more than is given",
    )
    group.add_argument(
        "--seeds", type=_flags.whole(1), default=1, metavar="N", help="runs of each, seeds 0 to N-1; default: 1"
    )
    group.add_argument(
        "--trials",
        type=_flags.whole(1, len(FACTORS)),
        default=1,
        metavar="N",
        help="values of each method's strength that are tried on seed 0 (its default times "
        f"{', '.join(f'{factor:g}' for factor in FACTORS[:5])}, ...); the one that forgets and agrees best with the "
        "network before on unseen cut-and-paste images of the forget set is kept; default: 1",
    )
    group.add_argument("--public", metavar="SOURCE", help="as for `jaxunlearn unlearn`, for methods that use it")
    group.add_argument("--inversion", type=_flags.whole(0), metavar="N", help="as for `jaxunlearn unlearn`")
    group.add_argument("--artefact", action="append", default=[], metavar="FILE", help="as for `jaxunlearn unlearn`")
    group = parser.add_argument_group("result")
    group.add_argument(
        "--out",
        type=_flags.path,
        metavar="DIR",
        required=True,
        help="folder for compare.md, compare.json, compare.png, runs/",
    )
    group.add_argument(
        "--retain-limit",
        type=_flags.whole(0),
        default=5000,
        metavar="N",
        help="retained images measured; 0: all; default: 5000",
    )
    group.add_argument("--no-depth", dest="depth", action="store_false", help="do not measure how deep it goes")
    _flags.add_json_flag(group)
    _flags.add_run_flags(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.data is None:
        raise _errors.UserError(_data.MISSING)
    if args.weights is None:
        raise _errors.UserError("--weights is missing: a file of weights, or the folder of a checkpoint or run")
    if args.target is not None and args.goal != "relabel":
        raise _errors.UserError("--target is for --goal relabel")
    if args.public and args.inversion:
        raise _errors.UserError("give --public or --inversion, not both: images of yours take the place of made ones")
    _run.check_apart(args)


def _entries(given: str | None) -> list[Entry]:
    """Return the methods asked for, by default all that need no more than the model and the forget set."""
    if given is None:
        return [Entry.parse(name) for name, spec in methods.all_specs().items() if "retain" not in spec.needs]
    texts = _comparison.split(given)
    _validate.unique("--methods", texts)
    return [Entry.parse(text) for text in texts]


def _facts(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return what all runs share: read from the folder if it is there, else measured."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(20, "is not a folder", str(out))
    kept = out / BEFORE
    for left in (*out.glob(f".{BEFORE}.*.part"), *(out / RUNS).glob(".*.part")):  # of a process that was killed
        left.unlink()
    if not kept.exists():
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(17, "exists and holds no comparison: choose another folder", str(out))
        _run.try_to_write(out)
        return _comparison.in_process(_comparison.before, args, kept)
    try:
        facts = json.loads(kept.read_text(encoding="utf-8"))
        old = facts["asked"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{kept} is damaged ({error}): remove it or choose another folder") from None
    now = json.loads(json.dumps(_comparison.asked(args)))
    for name, value in now.items():
        if old.get(name) != value:
            flag = "--no-depth" if name == "depth" else _flags.flag(name)
            raise ValueError(
                f"{out} holds a comparison with another {flag} ({old.get(name)}, now {value}): choose another folder"
            )
    return dict(facts)


def _sorted_out(
    entries: Sequence[Entry], facts: Mapping[str, Any], args: argparse.Namespace
) -> tuple[list[Entry], dict[str, str]]:
    """Return the methods that can run, and why the others cannot."""
    fit, left_out = [], {}
    for entry in entries:
        missing = [need for need in entry.spec.needs if need != "retain" and need not in facts["offered"]]
        if args.goal not in entry.spec.goals:
            left_out[entry.label] = f"cannot pursue the goal {args.goal}"
        elif missing:
            kinds = artefacts.KINDS
            left_out[entry.label] = "needs " + "; ".join(f"{n}: {kinds[n]}" if n in kinds else n for n in missing)
        else:
            fit.append(entry)
    return fit, left_out


def _about(facts: Mapping[str, Any], args: argparse.Namespace) -> list[tuple[str, str]]:
    names, sizes = facts["ids"], facts["sizes"]
    shown = ", ".join(names[:8]) + (f", ... ({len(names) - 8} more)" if len(names) > 8 else "")
    sample = " (a fixed random choice)" if args.retain_limit and sizes.get("retain") == args.retain_limit else ""
    return [
        ("network", facts["network"]),
        ("data", facts["data"]),
        *((name, text) for name, text in facts.get("notes", ())),
        ("forget", f"{len(names)} instance{'s' * (len(names) > 1)}: {shown}"),
        ("goal", args.goal),
        ("measured", ", ".join(f"{n:,} {name}{sample if name == 'retain' else ''}" for name, n in sizes.items())),
    ]


def _planned(entry: Entry, args: argparse.Namespace) -> int:
    """Return how many runs and trials a method takes."""
    return args.seeds + (len(entry.factors(args.trials)) if _tunable(entry, args) else 0)


def _tunable(entry: Entry, args: argparse.Namespace) -> bool:
    return args.trials > 1 and bool(entry.spec.strength)


class _Runs:
    """The runs of a comparison: those kept in its folder, and new ones."""

    def __init__(self, args: argparse.Namespace, out: Path, facts: Mapping[str, Any], planned: int) -> None:
        self.args, self.folder, self.facts = args, out / RUNS, facts
        self.planned, self.done = planned, 0

    def get(self, entry: Entry, seed: int, factor: float, *, trial: bool = False) -> dict[str, Any]:
        """Return a run or a trial, from the folder where it is with the same settings; raise UserError if it fails."""
        path = self.folder / entry.name(seed, factor, trial=trial)
        found = _kept(path, entry, factor)
        if found is None:
            if not self.args.quiet:
                strength = f", {entry.spec.strength} x {factor:g}" if factor != 1 else ""
                what = "trial" if trial else "run"
                print(
                    f"{self.done + 1} of {self.planned}: {what} of {entry.label}, seed {seed}{strength}",
                    file=sys.stderr,
                )
            _run.try_to_write(self.folder)  # now, not after hours
            work = _comparison.trial if trial else _comparison.run
            found = _comparison.in_process(work, self.args, path, entry, seed, factor, self.facts)
        self.done += 1
        return found


def _kept(path: Path, entry: Entry, factor: float) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = found["config"] == json.loads(json.dumps(dataclasses.asdict(entry.config(factor))))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(found) if same else None


def _tuned(entry: Entry, runs: _Runs, args: argparse.Namespace, chosen: dict[str, str]) -> float:
    """Return the factor of the strength that forgets most and, among equals, agrees best on unseen proxies."""
    if not _tunable(entry, args):
        return 1.0
    tried = {}
    for factor in entry.factors(args.trials):
        trial = runs.get(entry, 0, factor, trial=True)
        tried[factor] = (trial["forgotten"], trial["agreement"]["agreement"])
    best = max(tried, key=lambda factor: tried[factor])
    value, base = (getattr(entry.config(factor), entry.spec.strength) for factor in (best, 1.0))
    chosen[entry.label] = f"{entry.spec.strength} {value:g} ({base:g} times {best:g})"
    return best


def _write(
    out: Path,
    about: Sequence[tuple[str, str]],
    facts: Mapping[str, Any],
    groups: Mapping[str, Sequence[dict[str, Any]]],
    chosen: Mapping[str, str],
    left_out: Mapping[str, str],
    command: str,
) -> list[tuple[str, ...]]:
    """Write the table, the picture and the page; return the rows of the table."""
    from jaxunlearn.report import comparison, figures

    rows = comparison.table(facts, groups)
    pictures = {}
    k = len(facts["ids"])
    title = f"{k} instance{'s' * (k > 1)} of {facts['data']} forgotten by {facts['arch'] or 'the network'}"
    figure = comparison.picture(facts, groups, title)
    if figure is not None:
        figures.save(out / PICTURE, figure)
        pictures[PICTURE] = "Accuracy against depth, one dot a method; further right is deeper, higher is better"
    page = comparison.page(title, about, rows, chosen, left_out, pictures, command)
    (out / "compare.md").write_text(page, encoding="utf-8", errors="backslashreplace")
    summary = {"command": command, "before": dict(facts), "left_out": dict(left_out), "chosen": dict(chosen)}
    _comparison.write(out / "compare.json", summary | {"runs": {name: list(group) for name, group in groups.items()}})
    return rows


def _outcome(
    out: Path,
    facts: Mapping[str, Any],
    groups: Mapping[str, Sequence[dict[str, Any]]],
    chosen: Mapping[str, str],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Return what is told to machines."""
    more = ("seed", "agreement")
    return {
        "path": str(out),
        "exit_status": _errors.OK,
        "before": facts["accuracy"],
        "runs": {
            label: [{**_output.found(run), **{name: run[name] for name in more}} for run in runs]
            for label, runs in groups.items()
        },
        "chosen": chosen,
        "left_out": left_out,
    }


def _show(out: Path, rows: Sequence[tuple[str, ...]], left_out: Mapping[str, str]) -> None:
    """Print the table."""
    print()
    # Ranges and intervals are in compare.md: a terminal has no room for them, nor for a column of one word.
    short = [(row[0], *(re.sub(r" (\(.*?\)|\[.*?\])", "", cell) for cell in row[1:])) for row in rows]
    saw = {row[-1] for row in short[2:]}
    if len(saw) == 1:
        _output.table([row[:-1] for row in short])
        print()
        _output.line(f"beside the network and the forget set, each method was shown: {saw.pop()}")
    else:
        _output.table(short, left=(0, len(rows[0]) - 1))
    for name, why in left_out.items():
        _output.line(f"not in the table: {name}: {why}")
    print()
    picture = ", compare.png" * (out / PICTURE).exists()
    _output.line(f"{out}: open compare.md; compare.json{picture} and one file a run lie beside it.")
