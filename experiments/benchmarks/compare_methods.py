"""Time whole jobs of two of our methods on the third-party CIFAR-10 ResNet-20, in alternation, as JSON and a table.

    python -m experiments.benchmarks.compare_methods                      # adv-imp and minimal-edit, k = 16, 3 rounds
    python -m experiments.benchmarks.compare_methods --rounds 2 --k 64

Round n forgets the first k of ``RandomState(n).permutation(50000)`` with default
settings. The first round compiles and is told apart: that is what one request
from the command line costs.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import real
from experiments.benchmarks.machine import QUIET, hardware, keep, limit_cores, others_clock, positive, spread
from jaxunlearn import loop
from jaxunlearn._types import Batch, Problem


def table(runs: list[dict[str, Any]], methods: list[str]) -> str:
    """Return seconds by method, with and without compiling, and how many times as fast as the first method."""
    lines = [
        "| method | first round, s | later rounds, s | times as fast, first round | later rounds (range) |",
        "|---|---|---|---|---|",
    ]
    seconds = {method: [run["seconds"] for run in runs if run["method"] == method] for method in methods}
    for method, each in seconds.items():
        ratios = [base / own for base, own in zip(seconds[methods[0]], each, strict=True)]
        later = f"{statistics.median(each[1:]):.1f}" if len(each) > 1 else "-"
        ratio = spread(ratios[1:], 1) if ratios[1:] else "-"
        lines.append(f"| {method} | {each[0]:.1f} | {later} | {ratios[0]:.1f} | {ratio} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the rounds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="adv-imp,minimal-edit", help="the first is the baseline")
    parser.add_argument("--k", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    methods, now = args.methods.split(","), datetime.datetime.now(datetime.UTC)
    cores, others = limit_cores(None), others_clock()
    model, source = real.network("cifar_resnet20"), real.cifar10()
    runs: list[dict[str, Any]] = []
    for n in range(args.rounds):
        numbers = np.random.RandomState(n).permutation(50000)[: args.k]
        rows = np.array([source.row_of(f"train_{number}") for number in numbers])
        problem = Problem(model=model, forget=Batch.of(source.images(rows), source.labels[rows]))
        for method in methods:
            not_ours, began = others(), time.perf_counter()
            result = loop.run(problem, method=method, key=jax.random.key(n))
            seconds = time.perf_counter() - began
            run = {"round": n, "method": method, "seconds": seconds, "phases": dict(result.seconds)}
            run |= {"steps": result.steps, "reason": result.stop_reason}
            if not_ours is not None:
                run["others_share"] = max((others() or 0.0) - not_ours, 0.0) / (cores * seconds)
            runs.append(run)
            print(f"round {n + 1} of {args.rounds}, {method}: {seconds:.1f} s", file=sys.stderr)
    print(table(runs, methods))
    share = max(run.get("others_share", 0.0) for run in runs)
    if share > QUIET:
        print(f"\nNOT QUIET: others used up to {share:.0%} of the cores; these are no figures to quote.")
    kept = {
        "command": f"python -m experiments.benchmarks.compare_methods --methods {args.methods} --k {args.k} "
        f"--rounds {args.rounds}",
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware(cores),
        "others_share": share,
        "runs": runs,
    }
    keep(kept, args.out, "compare_methods", now)


if __name__ == "__main__":
    main()
