"""L2UL on a third-party CIFAR-10 ResNet-20: published settings beside our defaults, k = 16.

    python -m experiments.l2ul_cifar10            # measures whatever the result file lacks
    python -m experiments.l2ul_cifar10 --table    # prints what it has, as Markdown

Three forget sets (the indices of the published comparison, two random sets) x
NegGrad, ADV, ADV+IMP x three seeds of the attack x two settings: 42 runs (NegGrad
draws nothing, one seed is all there is). One JSON line a run, written as it ends,
so that a stopped experiment goes on where it was. ADV and ADV+IMP of one set and
seed share their adversarial examples: their difference is paired.
``--tiny`` only shows that everything works, in a file of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from experiments import real
from jaxunlearn import data, inference, loop, methods, tune_cpu
from jaxunlearn._types import Batch, Model, Problem

METHODS = ("neggrad", "adv", "adv-imp")
SETS = ("listed", "random-1", "random-2")
SEEDS = (0, 1, 2)
PRESETS = ("published", "default")
K = 16
#: The authors' code on the same weights, D_r and D_test in %, run before this project began: the listed set,
#: then two other random sets of 16 (not ours).
AUTHORS = {
    "neggrad": ((51.8, 50.8), (19.2, 18.7), (32.9, 32.0)),
    "adv": ((76.8, 73.5), (71.2, 67.5), (60.2, 57.7)),
    "adv-imp": ((79.7, 76.0), (73.7, 69.5), (65.9, 63.4)),
}


class Run(NamedTuple):
    """What tells one run from another."""

    preset: str
    method: str
    set: str
    seed: int


def plan() -> list[Run]:
    """Return every run, pairs next to each other, the published listed set first."""
    return [
        Run(preset, method, which, seed)
        for preset in PRESETS
        for which in SETS
        for seed in SEEDS
        for method in METHODS
        if method != "neggrad" or seed == SEEDS[0]
    ]


def forget_rows(source: data.Source, which: str) -> np.ndarray:
    """Return the rows of a forget set by name."""
    if which == "listed":
        return data.parse_forget(",".join(map(str, real.LISTED)), source, seed=0)
    return data.parse_forget(f"random:{K}", source, seed=int(which.rpartition("-")[2]))


def correct(model: Model, source: data.Source, rows: np.ndarray) -> np.ndarray:
    """Return which rows the model classifies as their label."""
    return inference.logits(model, source.view(rows)).argmax(1) == source.labels[rows]


def measure(
    run: Run,
    model: Model,
    source: data.Source,
    train: np.ndarray,
    test: np.ndarray,
    before: np.ndarray,
    *,
    tiny: bool = False,
) -> dict[str, Any]:
    """Do one run and return its JSON line; ``before``: which rows of the source the given model classifies rightly."""
    forget = forget_rows(source, run.set)
    parts = {"forget": forget, "retain": np.setdiff1d(train, forget), "test": test}
    spec = methods.get(run.method)
    config = spec.Config.published() if run.preset == "published" else spec.Config()
    if tiny:
        small = {"max_passes": 3} | ({} if run.method == "neggrad" else {"draws": 2, "attack_steps": 3})
        config = dataclasses.replace(config, **small)
    problem = Problem(model=model, forget=Batch.of(source.images(forget), source.labels[forget]))
    result = loop.run(problem, method=spec, config=config, key=jax.random.key(run.seed))

    began = time.perf_counter()
    after = {"forget": float(1 - result.forgotten.mean())}
    after |= {name: float(correct(result.model, source, parts[name]).mean()) for name in ("retain", "test")}
    seconds = {**result.seconds, "evaluate": time.perf_counter() - began}
    return run._asdict() | {
        "forget": source.ids[forget].tolist(),
        "before": {name: float(before[rows].mean()) for name, rows in parts.items()},
        "after": after,
        "evaluated": {name: len(rows) for name, rows in parts.items()},
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "config": vars(config),
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a result file; a last line cut short by a crash is dropped."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise
    return rows


def identity(row: dict[str, Any]) -> Run:
    """Return which run a JSON line is of."""
    return Run(*(row[name] for name in Run._fields))


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: accuracy by setting, method and set, then the paired difference."""
    by_run = {identity(row): row for row in rows}
    lines = [
        "| settings | method | forget set | D_f | D_r | D_test | steps | stopped | authors D_r / D_test |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def line(preset: str, method: str, name: str, group: list[dict[str, Any]], authors: str) -> str:
        values = {part: [100 * row["after"][part] for row in group] for part in ("forget", "retain", "test")}
        steps = f"{min(row['steps'] for row in group)}-{max(row['steps'] for row in group)}"
        reasons = ", ".join(sorted({row["stop_reason"] for row in group}))
        cells = [preset, method, name, *map(spread, values.values()), steps, reasons, authors]
        return f"| {' | '.join(cells)} |"

    for preset in PRESETS:
        for method in METHODS:
            everything = [row for run, row in by_run.items() if (run.preset, run.method) == (preset, method)]
            if not everything:
                continue
            theirs = AUTHORS[method] if preset == "published" else ()
            for which in SETS:
                group = [row for row in everything if row["set"] == which]
                authors = _percent(theirs[0]) if theirs and which == "listed" else "-"
                if group:
                    lines.append(line(preset, method, f"{which} (n={len(group)})", group, authors))
            authors = f"two other random sets: {'; '.join(map(_percent, theirs[1:]))}" if theirs else "-"
            lines.append(line(preset, method, f"all (n={len(everything)})", everything, authors))
    lines += ["", *_paired(by_run), "", *_far(by_run)]
    before = {row["set"]: row["before"] for row in rows}
    for name, part in before.items():
        accuracies = (
            f"{label} {100 * part[key]:.2f}"
            for label, key in (("D_f", "forget"), ("D_r", "retain"), ("D_test", "test"))
        )
        lines.append(f"Before, {name}: {', '.join(accuracies)}")
    return "\n".join(lines)


def _paired(by_run: dict[Run, dict[str, Any]]) -> list[str]:
    """Return lines on ADV+IMP - ADV over pairs that share set, seed and attack, where both reached D_f = 0."""
    lines = [
        "| settings | ADV+IMP - ADV, points | D_r | D_test | each pair on D_test | authors D_r / D_test |",
        "|---|---|---|---|---|---|",
    ]
    theirs = [
        tuple(a - b for a, b in zip(*pair, strict=True))
        for pair in zip(AUTHORS["adv-imp"], AUTHORS["adv"], strict=True)
    ]
    for preset in PRESETS:
        pairs = [
            (row, by_run[run._replace(method="adv")])
            for run, row in by_run.items()
            if run.preset == preset and run.method == "adv-imp" and run._replace(method="adv") in by_run
        ]
        # A run that has not forgotten keeps accuracy for nothing: no comparison.
        pairs = [pair for pair in pairs if all(row["stop_reason"] == "forgotten" for row in pair)]
        if pairs:
            points = {
                part: [100 * (imp["after"][part] - adv["after"][part]) for imp, adv in pairs]
                for part in ("retain", "test")
            }
            each = " ".join(f"{value:+.1f}" for value in points["test"])
            authors = "; ".join(f"{r:+.1f} / {t:+.1f}" for r, t in theirs) if preset == "published" else "-"
            n = f"n={len(pairs)}"
            lines.append(
                f"| {preset} | {n} | {spread(points['retain'])} | {spread(points['test'])} | {each} | {authors} |"
            )
    return lines if len(lines) > 2 else ["ADV+IMP - ADV: no pair of runs yet that both reached D_f = 0."]


def _far(by_run: dict[Run, dict[str, Any]]) -> list[str]:
    """Return a line for every mean on the listed set that lies more than 8 points from the authors'."""
    lines = []
    for method in METHODS:
        group = [row for run, row in by_run.items() if run[:3] == ("published", method, "listed")]
        for part, theirs in zip(("retain", "test"), AUTHORS[method][0], strict=True):
            ours = [100 * row["after"][part] for row in group]
            if ours and abs(statistics.fmean(ours) - theirs) > 8:
                mean = statistics.fmean(ours)
                lines.append(f"More than 8 points off: {method}, {part}: {mean:.1f}, authors {theirs:.1f}")
    return lines


def _percent(pair: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.1f}" for value in pair)


def spread(values: list[float]) -> str:
    """Return mean and sample standard deviation, the latter only where there are several values.

    >>> spread([1.0, 2.0]), spread([3.0])
    ('1.5 ± 0.7', '3.0')
    """
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    parser.add_argument("--tiny", action="store_true", help="a check that it works, in a file of its own")
    parser.add_argument("--only", default="", help="such as preset=published,set=listed")
    parser.add_argument("--out", type=Path, help="result file, JSON lines")
    args = parser.parse_args(argv)
    tune_cpu()
    name = "l2ul_cifar10_tiny.jsonl" if args.tiny else "l2ul_cifar10.jsonl"
    out = args.out or Path(__file__).parent / "results" / name
    rows = read(out)
    if args.table:
        print(table(rows) if rows else f"no results in {out}")
        return

    wanted = dict(item.split("=", 1) for item in args.only.split(",") if item)
    done = {identity(row) for row in rows}
    todo = [r for r in plan() if all(str(getattr(r, k)) == v for k, v in wanted.items()) and r not in done]
    print(f"{len(todo)} runs to do, {len(done)} done, in {out}", file=sys.stderr)
    if not todo:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if rows:  # without the line that a crash cut short
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, model = real.cifar10(), real.network("cifar_resnet20")
    train, test = (source.splits[split][: 500 if args.tiny else None] for split in ("train", "test"))
    before = np.zeros(len(source.labels), bool)
    every = np.unique(np.concatenate([train, test, *(forget_rows(source, which) for which in SETS)]))
    before[every] = correct(model, source, every)
    for number, run in enumerate(todo, 1):
        row = measure(run, model, source, train, test, before, tiny=args.tiny)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        after = ", ".join(f"{name} {100 * value:.2f}" for name, value in row["after"].items())
        label = f"[{number}/{len(todo)}] {'/'.join(map(str, run))}"
        print(f"{label}: {after}, {row['steps']} steps, {row['stop_reason']}", file=sys.stderr)


if __name__ == "__main__":
    main()
