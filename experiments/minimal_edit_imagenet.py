"""Minimal edit on networks for 224x224 images: what else changes, time and memory; one JSON line a run.

    python -m experiments.minimal_edit_imagenet --k 4 --seeds 0-2
    python -m experiments.minimal_edit_imagenet --k 4 --seeds 0 --row-bytes 1000000000    # rows are not stored
    python -m experiments.minimal_edit_imagenet --arch resnet50 --random --k 4 \\
        --set proxies=64 steps=0 finishing_steps=1
    python -m experiments.minimal_edit_imagenet --table    # Markdown

MobileNetV1 is a third party's; of 1,000 ImageNet images, one a class, 900 are
fixed (``RandomState(12345)``) to measure on, and the forget set of seed s is
drawn by ``RandomState(s)`` from those of the other 100 that the network gets
right. Seeds 0 to 2 are for development; seeds 100 to 102 are kept for one
evaluation afterwards. A run sees the model and the forget set. With
``--random`` the network has fresh weights, and any of the 100 images is to
lose the label that it is given; only time and memory mean something then.

Each run has a process of its own, whose largest resident size up to the end of
unlearning is ``peak_gib``; images to measure on are read in small batches.
``held_out_proxies`` needs no data: see `experiments.minimal_edit_cifar10`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import minimal_edit_cifar10 as shared, real
from jaxunlearn import _config, convert, curvature, data, inference, loop, models, tune_cpu
from jaxunlearn._types import Batch, Model, Problem
from jaxunlearn.methods.minimal_edit import SPEC, MinimalEdit

IDENTITY = ("arch", "random", "k", "seed", "row_bytes", "settings")
RESULTS = Path(__file__).parent / "results" / "minimal_edit_imagenet.jsonl"
MEASURED = 900


def sample() -> data.Source:
    """Open the 1,000 ImageNet images; a JPEG is decoded when it is asked for."""
    from PIL import Image

    folder = real.shared_dir() / "data" / "imagenet_sample"
    with (folder / "labels.csv").open() as file:
        lines = list(csv.DictReader(file))

    def read(rows: np.ndarray) -> np.ndarray:
        files = (folder / "images" / lines[row]["file"] for row in rows)
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    return data.Source(
        name="imagenet_sample",
        num_classes=1000,
        input_shape=(224, 224, 3),
        class_names=None,
        ids=np.array([line["file"] for line in lines]),
        labels=np.array([int(line["label"]) for line in lines], np.int32),
        splits={"train": np.arange(len(lines))},
        read=read,
    )


def network(arch: str, random: bool) -> Model:
    """Return a third party's network, or one with fresh weights."""
    recipe = models.recipe(arch)
    if random:
        return models.from_recipe(recipe, key=jax.random.key(0))
    file = f"imagenet_{arch}_224.npz"
    return convert.load_weights(real.shared_dir() / "weights" / file, recipe, models.from_recipe)


