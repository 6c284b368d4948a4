"""What only a GPU or TPU shows: what a precision costs and changes, and many requests in one program.

    python -m experiments.benchmarks.accelerator                        # without a GPU or TPU: says "not run"
    python -m experiments.benchmarks.accelerator --device cpu --quick   # shows that it runs, minutes on a CPU

Third-party ResNet-20, ADV+IMP with the published settings. First whole jobs on
the same forget set and seed, each precision of `jax.default_matmul_precision` in
a process of its own: seconds once compiled, and accuracy on the forget set, on a
fixed sample of the retain set and on test images. Then independent requests, each
with a forget set and a key of its own: all in one program under `jax.vmap`
(`jaxunlearn.loop.solve`; those that are done wait for the last) against one after
another with one compiled program, in alternation.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.machine import PRECISIONS, Worker, hardware, keep, limit_cores, spread


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Attributes:
      k, draws, iterations: instances and attack of the job; passes: its limit; images: measured of each of both sets.
      requests: how many; each, request_draws, request_iterations, steps: instances, attack and steps of one.
      repeats: of the requests.
    """

    k: int = 16
    draws: int = 20
    iterations: int = 100
    passes: int = 1000
    images: int = 5000
    requests: int = 64
    each: int = 4
    request_draws: int = 4
    request_iterations: int = 20
    steps: int = 20
    repeats: int = 5


QUICK = Budget(
    k=4,
    draws=2,
    iterations=3,
    passes=2,
    images=200,
    requests=2,
    each=2,
    request_draws=1,
    request_iterations=2,
    steps=2,
    repeats=2,
)


def _source() -> tuple[Any, Any]:
    from experiments import real

    return real.network("cifar_resnet20"), real.cifar10()


def _precision(pipe: Any, precision: str, budget: Budget, platform: str) -> None:
    """Send what a whole job took and left, done twice: the first compiles."""
    import jax

    from jaxunlearn import inference, loop, methods
    from jaxunlearn._types import Batch, Problem

    jax.config.update("jax_platforms", platform)
    jax.config.update("jax_default_matmul_precision", precision)
    model, source = _source()
    train, test = source.splits["train"], source.splits["test"]
    picked = np.random.default_rng(0).permutation(train)
    forget_rows, retain = picked[: budget.k], picked[budget.k :][: budget.images]
    problem = Problem(model=model, forget=Batch.of(source.images(forget_rows), source.labels[forget_rows]))
    config = dataclasses.replace(
        methods.get("adv-imp").Config.published(),
        draws=budget.draws,
        attack_steps=budget.iterations,
        max_passes=budget.passes,
    )
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        result = loop.run(problem, method="adv-imp", config=config, key=jax.random.key(0))
        seconds.append(time.perf_counter() - began)

    def right(of: Any, rows: np.ndarray) -> float:
        return float((inference.logits(of, source.images(rows)).argmax(1) == source.labels[rows]).mean())

    sets = {"forget": forget_rows, "retain": retain, "test": test[: budget.images]}
    pipe.send(
        {
            "precision": precision,
            "seconds": seconds[1],
            "steps": result.steps,
            "reason": result.stop_reason,
            "before": {name: right(model, rows) for name, rows in sets.items()},
            "after": {name: right(result.model, rows) for name, rows in sets.items()},
        }
    )


def _requests(pipe: Any, budget: Budget, platform: str) -> None:
    """Send the seconds of both ways, by repeat, and the steps of each request."""
    import jax

    from jaxunlearn import _config, loop, methods
    from jaxunlearn._types import Batch, Problem

    jax.config.update("jax_platforms", platform)
    model, source = _source()
    spec = methods.get("adv-imp")
    config = dataclasses.replace(
        spec.Config.published(),
        draws=budget.request_draws,
        attack_steps=budget.request_iterations,
        max_passes=budget.steps,
        forget_batch=budget.each,
        companion_batch=budget.each * budget.request_draws,
    )
    unlearner, strengths = spec.make(_config.static(config)), _config.traced(config)
    rows = np.random.default_rng(0).permutation(source.splits["train"])[: budget.requests * budget.each]
    sets = [Batch.of(source.images(part), source.labels[part]) for part in np.split(rows, budget.requests)]
    forget = jax.tree.map(lambda *leaves: np.stack(leaves), *sets)
    keys = jax.random.split(jax.random.key(0), budget.requests)
    each = [*zip(keys, sets, strict=True)]

    def one(key: Any, batch: Batch) -> Any:
        state = loop.solve(unlearner, key, Problem(model=model, forget=batch), strengths)
        return unlearner.finish(state.inner).params, state.step

    together, alone = jax.jit(jax.vmap(one)), jax.jit(one)

    ways: dict[str, Callable[[], Any]] = {
        "vmapped": partial(together, keys, forget),
        "one by one": lambda: [alone(*request) for request in each],
    }
    _, steps = jax.block_until_ready(ways["vmapped"]())
    jax.block_until_ready(ways["one by one"]())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(budget.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - began)
    pipe.send({"seconds": seconds, "steps": np.asarray(steps).tolist()})


def _found(pipe: Any) -> None:
    import jax

    pipe.send({"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind})


def table(kept: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    lines = [
        "| precision | s | steps | D_f before, after | D_r before, after | D_test before, after |",
        "|---|---|---|---|---|---|",
    ]
    for row in kept["precision"]:
        sets = [f"{row['before'][name]:.2%}, {row['after'][name]:.2%}" for name in ("forget", "retain", "test")]
        lines.append(f"| {row['precision']} | {row['seconds']:.2f} | {row['steps']} | {' | '.join(sets)} |")
    seconds = kept["requests"]["seconds"]
    ratios = [alone / together for together, alone in zip(seconds["vmapped"], seconds["one by one"], strict=True)]
    lines += ["", "| requests | vmapped, s | one by one, s | vmapped is |", "|---|---|---|---|"]
    cells = [spread(values) for values in (seconds["vmapped"], seconds["one by one"], ratios)]
    lines.append(f"| {len(kept['requests']['steps'])} | {cells[0]} | {cells[1]} | {cells[2]} times as fast |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure both, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=str(QUICK))
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="auto: not on a CPU")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    budget, found = QUICK if args.quick else Budget(), Worker(_found).answer()
    if args.device not in ("auto", "cpu", found["platform"]):
        parser.error(f"--device {args.device}: JAX sees none here, only {found['platform']}")
    if args.device == "auto" and found["platform"] == "cpu":
        print("GPU, TPU: not run, there is none here.")
        return
    platform = "cpu" if args.device == "cpu" else {"gpu": "cuda"}.get(found["platform"], found["platform"])
    cores, now = limit_cores(None), datetime.datetime.now(datetime.UTC)
    precision = []
    for name in PRECISIONS:
        precision.append(Worker(_precision, name, budget, platform).answer())
        print(f"precision {name}: {precision[-1]['seconds']:.2f} s", file=sys.stderr)
    kept = {
        "command": f"python -m experiments.benchmarks.accelerator --device {args.device}{' --quick' * args.quick}",
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware(cores) | {"device": "cpu" if platform == "cpu" else found["kind"]},
        "budget": dataclasses.asdict(budget),
        "precision": precision,
        "requests": Worker(_requests, budget, platform).answer(),
    }
    print(table(kept))
    if platform == "cpu":
        print("\nOn the CPU, where a precision changes nothing. GPU, TPU: not run.")
    keep(kept, args.out, "accelerator", now)


if __name__ == "__main__":
    main()
