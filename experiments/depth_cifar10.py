"""How deep forgetting goes, and what depth costs, on a third-party CIFAR-10 ResNet-20: one JSON line a run.

    python -m experiments.depth_cifar10 --methods neggrad,adv,adv-imp,minimal-edit --k 16 --seeds 100-104
    python -m experiments.depth_cifar10 --methods minimal-edit --set depth=crops --inversion 500 --k 16 --seeds 100-104
    python -m experiments.depth_cifar10 --table            # Markdown
    python -m experiments.depth_cifar10 --picture F.png    # test accuracy against depth

The forget set of seed s is the first k of ``RandomState(s).permutation(50000)``.
A run sees the model and the forget set; ``--inversion`` adds images made from
the model. Afterwards `jaxunlearn.audits.depth` looks at unseen versions of the
forgotten images, and D_test is measured on all 10,000 test images.
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
from typing import Any

import jax
import numpy as np

from experiments import minimal_edit_cifar10 as shared, real
from jaxunlearn import _config, loop, methods, tune_cpu
from jaxunlearn._types import Batch, Model, Problem
from jaxunlearn.audits.depth import depth

IDENTITY = ("method", "k", "seed", "inversion", "settings")
RESULTS = Path(__file__).parent / "results" / "depth_cifar10.jsonl"
#: Versions of an image that show the same crop of it, and all versions: what depth "crops" and "full" are judged by.
CROPS, FULL = ("mirrored", "cropped", "shifted"), ("mirrored", "cropped", "shifted", "noisy", "jpeg", "rotated")


def measure(
    name: dict[str, Any], model: Model, images: np.ndarray | None, measured: shared.Measured, before: dict[str, float]
) -> dict[str, Any]:
    """Do one run and return its JSON line."""
    spec, k, seed = methods.get(name["method"]), name["k"], name["seed"]
    rows = measured.forget(seed, k)
    x, y = measured.source.images(rows), measured.source.labels[rows]
    config = _config.from_mapping(spec.Config, name["settings"])
    artefacts = {} if images is None else {"proxies": images}
    problem = Problem(model=model, forget=Batch.of(x, y), artefacts=artefacts)
    began = time.perf_counter()
    result = loop.run(problem, method=spec, config=config, key=jax.random.key(seed))
    wall = time.perf_counter() - began
    found = depth(result.model, x, y, key=jax.random.key(seed + 1), original=model)
    return name | {
        "before": before,
        "after": {"forget": float(1 - result.forgotten.mean()), **measured.accuracy(result.model, rows)},
        "depth": found,
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "seconds": {"unlearn": round(wall, 1)},
        "config": dataclasses.asdict(config),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[1],
    }


def recognised(row: dict[str, Any], families: tuple[str, ...]) -> float:
    """Return the share of unseen versions still given the old label, in percent, the families weighing the same."""
    return 100 * statistics.fmean(row["depth"]["recognised"][family] for family in families)


def grouped(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs that differ by seed only, by label."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(label(row) + f", k = {row['k']}", []).append(row)
    return groups


def label(row: dict[str, Any]) -> str:
    """Return what a run is called in tables and pictures."""
    settings = [f"{name} {value}" for name, value in row["settings"].items()]
    settings += [f"{row['inversion']} inversion images"] if row["inversion"] else []
    return row["method"] + (f" ({', '.join(settings)})" if settings else "")


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown, one line for each group of seeds: shares of versions still recognised, in percent."""
    columns = ("n", "D_f", "D_test", "lost", *FULL, "L2 to restore", "steps to relearn", "s")
    lines = [f"| run | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, group in grouped(rows).items():
        test = [100 * row["after"]["test"] for row in group]
        restoring = [row["depth"]["restoring_l2"]["median"] for row in group]
        steps = [row["depth"]["relearn"]["steps"] for row in group]
        cells = [
            name,
            str(len(group)),
            f"{max(100 * row['after']['forget'] for row in group):.1f}",
            f"{statistics.fmean(test):.2f}",
            f"{100 * group[0]['before']['test'] - statistics.fmean(test):.2f}",
            *(f"{recognised_mean(group, (family,)):.1f}" for family in FULL),
            f"{statistics.fmean(restoring):.3f}" if None not in restoring else "-",
            f"{statistics.fmean(steps):.1f}" if None not in steps else "-",
            f"{statistics.fmean(row['seconds']['unlearn'] for row in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recognised_mean(group: list[dict[str, Any]], families: tuple[str, ...]) -> float:
    """Return the mean of `recognised` over runs."""
    return statistics.fmean(recognised(row, families) for row in group)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw test accuracy against the share of versions that are no longer recognised."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({row["k"] for row in rows})
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4.6), squeeze=False, sharey=True)
    names = dict.fromkeys(label(row) for row in rows)
    colours = {name: f"C{number}" for number, name in enumerate(names)}  # the same in every panel
    for ax, k in zip(axes[0], sizes, strict=True):
        of_size = [row for row in rows if row["k"] == k]
        for name, colour in colours.items():
            group = [row for row in of_size if label(row) == name]
            style = {"color": colour, "marker": "o" if name.startswith("minimal-edit") else "s"}
            ax.scatter([], [], s=70, label=name, **style)
            if group:
                x = [100 - recognised(row, FULL) for row in group]
                y = [100 * row["after"]["test"] for row in group]
                ax.scatter(x, y, s=18, alpha=0.45, **style)
                ax.scatter(statistics.fmean(x), statistics.fmean(y), s=70, **style)
        ax.axhline(100 * of_size[0]["before"]["test"], color="0.6", lw=1, ls="--")
        ax.set(title=f"{k} images forgotten", xlabel="unseen versions no longer recognised, %", xlim=(-3, 103))
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("D_test, %")
    axes[0, -1].legend(fontsize=7, loc="lower left", framealpha=0.9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    print(path)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, print the table or draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="minimal-edit", help="names, joined by commas")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--seeds", default="0", help="such as 0-4,7")
    parser.add_argument("--inversion", type=int, default=0, help="images made from the network, as proxies")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file, JSON lines")
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    parser.add_argument("--picture", type=Path, help="draw the results so far and stop")
    args = parser.parse_args(argv)
    tune_cpu()
    rows = shared.read(args.out)
    if args.table or args.picture:
        if args.picture and rows:
            picture(rows, args.picture)
        print(table(rows) if rows else f"no results in {args.out}")
        return
    done = {identity(row) for row in rows}
    todo = [
        dict(method=method, k=args.k, seed=seed, inversion=args.inversion, settings=settings(method, args.set))
        for seed in shared.numbers(args.seeds)
        for method in args.methods.split(",")
    ]
    todo = [name for name in todo if identity(name) not in done]
    if not todo:
        return
    model = real.network("cifar_resnet20")
    images = shared.inversion_images(model, "cifar_resnet20", args.inversion) if args.inversion else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured = shared.Measured(real.cifar10(), full=False)
    before = measured.accuracy(model, np.zeros(0, int))
    for name in todo:
        row = measure(name, model, images, measured, before)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shares = {family: round(row["depth"]["recognised"][family], 4) for family in FULL}
        print(json.dumps(name | {"after": row["after"], **shares, "s": row["seconds"]["unlearn"]}), file=sys.stderr)


def identity(row: dict[str, Any]) -> str:
    """Return what tells one run from another, as text."""
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


def settings(method: str, pairs: list[str]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` pairs as a method's settings, in the types of its defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(methods.get(method).Config)}
    return {name: type(defaults[name])(value) for name, _, value in (pair.partition("=") for pair in pairs)}


if __name__ == "__main__":
    main()
