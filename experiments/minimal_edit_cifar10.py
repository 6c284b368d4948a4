"""Minimal edit on third-party CIFAR-10 ResNets: one JSON line a run.

    python -m experiments.minimal_edit_cifar10 --seeds 0-4 --k 16      # what the result file lacks
    python -m experiments.minimal_edit_cifar10 --seeds 0-4 --requests 16    # 16 requests of k, one after another
    python -m experiments.minimal_edit_cifar10 --inversion 500 --only-inversion
    python -m experiments.minimal_edit_cifar10 --table                 # what it has, as Markdown

The forget set of seed s is the first k of ``RandomState(s).permutation(50000)``,
by original index (``--arch small_cnn``, a network without BatchNorm: of its own
training images). Settings are chosen on seeds 0 to 4; seeds 100 to 109 are kept
for one evaluation after they are fixed. A run sees the model, the forget set
and, with ``--inversion``, images made from the model; test and retain images
are measured afterwards. D_r is measured on all retained training images with
``--full``, else on the 5,000 of ``RandomState(12345)``. ``held_out_proxies``
needs no data and is what settings are chosen by: agreement with the original
network, and the Kullback-Leibler divergence from it, on 500 cut-and-paste
images of the forget set that no run has seen.
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

from experiments import real, small_cnn
from jaxunlearn import _config, _tree, audits, data, inference, loop, methods, proxies, tune_cpu
from jaxunlearn._types import Batch, Model, Problem

SPEC = methods.get("minimal-edit")
IDENTITY = ("arch", "goal", "k", "requests", "seed", "inversion", "settings", "full")
RESULTS = Path(__file__).parent / "results" / "minimal_edit_cifar10.jsonl"
#: The network without BatchNorm.
SMALL = "small_cnn"
KEPT = Path(__file__).parents[1] / "runs" / "inversion"


class Measured:
    """Images that runs are measured on, read once.

    Attributes:
      members: rows that the network was trained on; forget sets are drawn from them.
      retain, test: rows that are measured; forgotten ones are left out later.
    """

    def __init__(self, source: data.Source, *, arch: str = "", full: bool):
        self.source = source
        train, test = ([f"{name}_{i}" for i in range(n)] for name, n in (("train", 50000), ("test", 10000)))
        rows = np.array([source.row_of(name) for name in train + test])
        part = small_cnn.part() if arch == SMALL else np.repeat(("train", "test"), (50000, 10000))
        self.members, self.test = rows[part == "train"], rows[part == "test"]
        order = np.random.RandomState(12345).permutation(len(self.members))
        self.retain = self.members if full else self.members[order[:5000]]
        self.images = {name: source.images(getattr(self, name)) for name in ("retain", "test")}

    def forget(self, seed: int, k: int) -> np.ndarray:
        """Return the rows of a forget set."""
        return self.members[np.random.RandomState(seed).permutation(len(self.members))[:k]]

    def accuracy(self, model: Model, forget: np.ndarray) -> dict[str, float]:
        """Return the share of retained and test images that the model gets right."""
        out = {}
        for name, images in self.images.items():
            rows = getattr(self, name)
            right = inference.logits(model, images).argmax(1) == self.source.labels[rows]
            out[name] = float(right[~np.isin(rows, forget)].mean())
        return out


def inversion_images(model: Model, arch: str, n: int) -> np.ndarray:
    """Return images from inversion, made once per network and kept under ``runs``."""
    path = KEPT / f"{arch}-{n}.npz"
    digest = _tree.model_digest(model)
    if path.exists():
        kept = np.load(path)
        if str(kept["model_digest"]) == digest:
            return kept["x"]
    began = time.perf_counter()
    artefact = proxies.invert_artefact(jax.random.key(2026), model, n)
    seconds = time.perf_counter() - began
    print(f"inversion of {n} images: {seconds:.1f} s", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=artefact.arrays["x"], model_digest=digest, seconds=seconds)
    return artefact.arrays["x"]


def held_out_proxies(model: Model, original: Model, x: np.ndarray) -> dict[str, Any]:
    """Return how far a network has moved from the original on fresh cut-and-paste images."""
    return audits.agreement(model, original, proxies.cutmix(jax.random.key(999), x, 500))


def measure(
    name: dict[str, Any], model: Model, images: np.ndarray | None, measured: Measured, before: dict[str, float]
) -> dict[str, Any]:
    """Do one run, of one request or of several in a row, and return its JSON line."""
    source, k, seed = measured.source, name["k"], name["seed"]
    rows = measured.forget(seed, k * name["requests"])
    x, y = source.images(rows), source.labels[rows]
    target = None
    if name["goal"] == "relabel":
        target = (y + 1 + np.random.RandomState(seed).randint(0, 9, len(y))) % 10
    every = Batch.of(x, y, target)
    config = _config.from_mapping(SPEC.Config, name["settings"])
    artefacts: dict[str, Any] = {} if images is None else {"proxies": images}
    current, margins, requests, cpu, wall = model, [], [], 0.0, 0.0
    for request in range(name["requests"]):
        new = slice(k * request, k * (request + 1))
        if request:
            earlier = jax.tree.map(lambda leaf, end=new.start: leaf[:end], every)
            artefacts |= {"held": earlier, "original": model}
        problem = Problem(
            model=current,
            forget=Batch.of(x[new], y[new], None if target is None else target[new]),
            goal=name["goal"],
            artefacts=artefacts,
        )
        before_cpu, began = time.process_time(), time.perf_counter()
        result = loop.run(problem, method=SPEC, config=config, key=jax.random.key(seed))
        cpu += time.process_time() - before_cpu
        wall += time.perf_counter() - began
        current = result.model
        margins += [round(float(m), 3) for m in result.history["largest_margin"]]
        if name["requests"] > 1:
            answer = inference.logits(current, x[: new.stop]).argmax(1)
            known = answer == y[: new.stop] if target is None else answer != target[: new.stop]
            after = {"remembered": int(known.sum()), "test": measured.accuracy(current, rows)["test"]}
            requests.append(after | {"steps": result.steps, "seconds": round(time.perf_counter() - began, 1)})
            print(json.dumps({"request": request + 1} | requests[-1]), file=sys.stderr)
    answer = inference.logits(current, x).argmax(1)
    remembered = answer == y if target is None else answer != target
    mirrored = inference.logits(current, x[:, :, ::-1]).argmax(1) == y
    return name | {
        "before": before,
        "after": {"forget": float(remembered.mean()), **measured.accuracy(current, rows)},
        "held_out_proxies": held_out_proxies(current, model, x),
        "mirror": float(mirrored.mean()),
        "largest_margin": margins,
        "each_request": requests,
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "seconds": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
        "config": dataclasses.asdict(config),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[1],
    }


def identity(row: dict[str, Any]) -> str:
    """Return what tells one run from another, as text."""
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a result file, without a last line that a crash cut short."""
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown, one line for each group of seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(identity(row | {"seed": None}), []).append(row)
    lines = [
        "| net | goal | k | proxies | seeds | max D_f | D_r mean, min | D_test mean, min | lost | KL on unseen proxies "
        "| mirror | s, CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups.values():
        first = group[0]
        test, retain = ([100 * row["after"][part] for row in group] for part in ("test", "retain"))
        settings = ", ".join(f"{name} {value}" for name, value in first["settings"].items())
        images = f"inversion {first['inversion']}" if first["inversion"] else "cut-and-paste"
        cells = [
            first["arch"],
            first["goal"],
            str(first["k"]) if first["requests"] == 1 else f"{first['requests']} times {first['k']}",
            images + (f"; {settings}" if settings else ""),
            " ".join(str(row["seed"]) for row in group),
            f"{max(100 * row['after']['forget'] for row in group):.2f}",
            f"{statistics.fmean(retain):.2f} / {min(retain):.2f}" + ("" if first["full"] else " (5,000)"),
            f"{statistics.fmean(test):.2f} / {min(test):.2f}",
            f"{100 * first['before']['test'] - statistics.fmean(test):.2f}",
            f"{statistics.fmean(row['held_out_proxies']['kl'] for row in group):.3f}",
            f"{100 * statistics.fmean(row['mirror'] for row in group):.1f}",
            f"{statistics.fmean(row['seconds']['wall'] for row in group):.0f}, "
            f"{statistics.fmean(row['seconds']['cpu'] for row in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    """Return the numbers of a list with ranges.

    >>> numbers("0-2,7")
    [0, 1, 2, 7]
    """
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="cifar_resnet20")
    parser.add_argument("--goal", default="misclassify")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1, help="so many requests of k instances, one after another")
    parser.add_argument("--seeds", default="0", help="such as 0-4,7")
    parser.add_argument("--inversion", type=int, default=0, help="images made from the network, half of the proxies")
    parser.add_argument("--only-inversion", action="store_true", help="make those images and stop")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--full", action="store_true", help="measure D_r on all retained images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file, JSON lines")
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    args = parser.parse_args(argv)
    tune_cpu()
    rows = read(args.out)
    if args.table:
        print(table(rows) if rows else f"no results in {args.out}")
        return
    defaults = {field.name: field.default for field in dataclasses.fields(SPEC.Config)}
    pairs = [item.split("=", 1) for item in args.set]
    settings = {name: type(defaults[name])(value) for name, value in pairs}
    done = {identity(row) for row in rows}
    names = ("arch", "goal", "k", "requests", "inversion", "full")
    shared = {name: getattr(args, name) for name in names} | {"settings": settings}
    todo = [shared | {"seed": seed} for seed in numbers(args.seeds)]
    todo = [name for name in todo if identity(name) not in done]
    if not todo and not args.only_inversion:
        return
    model = small_cnn.network() if args.arch == SMALL else real.network(args.arch)
    images = inversion_images(model, args.arch, args.inversion) if args.inversion else None
    if args.only_inversion:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = Measured(real.cifar10(), arch=args.arch, full=args.full)
    before = measured.accuracy(model, np.zeros(0, int))
    for name in todo:
        row = measure(name, model, images, measured, before)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            json.dumps({key: row[key] for key in ("k", "seed", "after", "mirror", "steps", "seconds")}), file=sys.stderr
        )


if __name__ == "__main__":
    main()
