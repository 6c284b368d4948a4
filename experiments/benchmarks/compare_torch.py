"""Time the attack and the whole ADV+IMP job: ours, PyTorch as published, PyTorch tuned.

    python -m experiments.benchmarks.compare_torch            # k = 16, 20 draws, 100 steps: about an hour on 2 cores
    python -m experiments.benchmarks.compare_torch --quick    # a few minutes

Same third-party ResNet-20, images, attack starts and target labels, published
settings, cores; the three, each a process of its own, take turns, the order
rotates. Our compile time stands apart (a warm-up pays it). The process of ours and of
PyTorch as tuned keeps its memory (`jaxunlearn.tune_cpu`); PyTorch as published runs as it comes.
Every figure is kept as JSON with what made it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from experiments import real
from experiments.benchmarks import torch_l2ul
from experiments.benchmarks.machine import (
    QUIET,
    Worker,
    add_device_flags,
    compile_clock,
    found_device,
    hardware,
    keep,
    limit_cores,
    on_what,
    others_clock,
    positive,
    settle,
)
from jaxunlearn import attacks, data, loop, methods, tune_cpu
from jaxunlearn._types import Batch, Problem

WHO = ("ours", "torch published", "torch tuned")
WHAT = ("attack", "job")


def nchw(images: Any) -> torch.Tensor:
    """Return images, (..., H, W, C), as a PyTorch tensor, (..., C, H, W)."""
    return torch.from_numpy(np.moveaxis(np.asarray(images), -1, -3).copy())


def same_draws(key: jax.Array, forget: Batch, draws: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target labels, (draws, k), and starts, (draws, k, C, H, W), that `attacks.adversarial_set` uses."""

    def one(draw: jax.Array, index: jax.Array, y: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for_target, for_start = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), draw))
        target = attacks.random_targets(for_target, y, classes, scheme="published")
        return target, jax.random.uniform(for_start, x.shape, x.dtype)

    instances = jax.vmap(one, in_axes=(None, 0, 0, 0))
    every = jax.vmap(instances, in_axes=(0, None, None, None))
    targets, starts = every(np.arange(draws), forget.index, forget.y, forget.x)
    return torch.tensor(np.asarray(targets)).long(), nchw(starts)


