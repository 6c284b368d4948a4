"""The mnemonic code, with and without codes in training: each class forgotten in turn, one JSON line a run.

    python -m experiments.mnemonic --data digits --mix 0,0.1,0.3 --seeds 0-2
    python -m experiments.mnemonic --data cifar10 --mix 0,0.3 --seeds 0    # trains a ResNet-8 twice
    python -m experiments.mnemonic --table                                 # Markdown

A network is trained from scratch with the share ``mix`` of images replaced by
the code of their class (0: without codes) and kept under ``runs/mnemonic``, its
state while it trains, too, so that a stopped experiment goes on. Then each class is forgotten in turn, from
codes alone; for the network without codes from codes that training never
showed. E_F is 100 minus the accuracy on the forgotten class's test images, A_R
the accuracy on those of the other classes.

The two lambdas are the paper's for MNIST and CIFAR-10 (``lambdas`` "paper"), or
chosen for each network ("score"): of a grid, the smallest with the best mean
score over all classes, a score being the share of right answers on the codes of
the other classes plus that of wrong ones on its own. So no image is used to
choose them, of the test set or another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import minimal_edit_cifar10 as shared, real
from jaxunlearn import _journal, artefacts, checkpoint, data, inference, loop, models, proxies, training, tune_cpu
from jaxunlearn._types import Artefact, Batch, Model, Problem
from jaxunlearn.cli import _progress
from jaxunlearn.methods import mnemonic

RESULTS = Path(__file__).parent / "results" / "mnemonic.jsonl"
KEPT = Path(__file__).parents[1] / "runs" / "mnemonic"
#: Network and training of each data set.
TRAINED: dict[str, dict[str, Any]] = {
    "digits": dict(arch="digits_cnn", epochs=100, batch_size=64, learning_rate=0.05),
    "cifar10": dict(arch="cifar_resnet8", epochs=20, batch_size=128, learning_rate=0.1),
}
#: (lambda1, lambda2) and (E_F, A_R) in the paper, of MNIST and CIFAR-10 (ResNet-18).
PAPER = {"digits": ((1e-3, 10.0), (100.0, 95.9)), "cifar10": ((1e-5, 1e4), (100.0, 94.4))}
GRID = tuple(itertools.product((1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.1, 1.0, 10.0, 1e4)))
IDENTITY = ("data", "mix", "seed", "lambdas", "class")


class Trained:
    """A trained network with its codes.

    Attributes:
      model, codes: the network, and its artefact of kind "codes".
      source: what it was trained on.
      seconds: training took.
    """

    def __init__(self, name: str, mix: float, seed: int) -> None:
        self.source = data.open_source("digits") if name == "digits" else real.cifar10()
        folder = KEPT / f"{name}-mix{mix:g}-seed{seed}"
        try:
            self.model = checkpoint.load(folder / "checkpoint", models.from_recipe)
            self.codes = artefacts.load(folder / "codes.safetensors", kind="codes", model=self.model)
        except FileNotFoundError:
            state = folder / "training"
            state.mkdir(parents=True, exist_ok=True)
            with _journal.Journal(state).open(), _progress.shown():
                self.model, self.codes = _train(name, mix, seed, self.source)
            artefacts.save(folder / "codes.safetensors", self.codes)
            checkpoint.save(folder / "checkpoint", self.model)
            shutil.rmtree(state)
        self.seconds = float(self.codes.meta["seconds"])
        rows = self.source.splits["test"]
        self.images, self.labels = self.source.images(rows), self.source.labels[rows]

    def forget(self, label: int, lambdas: tuple[float, float]) -> tuple[Model, dict[str, float], float]:
        """Return the network without a class, both scores, and how long that took."""
        rows = self.source.splits["train"]
        rows = rows[self.source.labels[rows] == label][:1]  # names the class; what is forgotten comes from the codes
        forget = Batch.of(self.source.images(rows), self.source.labels[rows])
        config = mnemonic.Config(lambda1=lambdas[0], lambda2=lambdas[1], whole_class=True)
        problem = Problem(model=self.model, forget=forget, artefacts={"codes": self.codes})
        result = loop.run(problem, method=mnemonic.SPEC, config=config, key=jax.random.key(0))
        return result.model, dict(result.extras["scores"]), float(result.seconds["prepare"])

    def accuracy(self, model: Model, label: int) -> dict[str, float]:
        """Return the shares of test images that are right, of the class and of the others."""
        right, own = inference.logits(model, self.images).argmax(axis=1) == self.labels, self.labels == label
        return {"class": float(right[own].mean()), "others": float(right[~own].mean())}


def _train(name: str, mix: float, seed: int, source: data.Source) -> tuple[Model, Artefact]:
    settings = dict(TRAINED[name])
    fresh = models.from_recipe(models.recipe(settings.pop("arch")), key=jax.random.key(seed))
    rows, codes = source.splits["train"], proxies.draw_codes(jax.random.key(seed + 1000), fresh)
    labels = source.labels[rows]
    began = time.perf_counter()
    done = training.train(
        fresh,
        jax.random.key(seed),
        source.images(rows),
        labels,
        augment=proxies.shift_and_mirror if name == "cifar10" else None,
        codes=codes if mix else None,
        mix=mix or None,
        **settings,
    )
    artefact = proxies.codes_artefact(done.model, codes, labels, mix=mix)
    facts = {"seconds": round(time.perf_counter() - began, 1), "accuracy": float(done.history["accuracy"][-20:].mean())}
    return done.model, Artefact(**{**vars(artefact), "meta": {**artefact.meta, **facts}})


def chosen(network: Trained) -> tuple[float, float]:
    """Return the smallest lambdas with the best mean score on the codes."""
    classes = network.codes.arrays["classes"].tolist()

    def score(lambdas: tuple[float, float]) -> float:
        return statistics.fmean(max(network.forget(label, lambdas)[1].values()) for label in classes)

    scores = {lambdas: round(score(lambdas), 6) for lambdas in GRID}
    best = max(scores.values())
    return min(lambdas for lambdas, value in scores.items() if value == best)


def measure(name: dict[str, Any], network: Trained, lambdas: tuple[float, float]) -> dict[str, Any]:
    """Forget one class and return the JSON line."""
    label = name["class"]
    model, scores, seconds = network.forget(label, lambdas)
    after = network.accuracy(model, label)
    codes = inference.logits(network.model, network.codes.arrays["codes"]).argmax(axis=1)
    return name | {
        "lambda1": lambdas[0],
        "lambda2": lambdas[1],
        "before": network.accuracy(network.model, label),
        "codes_before": float((codes == network.codes.arrays["classes"]).mean()),
        "E_F": round(100 * (1 - after["class"]), 4),
        "A_R": round(100 * after["others"], 4),
        "scores": scores,
        "seconds": {"train": network.seconds, "unlearn": round(seconds, 3)},
        "network": TRAINED[name["data"]],
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "cores": os.cpu_count(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: means over classes and seeds, the standard deviation over both in brackets."""
    columns = ("training with codes", "lambdas", "runs", "E_F before", "A_R before", "E_F", "A_R")
    lines = [f"| data | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    key = lambda row: (row["data"], row["mix"], row["lambdas"])  # noqa: E731
    for (name, mix, how), group in itertools.groupby(sorted(rows, key=key), key=key):
        members = list(group)
        pairs = sorted({f"{row['lambda1']:g}, {row['lambda2']:g}" for row in members})
        values = (
            [100 - 100 * row["before"]["class"] for row in members],
            [100 * row["before"]["others"] for row in members],
            [row["E_F"] for row in members],
            [row["A_R"] for row in members],
        )
        shown = [f"{statistics.fmean(column):.2f} ({statistics.pstdev(column):.2f})" for column in values]
        share = f"{100 * mix:g} % of images" if mix else "no"
        cells = (name, share, f"{how}: {' / '.join(pairs)}", str(len(members)), *shown)
        lines.append(f"| {' | '.join(cells)} |")
    for name in sorted({row["data"] for row in rows}):
        (first, second), (forgotten, kept) = PAPER[name]
        of = {"digits": "MNIST, MLP", "cifar10": "CIFAR-10, ResNet-18"}[name]
        lines.append(f"| the paper's {of} | yes | {first:g}, {second:g} | 3 | | | {forgotten:.2f} | {kept:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(TRAINED), default="digits")
    parser.add_argument(
        "--mix", default="0,0.3", help="shares of images that codes take the place of, joined by commas"
    )
    parser.add_argument("--seeds", default="0", help="such as 0-2,7")
    parser.add_argument("--lambdas", default="paper,score", help="paper, score or both")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file, JSON lines")
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    args = parser.parse_args(argv)
    tune_cpu()
    rows = shared.read(args.out)
    if args.table:
        print(table(rows) if rows else f"no results in {args.out}")
        return
    done = {identity(row) for row in rows}
    command = shlex.join(["python", "-m", "experiments.mnemonic", *(sys.argv[1:] if argv is None else argv)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shares = [float(part) for part in args.mix.split(",")]
    for seed, mix, how in itertools.product(shared.numbers(args.seeds), shares, args.lambdas.split(",")):
        names = [dict(zip(IDENTITY, (args.data, mix, seed, how, label), strict=True)) for label in range(10)]
        todo = [name for name in names if identity(name) not in done]
        if not todo:
            continue
        network = Trained(args.data, mix, seed)
        lambdas = PAPER[args.data][0] if how == "paper" else chosen(network)
        for name in todo:
            row = measure(name, network, lambdas) | {"command": command}
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(name | {"E_F": row["E_F"], "A_R": row["A_R"]}), file=sys.stderr)


def identity(row: dict[str, Any]) -> str:
    """Return what tells one run from another, as text."""
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


if __name__ == "__main__":
    main()
