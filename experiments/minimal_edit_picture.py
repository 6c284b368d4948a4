"""Draw what two edits of a third-party CIFAR-10 ResNet-20 do to every margin: the picture of docs/minimal_edit.md.

    python -m experiments.minimal_edit_picture docs/minimal_edit.png

Margin: logit of the true label less the largest other one; below 0 an image is
misclassified. Each point is an image, before against after. The forget set is
that of seed 100 of `experiments.minimal_edit_cifar10`, k = 16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from experiments import real
from jaxunlearn import inference, loop
from jaxunlearn._types import Batch, Model, Problem

METHODS = ("adv-imp", "minimal-edit")


def margins(model: Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the margin of each label, (n,)."""
    logits = inference.logits(model, x)
    own = np.arange(logits.shape[1]) == y[:, None]
    return logits[own] - np.where(own, -np.inf, logits).max(1)


def main(argv: list[str] | None = None) -> None:
    """Unlearn with both methods and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seed", type=int, default=100)
    args = parser.parse_args(argv)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, source = real.network("cifar_resnet20"), real.cifar10()
    numbers = np.random.RandomState(args.seed).permutation(50000)[:16]
    rows = np.array([source.row_of(f"train_{number}") for number in numbers])
    x, y = source.images(rows), source.labels[rows]
    test = source.splits["test"][:2000]
    others, labels = source.images(test), source.labels[test]
    before, before_test = margins(model, x, y), margins(model, others, labels)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharex=True, sharey=True)
    for ax, method in zip(axes, METHODS, strict=True):
        problem = Problem(model=model, forget=Batch.of(x, y))
        edited = loop.run(problem, method=method, key=jax.random.key(args.seed)).model
        now, now_test = margins(edited, x, y), margins(edited, others, labels)
        change = 100 * float((now_test > 0).mean() - (before_test > 0).mean())
        ax.axhspan(-100, 0, color="0.93", zorder=0)
        ax.plot([-60, 60], [-60, 60], color="0.6", lw=1, ls="--", zorder=1)
        ax.scatter(before_test, now_test, s=5, alpha=0.35, label="2,000 test images")
        ax.scatter(before, now, s=34, color="C3", edgecolor="white", lw=0.5, label="the 16 images to forget")
        ax.set(title=f"{method}: test accuracy {change:+.1f} points", xlabel="margin before, logits")
        ax.set(xlim=(-20, 35), ylim=(-20, 35))
    axes[0].set_ylabel("margin after, logits (grey: misclassified)")
    axes[0].legend(loc="upper left", fontsize=9)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=110)
    print(args.picture)


if __name__ == "__main__":
    main()