class Bench:
    """The forget set and both networks, and one timed call for each contestant and task."""

    def __init__(
        self, k: int, draws: int, iterations: int, *, device: str = "cpu", wait: Callable[[], None] = lambda: None
    ) -> None:
        self.draws, self.iterations = draws, iterations
        self.device, self.wait = {"cpu": "cpu", "gpu": "cuda"}[device], wait
        source = real.cifar10()
        rows = data.parse_forget(",".join(map(str, real.LISTED[:k])), source, seed=0)
        if k > len(real.LISTED):
            rows = data.parse_forget(f"random:{k}", source, seed=0)
        self.forget = Batch.of(source.images(rows), source.labels[rows])
        self.model = real.network("cifar_resnet20")
        self.theirs = torch_l2ul.load(real.weights("cifar_resnet20")).to(self.device)
        self.x, self.y = nchw(self.forget.x).to(self.device), torch.tensor(source.labels[rows]).long().to(self.device)
        self.config = dataclasses.replace(
            methods.get("adv-imp").Config.published(), draws=draws, attack_steps=iterations
        )

    def run(self, who: str, what: str, seed: int) -> dict[str, Any]:
        """Do one task and return its seconds (all, and by phase) and what it took."""
        key = jax.random.key(seed)
        attack_key = jax.random.split(key)[0]  # the one that the loop hands to `prepare`
        if who == "ours":
            return self._ours_attack(attack_key) if what == "attack" else self._ours_job(key)
        tuned = who == "torch tuned"
        draws = same_draws(attack_key, self.forget, self.draws, self.model.spec.num_classes)
        targets, starts = (tensor.to(self.device) for tensor in draws)
        model, seconds = copy.deepcopy(self.theirs), {}
        self.wait()
        with clock(seconds, "attack", self.wait):
            adversarial = torch_l2ul.attack(model, self.x, targets, starts, iterations=self.iterations, tuned=tuned)
        if what == "attack":
            return {"seconds": seconds["attack"]}
        with clock(seconds, "importance", self.wait):
            weights = torch_l2ul.holding_weights(torch_l2ul.importance(model, self.x))
        with clock(seconds, "unlearning", self.wait):
            outcome = torch_l2ul.unlearn(model, self.x, self.y, adversarial, weights, tuned=tuned)
        return {"seconds": sum(seconds.values()), "phases": seconds, "steps": outcome.steps, "reason": outcome.reason}

    def _ours_attack(self, key: jax.Array) -> dict[str, Any]:
        seconds: dict[str, float] = {}
        config = self.config
        with clock(seconds, "attack"):
            made = attacks.adversarial_set(
                key,
                self.model,
                self.forget,
                draws=config.draws,
                epsilon=config.epsilon,
                step_size=config.attack_step_size,
                steps=config.attack_steps,
                targets=config.targets,
                group=config.forget_batch,
            )
            jax.block_until_ready(made.x)
        return {"seconds": seconds["attack"]}

    def _ours_job(self, key: jax.Array, stop_after: int | None = None) -> dict[str, Any]:
        def callback(event: loop.Event) -> None:
            if event.steps == stop_after:
                raise KeyboardInterrupt

        seconds: dict[str, float] = {}
        problem = Problem(model=self.model, forget=self.forget)
        with clock(seconds, "job"):
            result = loop.run(problem, method="adv-imp", config=self.config, key=key, callback=callback)
        return {
            "seconds": seconds["job"],
            "phases": dict(result.seconds),
            "steps": result.steps,
            "reason": result.stop_reason,
        }

    def warm_up(self, who: str) -> None:
        """Compile all that `run` needs: the attack, the importance, and a step of each batch shape; wake PyTorch."""
        if who != "ours":
            torch_l2ul.importance(self.theirs, self.x)
            return self.wait()
        steps = -(-len(self.x) * self.draws // self.config.companion_batch)
        self._ours_attack(jax.random.key(0))
        self._ours_job(jax.random.key(0), stop_after=steps)
        return None


def _work(pipe: Any, who: str, settings: dict[str, int], threads: int, device: str, precision: str) -> None:
    limit_cores(threads)
    wait = settle(device, precision, ours=who == "ours")
    if who != "torch published":
        tune_cpu()
    bench, compiling = Bench(**settings, device=device, wait=wait), compile_clock()
    for what, seed in iter(pipe.recv, None):
        before, began, cpu = compiling(), time.perf_counter(), time.process_time()
        if what == "warm up":
            bench.warm_up(who)
            outcome: dict[str, Any] = {"seconds": time.perf_counter() - began}
        else:
            outcome = bench.run(who, what, seed)
        # What PyTorch's processes compile makes the starts, before the clock runs.
        compiled = compiling() - before if who == "ours" else 0.0
        pipe.send(outcome | {"compile_seconds": compiled, "cpu": time.process_time() - cpu})


@contextmanager
def clock(seconds: dict[str, float], name: str, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Add the wall-clock seconds of a block, until the device is done with it, to a dict."""
    began = time.perf_counter()
    yield
    wait()
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, by task and contestant, median, range, and ratio to PyTorch as published in the same round."""
    rows = []
    for what in WHAT:
        seconds = {who: {r["round"]: r["seconds"] for r in runs if (r["what"], r["who"]) == (what, who)} for who in WHO}
        for who in WHO:
            mine = list(seconds[who].values())
            ratios = [seconds[WHO[1]][n] / value for n, value in seconds[who].items()]
            steps = [r["steps"] for r in runs if (r["what"], r["who"]) == (what, who) and "steps" in r]
            rows.append(
                {
                    "what": what,
                    "who": who,
                    "seconds": statistics.median(mine),
                    "seconds_range": [min(mine), max(mine)],
                    "times_as_fast": statistics.median(ratios),
                    "times_as_fast_range": [min(ratios), max(ratios)],
                    "steps": steps,
                }
            )
    return rows


def table(rows: list[dict[str, Any]], compile_seconds: float) -> str:
    """Return the summary as Markdown."""
    lines = [
        "| task | who | seconds, median (range) | times as fast as published (range) | steps |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, times = (
            f"{row[name]:.2f} ({row[f'{name}_range'][0]:.2f}-{row[f'{name}_range'][1]:.2f})"
            for name in ("seconds", "times_as_fast")
        )
        steps = ", ".join(map(str, row["steps"])) or "-"
        lines.append(f"| {row['what']} | {row['who']} | {seconds} | {times} | {steps} |")
    return "\n".join([*lines, "", f"Our compile time, once a process, not in the table: {compile_seconds:.1f} s"])


def main(argv: list[str] | None = None) -> None:
    """Run the rounds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="k = 8, 4 draws, 10 steps, 2 rounds")
    parser.add_argument("--k", type=positive, help="forget images (16)")
    parser.add_argument("--draws", type=positive, help="adversarial images of each (20)")
    parser.add_argument("--iterations", type=positive, help="attack steps (100)")
    parser.add_argument("--rounds", type=positive, help="repeats (3); round n uses seed n")
    parser.add_argument("--threads", type=positive, help="cores for both libraries (all that are available)")
    add_device_flags(parser)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    small, full = (
        {"k": 8, "draws": 4, "iterations": 10, "rounds": 2},
        {"k": 16, "draws": 20, "iterations": 100, "rounds": 3},
    )
    settings = {name: getattr(args, name) or default for name, default in (small if args.quick else full).items()}
    flags = " ".join(f"--{name} {value}" for name, value in settings.items())
    rounds = settings.pop("rounds")
    threads = limit_cores(args.threads)
    device, now = found_device(args.device), datetime.datetime.now(datetime.UTC)
    if device["device"] == "gpu":
        flags += f" --device gpu --precision {args.precision}"
    kept: dict[str, Any] = {
        "command": f"python -m experiments.benchmarks.compare_torch {flags}",
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware(threads) | device,
        "settings": settings | {"network": "cifar_resnet20", "method": "adv-imp", "preset": "published"},
    }

    workers = {who: Worker(_work, who, settings, threads, device["device"], args.precision) for who in WHO}
    kept["warm_up"] = {who: worker.ask(("warm up", 0)) for who, worker in workers.items()}["ours"]
    others, runs = others_clock(), []
    kept["runs"] = runs
    for n in range(rounds):
        for what in WHAT:
            for who in WHO[n % 3 :] + WHO[: n % 3]:
                began, not_ours = time.perf_counter(), others()
                run = {"round": n, "seed": n, "what": what, "who": who} | workers[who].ask((what, n))
                wall, own = time.perf_counter() - began, run.pop("cpu")
                if not_ours is not None:
                    run["others_share"] = max((others() or 0.0) - not_ours - own, 0.0) / (threads * wall)
                runs.append(run)
                print(f"round {n + 1} of {rounds}, {what}, {who}: {run['seconds']:.2f} s", file=sys.stderr)
    for worker in workers.values():
        worker.end()
    kept["summary"] = summary(runs)
    print(table(kept["summary"], kept["warm_up"]["compile_seconds"]))
    print(on_what(device, args.precision))
    kept["others_share"] = max(run.get("others_share", 0.0) for run in runs)
    if kept["others_share"] > QUIET:
        print(f"\nNOT QUIET: others used up to {kept['others_share']:.0%} of the cores; these are no figures to quote.")

    keep(kept, args.out, f"compare_torch{'_quick' if args.quick else ''}", now)


if __name__ == "__main__":
    main()
