"""Time what a user waits for before work begins: imports, --help, the first and the second run of a command.

    python -m experiments.benchmarks.startup

Each figure is the median of fresh processes, its range beside it; an import of
jaxunlearn is told as the seconds it adds to one of jax, in alternation. The first
run of a command fills an empty compilation cache, the second finds it full.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.machine import QUIET, hardware, keep, limit_cores, others_clock, positive, spread

HELP = [sys.executable, "-m", "jaxunlearn.cli.main", "--help"]
IMPORTS = {name: [sys.executable, "-c", f"import {name}"] for name in ("jax", "jaxunlearn")}


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Return the wall-clock seconds of a command that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-400:]}")
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> None:
    """Run all, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    cores, others, began = limit_cores(None), others_clock(), time.perf_counter()
    before, now = others(), datetime.datetime.now(datetime.UTC)
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment = own | {"XDG_CACHE_HOME": folder}
        for _ in range(args.repeats):
            rows.setdefault("jaxunlearn --help", []).append(seconds_of(HELP, environment))
            each = {name: seconds_of(command, environment) for name, command in IMPORTS.items()}
            rows.setdefault("import jax", []).append(each["jax"])
            rows.setdefault("import jaxunlearn, more than import jax", []).append(each["jaxunlearn"] - each["jax"])
        demo = [sys.executable, "-m", "jaxunlearn.cli.main", "demo", "--quiet", "--overwrite"]
        seconds_of([*demo, "--no-compile-cache", "--out", f"{folder}/first"], environment)  # trains the network
        for run in ("demo, cache empty", "demo, cache full"):
            rows[f"jaxunlearn {run}"] = [seconds_of([*demo, "--out", f"{folder}/demo"], environment)]
    kept: dict[str, Any] = {
        "command": f"python -m experiments.benchmarks.startup --repeats {args.repeats}",
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware(cores),
        "rows": rows,
    }
    if before is not None:
        children = os.times()
        used = children.children_user + children.children_system
        kept["others_share"] = max((others() or 0.0) - before - used, 0.0) / (cores * (time.perf_counter() - began))
    print("| what | s, median (range) |\n|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {spread(values)} |")
    if kept.get("others_share", 0.0) > QUIET:
        print(f"\nNOT QUIET: others used {kept['others_share']:.0%} of the cores; these are no figures to quote.")
    keep(kept, args.out, "startup", now)


if __name__ == "__main__":
    main()
