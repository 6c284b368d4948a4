"""Show how time and memory grow with the number of instances, and when side by side beats one after another.

    python -m experiments.benchmarks.growth                     # 16 to 4,096 instances
    python -m experiments.benchmarks.growth --sizes 16,64,256   # less
    python -m experiments.benchmarks.growth --picture F.png --from RESULT.json

ResNet-20. Attack (3 steps), importance and evaluation, each size in a process of
its own: seconds of a call after a small one has compiled (median and range of the
repeats), and what the calls added to the process's peak memory. Then 1 to 16
independent requests on a small network: `jax.vmap` over requests against one
jitted request after another in alternation, with `lax.conv` and with patches and
one matrix product, whose gradient under vmap is no grouped convolution.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.machine import Worker, hardware, keep, limit_cores, positives, spread

WORK = ("attack", "importance", "evaluation")
SIZES = (16, 64, 256, 1024, 4096)
LANES = (1, 4, 16)
REPEATS = 3
#: A CIFAR-10 image in float32.
IMAGE_MIB = 4 * 3 * 32 * 32 / 2**20


def _grown(pipe: Any, what: str, n: int, cores: int) -> None:
    """Send the seconds of each repeat, and the added peak memory, of one phase on n instances."""
    import resource

    import jax

    from experiments import real
    from jaxunlearn import attacks, importance, inference, tune_cpu
    from jaxunlearn._types import Batch

    limit_cores(cores)
    tune_cpu()
    model, source = real.network("cifar_resnet20"), real.cifar10()
    rows = source.splits["train"][:n]
    forget = Batch.of(source.images(rows), source.labels[rows])
    run = {
        "attack": lambda part: (
            attacks.adversarial_set(jax.random.key(0), model, part, draws=1, epsilon=4.0, step_size=0.1, steps=3).x
        ),
        "importance": lambda part: importance.mas(model.apply_fn)(model.params, model.model_state, part.x),
        "evaluation": lambda part: inference.logits(model, part.x),
    }[what]
    jax.block_until_ready(run(jax.tree.map(lambda leaf: leaf[:16], forget)))  # compiles, for any n
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = [_seconds(partial(run, forget)) for _ in range(REPEATS)]
    pipe.send({"seconds": seconds, "added_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024})


def _lanes(pipe: Any, conv: str, lanes: int, cores: int) -> None:
    """Send the seconds of weight gradients of several models, side by side and one after another, compiled before."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from jaxunlearn import tune_cpu

    limit_cores(cores)
    tune_cpu()

    def by_patches(x: Any, w: Any, *args: Any, **options: Any) -> Any:
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifted, -1) @ w.reshape(-1, w.shape[-1])

    how = {} if conv == "lax.conv" else {"conv_general_dilated": by_patches}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for width in (16, 16, 32):
                x = nn.relu(nn.Conv(width, (3, 3), padding=((1, 1), (1, 1)), **how)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    net, x = Net(), jnp.asarray(np.random.default_rng(0).uniform(size=(16, 32, 32, 3)).astype(np.float32))
    keys = jax.random.split(jax.random.key(0), lanes)
    params = jax.vmap(net.init, (0, None))(keys, x)
    gradient = jax.grad(lambda p: (net.apply(p, x) ** 2).sum())
    one, many = jax.jit(gradient), jax.jit(jax.vmap(gradient))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(lanes)]

    runs = {"vmapped": partial(many, params), "one by one": lambda: [one(p) for p in each]}
    for run in runs.values():
        _seconds(run)  # compiles
    pairs = [{name: _seconds(run) for name, run in runs.items()} for _ in range(3 * REPEATS)]
    pipe.send({name: [pair[name] for pair in pairs] for name in runs})


def _seconds(run: Callable[[], Any]) -> float:
    import jax

    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def table(kept: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    lines = [
        "| phase | instances | s, median (range) | ms an instance | added peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for row in kept["growth"]:
        each = 1000 * statistics.median(row["seconds"]) / row["n"]
        seconds = spread(row["seconds"])
        lines.append(f"| {row['what']} | {row['n']:,} | {seconds} | {each:.1f} | {row['added_mib']:.0f} |")
    lines += ["", "| convolution | models | vmapped, ms | one by one, ms | vmapped is |", "|---|---|---|---|---|"]
    for row in kept["lanes"]:
        ratio = [one / many for one, many in zip(row["one by one"], row["vmapped"], strict=True)]
        vmapped, one_by_one = (spread([1000 * s for s in row[how]]) for how in ("vmapped", "one by one"))
        cells = (row["conv"], str(row["lanes"]), vmapped, one_by_one, f"{spread(ratio)} times as fast")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(kept: dict[str, Any], path: Path) -> None:
    """Draw seconds and added memory against the number of instances."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for what in WORK:
        rows = [row for row in kept["growth"] if row["what"] == what]
        n = np.array([row["n"] for row in rows])
        seconds = [statistics.median(row["seconds"]) for row in rows]
        left.plot(n, seconds, "o-", label=what)
        # What it would be if all instances took as long as they do at the second size, where no piece is padded.
        left.plot(n, seconds[min(1, len(n) - 1)] * n / n[min(1, len(n) - 1)], "k:", lw=1)
        right.plot(n, [row["added_mib"] for row in rows], "o-", label=what)
    right.plot(n, n * IMAGE_MIB, "k:", lw=1, label="the images, once")
    left.plot([], [], "k:", lw=1, label="linear")
    left.set(xscale="log", yscale="log", xlabel="instances", ylabel="s")
    right.set(xscale="log", xlabel="instances", ylabel="added peak memory, MiB")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(path)


def main(argv: list[str] | None = None) -> None:
    """Run all sizes, print the tables, write JSON and picture."""

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=positives, default=list(SIZES))
    parser.add_argument("--lanes", type=positives, default=list(LANES))
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--from", dest="source", type=Path, help="print and draw an earlier result, run nothing")
    parser.add_argument("--picture", type=Path, help="PNG file")
    args = parser.parse_args(argv)
    if args.source is not None:
        kept = json.loads(args.source.read_text())
    else:
        cores, now = limit_cores(None), datetime.datetime.now(datetime.UTC)
        kept = {
            "command": "python -m experiments.benchmarks.growth "
            f"--sizes {','.join(map(str, args.sizes))} --lanes {','.join(map(str, args.lanes))}",
            "date": now.isoformat(timespec="seconds"),
            "hardware": hardware(cores),
            "growth": [],
            "lanes": [],
        }
        for what in WORK:
            for n in args.sizes:
                kept["growth"].append({"what": what, "n": n} | Worker(_grown, what, n, cores).answer())
                print(f"{what}, {n}: {spread(kept['growth'][-1]['seconds'])} s", file=sys.stderr)
        for conv in ("lax.conv", "patches"):
            for lanes in args.lanes:
                kept["lanes"].append({"conv": conv, "lanes": lanes} | Worker(_lanes, conv, lanes, cores).answer())
                print(f"{conv}, {lanes} models", file=sys.stderr)
        keep(kept, args.out, "growth", now)
    print(table(kept))
    if args.picture:
        picture(kept, args.picture)


if __name__ == "__main__":
    main()