def peak() -> float:
    """Return the largest resident size of this process so far, in GiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2 ** (30 if sys.platform == "darwin" else 20)


def measure(name: dict[str, Any]) -> dict[str, Any]:
    """Do one run and return its JSON line."""
    source, model = sample(), network(name["arch"], name["random"])
    order = np.random.RandomState(12345).permutation(len(source.labels))
    others, rest = order[:MEASURED], order[MEASURED:]
    given = inference.logits(model, source.view(rest)).argmax(1)
    right = rest if name["random"] else rest[given == source.labels[rest]]
    rows = np.random.RandomState(name["seed"]).permutation(right)[: name["k"]]
    x, y = source.images(rows), given[[np.flatnonzero(rest == row)[0] for row in rows]]

    config = _config.from_mapping(SPEC.Config, name["settings"])
    spec = dataclasses.replace(SPEC, make=lambda config: MinimalEdit(config, row_bytes=name["row_bytes"]))
    problem = Problem(model=model, forget=Batch.of(x, y))
    before_cpu, began = time.process_time(), time.perf_counter()
    result = loop.run(problem, method=spec, config=config, key=jax.random.key(name["seed"]))
    wall, cpu, memory = time.perf_counter() - began, time.process_time() - before_cpu, peak()

    state = spec.make(config).prepare(jax.random.key(0), problem, _config.traced(config))
    n = len(state.pool.x)
    rows_gib = 4 * n * curvature.width(model.params, tuple(state.anchor)) / 2**30
    limit = (name["row_bytes"] or curvature.memory_for_rows()) / 2**30
    row = name | {
        "forgotten_ids": source.ids[rows].tolist(),
        "forget": float((inference.logits(result.model, x).argmax(1) == y).mean()),
        "proxies": n,
        "rows_gib": round(rows_gib, 2),
        "rows_stored": rows_gib <= limit,
        "peak_gib": round(memory, 2),
        "largest_margin": [round(float(m), 3) for m in result.history["largest_margin"]],
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "seconds": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
    }
    if not name["random"]:
        labels = source.labels[others]
        then, now = (inference.logits(net, source.view(others)).argmax(1) for net in (model, result.model))
        row |= {
            "agreement": float((then == now).mean()),
            "before": float((then == labels).mean()),
            "after": float((now == labels).mean()),
            "held_out_proxies": shared.held_out_proxies(result.model, model, x),
        }
    return row | {
        "config": dataclasses.asdict(config),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[1],
    }


def identity(row: dict[str, Any]) -> str:
    """Return what tells one run from another, as text."""
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown, one line for each group of seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(identity(row | {"seed": None}) + str(row["seed"] >= 100), []).append(row)
    lines = [
        "| net | k | settings | seeds | max D_f | same answer on 900 others, mean, min | accuracy there, before, after "
        "| proxies | rows | peak GiB | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups.values():
        first = group[0]

        def mean(name: str, group: list[dict[str, Any]] = group) -> float:
            return 100 * statistics.fmean(row[name] for row in group)

        trained = not first["random"]
        cells = [
            first["arch"] + ("" if trained else ", fresh weights"),
            str(first["k"]),
            ", ".join(f"{name} {value}" for name, value in first["settings"].items()) or "default",
            " ".join(str(row["seed"]) for row in group),
            f"{max(100 * row['forget'] for row in group):.1f}",
            f"{mean('agreement'):.2f}, {100 * min(row['agreement'] for row in group):.2f}" if trained else "",
            f"{mean('before'):.2f}, {mean('after'):.2f}" if trained else "",
            str(first["proxies"]),
            f"{first['rows_gib']:.1f} GiB, {'stored' if first['rows_stored'] else 'not stored'}",
            f"{max(row['peak_gib'] for row in group):.1f}",
            f"{statistics.fmean(row['seconds']['cpu'] for row in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, each run in a process of its own, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="mobilenet_v1_075")
    parser.add_argument("--random", action="store_true", help="fresh weights instead of a third party's")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seeds", default="0", help="such as 0-2,7")
    parser.add_argument("--row-bytes", type=int, default=0, help="memory for rows of proxies; 0: a quarter of all")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file, JSON lines")
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    args = parser.parse_args(argv)
    tune_cpu()
    rows = shared.read(args.out)
    if args.table:
        print(table(rows) if rows else f"no results in {args.out}")
        return
    defaults = {field.name: field.default for field in dataclasses.fields(SPEC.Config)}
    pairs = [item.split("=", 1) for item in args.set]
    settings = {name: type(defaults[name])(value) for name, value in pairs}
    fixed = {name: getattr(args, name) for name in ("arch", "random", "k", "row_bytes")} | {"settings": settings}
    done = {identity(row) for row in rows}
    todo = [name for seed in shared.numbers(args.seeds) if identity(name := fixed | {"seed": seed}) not in done]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for row in processes.map(measure, todo):
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            some = ("k", "seed", "forget", "agreement", "largest_margin", "peak_gib", "rows_stored", "seconds")
            print(json.dumps({key: row.get(key) for key in some}), file=sys.stderr)


if __name__ == "__main__":
    main()
