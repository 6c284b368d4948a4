"""Time every phase of unlearning: ours, PyTorch as published, PyTorch tuned; three networks, three sizes of forget set.

    python -m experiments.benchmarks.phases            # all: an hour or more on 2 cores
    python -m experiments.benchmarks.phases --quick    # ResNet-20, k = 16, small budgets: under three minutes
    python -m experiments.benchmarks.phases --picture F.png --from RESULT.json
    python -m experiments.benchmarks.phases --device gpu --precision default

Each contestant is a process of its own, so that its peak memory is its own; they
do the same phase in turn, the order rotating by repeat, so that what a machine
does meanwhile meets all. The first time a contestant does a phase warms it up;
of ours, what JAX spent compiling then stands in a column of its own.

A phase's work is the same for all three (`Budget`): adversarial images by
targeted L2-PGD; MAS on the forget set as published; per-example gradients of
proxies and their Gram matrix; steps of ADV+IMP with BatchNorm in train mode, D_f
looked at after each; logits of many images. Arithmetic is counted from the
network's forward pass F (as traced, an image): 2 F an input gradient, 3 F a weight gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OURS, PUBLISHED, TUNED = "ours", "torch published", "torch tuned"
WHO = (OURS, PUBLISHED, TUNED)
PHASES = ("attack", "importance", "curvature", "unlearning", "evaluation")
NETWORKS = ("cifar_resnet20", "resnet18_cifar", "vit_tiny_cifar")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of each phase is done.

    Attributes:
      draws, iterations: of the attack; rows: proxies of the curvature; steps: of unlearning; images: of the evaluation.
    """

    draws: int
    iterations: int
    rows: int
    steps: int
    images: int


FULL = {
    "cifar_resnet20": Budget(4, 10, 64, 4, 2000),
    "resnet18_cifar": Budget(1, 3, 8, 2, 500),
    "vit_tiny_cifar": Budget(1, 3, 16, 2, 500),
}
QUICK = {"cifar_resnet20": Budget(2, 5, 32, 2, 1000)}


class Ours:
    """This library, jitted; phases return when their numbers are there."""

    def __init__(self, arch: str, k: int, budget: Budget, *, device: str) -> None:
        import jax

        from experiments.benchmarks.machine import compile_clock
        from jaxunlearn import importance, loop, methods
        from jaxunlearn._config import static, traced
        from jaxunlearn._types import Batch, Problem

        self.jax, self.budget, self.device, self.compiling = jax, budget, device, compile_clock()
        self.model, x, y, self.many = _case(arch, k, budget)
        self.forget = Batch.of(x, y)
        spec = methods.get("adv-imp")
        config = dataclasses.replace(spec.Config.published(), draws=budget.draws, attack_steps=1)
        self.unlearner, self.config = spec.make(static(config)), config
        problem = Problem(model=self.model, forget=self.forget)
        self.start = loop.start(self.unlearner, jax.random.key(0), problem, traced(config))
        self.advance = jax.jit(loop.advance, static_argnums=0, static_argnames=("phase", "part"))
        self.segment = jax.jit(loop.segment, static_argnums=0, static_argnames=("phase", "size"))
        self.mas = importance.mas(
            self.model.apply_fn, variant="batch_mean", accumulate="released", train=True, batch_size=32
        )

    def attack(self, seed: int) -> Any:
        from jaxunlearn import attacks

        return attacks.adversarial_set(
            self.jax.random.key(seed),
            self.model,
            self.forget,
            draws=self.budget.draws,
            epsilon=4.0,
            step_size=0.1,
            steps=self.budget.iterations,
            targets="published",
        ).x

    def importance(self, seed: int) -> Any:
        return self.mas(self.model.params, self.model.model_state, self.forget.x)

    def curvature(self, seed: int) -> Any:
        from jaxunlearn import curvature

        classes = np.eye(self.model.spec.num_classes, dtype=np.float32)
        paths = curvature.select_paths(self.model.params)
        jacobian = curvature.Jacobian(curvature.LogitDirection(self.model.apply_fn), paths)
        x = self.many[: self.budget.rows]
        rows = jacobian.rows(self.model.params, self.model.model_state, (x, classes[np.arange(len(x)) % 10]))
        return rows @ rows.T

    def unlearning(self, seed: int) -> Any:
        state = self.start
        if self.device == "gpu":  # as the loop does there: no look from the host between steps
            return self.segment(self.unlearner, state, np.int32(self.budget.steps), phase=0)[0].inner.model.params
        period = self.unlearner.phases[0].draws(state.inner).period
        for t in range(self.budget.steps):
            state, _ = self.advance(self.unlearner, state, phase=0, part=period[t % len(period)])
            bool(state.done)  # the loop looks after each step
        return state.inner.model.params

    def evaluation(self, seed: int) -> Any:
        from jaxunlearn import inference

        return inference.logits(self.model, self.many)

    def timed(self, phase: str, seed: int) -> dict[str, float]:
        before, began = self.compiling(), time.perf_counter()
        self.jax.block_until_ready(getattr(self, phase)(seed))
        return {"seconds": time.perf_counter() - began, "compile": self.compiling() - before}

    def peak(self) -> int:
        """Return the most bytes that were in use on the GPU, or by the process."""
        return self.jax.devices()[0].memory_stats()["peak_bytes_in_use"] if self.device == "gpu" else _process_peak()


class Theirs:
    """Eager PyTorch, as published or tuned."""

    def __init__(
        self, arch: str, k: int, budget: Budget, *, tuned: bool, device: str, wait: Callable[[], None]
    ) -> None:
        import torch

        from experiments.benchmarks import torch_networks
        from experiments.benchmarks.compare_torch import nchw

        self.torch, self.budget, self.tuned, self.wait = torch, budget, tuned, wait
        self.device = {"cpu": "cpu", "gpu": "cuda"}[device]
        model, x, y, many = _case(arch, k, budget)
        self.model = torch_networks.twin(model).to(self.device)
        given = (nchw(x), torch.tensor(y).long(), nchw(many))
        self.x, self.y, self.many = (tensor.to(self.device) for tensor in given)
        generator = torch.Generator().manual_seed(0)
        shape = (budget.draws, k)
        self.targets = torch.randint(0, 10, shape, generator=generator).to(self.device)
        self.starts = torch.rand((*shape, *self.x.shape[1:]), generator=generator).to(self.device)
        # What the steps of unlearning see beside the forget set; only its number matters here.
        near = (self.x[None] + 0.01 * self.starts).clamp(0, 1).flatten(0, 1), self.targets.flatten()
        self.adversarial = near

    def attack(self, seed: int) -> Any:
        from experiments.benchmarks import torch_l2ul

        iterations = self.budget.iterations
        return torch_l2ul.attack(self.model, self.x, self.targets, self.starts, iterations=iterations, tuned=self.tuned)

    def importance(self, seed: int) -> Any:
        from experiments.benchmarks import torch_l2ul

        return torch_l2ul.importance(self.model, self.x)

    def curvature(self, seed: int) -> Any:
        x, label = self.many[: self.budget.rows], self.torch.arange(self.budget.rows, device=self.device) % 10
        names, kernels = zip(*((n, p) for n, p in self.model.named_parameters() if p.ndim > 1), strict=True)
        self.model.eval()
        if not self.tuned:
            rows = []
            for image, c in zip(x.split(1), label, strict=True):
                grads = self.torch.autograd.grad(self.model(image)[0, c], kernels)
                rows.append(self.torch.cat([g.flatten() for g in grads]))
            made = self.torch.stack(rows)
            return made @ made.T
        func = self.torch.func
        fixed = {name: value.detach() for name, value in self.model.state_dict().items() if name not in names}

        def logit(params: dict[str, Any], image: Any, c: Any) -> Any:
            return func.functional_call(self.model, fixed | params, (image[None],))[0].gather(0, c[None])[0]

        params = {name: p.detach() for name, p in zip(names, kernels, strict=True)}
        grads = func.vmap(func.grad(logit), (None, 0, 0), chunk_size=16)(params, x, label)
        made = self.torch.cat([g.flatten(1) for g in grads.values()], 1)
        return made @ made.T

    def unlearning(self, seed: int) -> Any:
        import copy

        from experiments.benchmarks import torch_l2ul

        model = copy.deepcopy(self.model)
        weights = {name: self.torch.ones_like(p) for name, p in model.named_parameters()}
        steps, y = self.budget.steps, self.y
        settings: dict[str, Any] = dict(lr=1e-5, max_steps=steps, tuned=self.tuned, look_first=False, stop=False)
        torch_l2ul.unlearn(model, self.x, y, self.adversarial, weights, **settings)
        return model

    def evaluation(self, seed: int) -> Any:
        self.model.eval()
        mode = self.torch.inference_mode if self.tuned else self.torch.no_grad
        size = 256 if self.tuned else 1000
        with mode():
            return [self.model(part).cpu() for part in self.many.split(size)]

    def timed(self, phase: str, seed: int) -> dict[str, float]:
        self.wait()
        began = time.perf_counter()
        getattr(self, phase)(seed)
        self.wait()
        return {"seconds": time.perf_counter() - began, "compile": 0.0}

    def peak(self) -> int:
        """Return the most bytes that were in use on the GPU, or by the process."""
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else _process_peak()


def _case(arch: str, k: int, budget: Budget) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return our network, a forget set that it gets right, and images to measure on."""
    import jax

    from experiments import real
    from jaxunlearn import inference, models

    source = real.cifar10()
    if arch == "cifar_resnet20":
        model = real.network(arch)
    else:
        model = models.from_recipe(models.recipe(arch), key=jax.random.key(0))
    rows = source.splits["train"][:k]
    x = source.images(rows)
    # Fresh weights know nothing: what they say is what is to be forgotten.
    y = source.labels[rows] if arch == "cifar_resnet20" else inference.logits(model, x).argmax(1)
    return model, x, y.astype(np.int32), source.images(source.splits["test"][: max(budget.images, budget.rows)])


def _process_peak() -> int:
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _worker(pipe: Any, who: str, arch: str, k: int, budget: Budget, cores: int, device: str, precision: str) -> None:
    """Do phases as they are asked for, until None."""
    from experiments.benchmarks.machine import limit_cores, settle
    from jaxunlearn import tune_cpu

    limit_cores(cores)
    wait = settle(device, precision, ours=who == OURS)
    if who != PUBLISHED:
        tune_cpu()
    contestant: Ours | Theirs
    if who == OURS:
        contestant = Ours(arch, k, budget, device=device)
    else:
        contestant = Theirs(arch, k, budget, tuned=who == TUNED, device=device, wait=wait)
    for phase, seed in iter(pipe.recv, None):
        pipe.send(contestant.timed(phase, seed) | {"peak": contestant.peak()})


def _ceiling(pipe: Any, archs: tuple[str, ...], cores: int, device: str, precision: str) -> None:
    """Send what a large matrix product and a large copy reach here, and by network what an image takes.

    "forward": FLOPs of its forward pass; "input gradient bytes": what the compiled input gradient of 64 images reads
    and writes by XLA's count, an image.
    """
    import jax
    import jax.numpy as jnp
    import torch

    from experiments.benchmarks.machine import limit_cores, settle
    from jaxunlearn import models

    limit_cores(cores)
    settle(device, precision, ours=True)
    forward, moved = {}, {}
    for arch in archs:
        model = models.from_recipe(models.recipe(arch), key=jax.random.key(0))
        x = jnp.zeros((64, *model.spec.input_shape))
        forward[arch] = float(jax.jit(lambda x, model=model: model(x)).lower(x[:1]).cost_analysis()["flops"])
        slope = jax.jit(jax.grad(lambda x, model=model: jnp.sum(jax.nn.logsumexp(model(x), axis=-1))))
        moved[arch] = float(slope.lower(x).compile().cost_analysis()["bytes accessed"]) / 64
    n = 2048 if device == "cpu" else 8192
    a, big = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32), np.zeros(2**26, np.float32)
    ours, copied = jnp.asarray(a), jnp.asarray(big)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
    best, copying = _best(lambda: product(ours).block_until_ready()), _best(lambda: copy(copied).block_until_ready())
    if device == "cpu":
        theirs, filled = torch.from_numpy(a), torch.from_numpy(big)
        best, copying = min(best, _best(lambda: theirs @ theirs)), min(copying, _best(filled.clone))
    pipe.send(
        {
            "forward": forward,
            "input gradient bytes": moved,
            "product": n,
            "flops": 2 * n**3 / best,
            "bytes": 2 * big.nbytes / copying,
        }
    )


def _best(run: Callable[[], Any], repeats: int = 5) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def work(phase: str, k: int, budget: Budget) -> tuple[float, float]:
    """Return how many images a phase handles, and how many forward passes' arithmetic an image takes."""
    adversarial = k * budget.draws
    in_step = min(k, 32) + min(adversarial, 256)
    return {
        "attack": (adversarial, 2.0 * budget.iterations),
        "importance": (k, 3.0),
        "curvature": (budget.rows, 3.0),
        "unlearning": (budget.steps * in_step, 3.0 + k / in_step),
        "evaluation": (budget.images, 1.0),
    }[phase]


def measure(
    arch: str, k: int, budget: Budget, repeats: int, cores: int, device: str, precision: str
) -> list[dict[str, Any]]:
    """Return one row for each phase, contestant and repeat."""
    from experiments.benchmarks.machine import Worker, others_clock

    others, rows = others_clock(), []
    workers = {who: Worker(_worker, who, arch, k, budget, cores, device, precision) for who in WHO}
    for phase in PHASES:
        for repeat in range(-1, repeats):  # -1 warms up
            for who in WHO[repeat % 3 :] + WHO[: repeat % 3]:
                began, before = time.perf_counter(), others()
                row = workers[who].ask((phase, max(repeat, 0)))
                wall = time.perf_counter() - began
                row |= {"network": arch, "k": k, "phase": phase, "who": who, "repeat": repeat}
                if before is not None:
                    row["others_share"] = max((others() or 0.0) - before - row["seconds"] * cores, 0.0) / (cores * wall)
                rows.append(row)
        last = {row["who"]: row["seconds"] for row in rows if row["phase"] == phase}
        said = ", ".join(f"{who} {seconds:.2f} s" for who, seconds in last.items())
        print(f"{arch}, k = {k}, {phase}: {said}", file=sys.stderr)
    for worker in workers.values():
        worker.end()
    return rows


def summary(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return by network, k, phase and contestant: median, range, ratio to PyTorch as published in the same repeat."""
    out, rows, ceiling = [], kept["rows"], kept["ceiling"]
    cells = dict.fromkeys((row["network"], row["k"], row["phase"]) for row in rows)
    for arch, k, phase in cells:
        budget = Budget(**kept["budgets"][arch])
        images, passes = work(phase, k, budget)
        cell = [row for row in rows if (row["network"], row["k"], row["phase"]) == (arch, k, phase)]
        base = {row["repeat"]: row["seconds"] for row in cell if row["who"] == PUBLISHED}
        for who in WHO:
            own = {row["repeat"]: row for row in cell if row["who"] == who}
            seconds = [row["seconds"] for n, row in own.items() if n >= 0]
            ratios = [base[n] / row["seconds"] for n, row in own.items() if n >= 0]
            rate = images / statistics.median(seconds)
            out.append(
                {
                    "network": arch,
                    "k": k,
                    "phase": phase,
                    "who": who,
                    "seconds": statistics.median(seconds),
                    "seconds_range": [min(seconds), max(seconds)],
                    "times_as_fast": statistics.median(ratios),
                    "times_as_fast_range": [min(ratios), max(ratios)],
                    "images_per_second": rate,
                    "share_of_ceiling": rate * passes * ceiling["forward"][arch] / ceiling["flops"],
                    **_copying(arch, phase, rate * passes / 2, ceiling),
                    "compile": own[-1]["compile"],
                    "peak_gib": max(row["peak"] for row in own.values()) / 2**30,
                }
            )
    return out


def _copying(arch: str, phase: str, gradients: float, ceiling: dict[str, Any]) -> dict[str, float]:
    """Return the attack's share of the bytes a second that a copy reaches, from its input gradients a second."""
    if phase != "attack" or "input gradient bytes" not in ceiling:  # earlier results have no such count
        return {}
    return {"share_of_copy": gradients * ceiling["input gradient bytes"][arch] / ceiling["bytes"]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the summary as Markdown."""
    lines = [
        "| network | k | phase | who | s, median (range) | times as fast as published (range) | images/s "
        "| share of ceiling | compile, s | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["seconds_range"]
        slow, fast = row["times_as_fast_range"]
        cells = [
            row["network"],
            str(row["k"]),
            row["phase"],
            row["who"],
            f"{row['seconds']:.2f} ({low:.2f}-{high:.2f})",
            f"{row['times_as_fast']:.2f} ({slow:.2f}-{fast:.2f})",
            f"{row['images_per_second']:,.0f}",
            f"{row['share_of_ceiling']:.0%}",
            f"{row['compile']:.1f}" if row["who"] == OURS else "-",
            f"{row['peak_gib']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def others_share(rows: list[dict[str, Any]]) -> float:
    """Return the share of the cores that others used in the timed runs of the phase where it was largest.

    Not in the warm-up, while contestants still start; over a phase's runs together, as the clock of CPU time ticks
    every 10 ms, which is much of one short run.
    """
    timed = [row for row in rows if row["repeat"] >= 0 and "others_share" in row]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in timed:
        groups.setdefault((row["network"], row["k"], row["phase"]), []).append(row)
    shares = (
        sum(row["others_share"] * row["seconds"] for row in group) / sum(row["seconds"] for row in group)
        for group in groups.values()
    )
    return max(shares, default=0.0)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how many times as fast as PyTorch as published each phase is, by network and k."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    archs, sizes = (list(dict.fromkeys(row[name] for row in rows)) for name in ("network", "k"))
    shape = (len(archs), len(sizes))
    size = (1.2 + 3.2 * shape[1], 0.6 + 2.7 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, sharex="row", sharey=True, squeeze=False, layout="constrained")
    for ax, (arch, k) in zip(axes.flat, itertools.product(archs, sizes), strict=True):
        if not any((row["network"], row["k"]) == (arch, k) for row in rows):
            ax.set_axis_off()  # not run
            continue
        for shift, who, colour in ((-0.2, OURS, "#0969da"), (0.2, TUNED, "#bc4c00")):
            own = {r["phase"]: r for r in rows if (r["network"], r["k"], r["who"]) == (arch, k, who)}
            value = [own[phase]["times_as_fast"] for phase in PHASES]
            low, high = ([own[phase]["times_as_fast_range"][i] for phase in PHASES] for i in (0, 1))
            error = np.abs([np.subtract(value, low), np.subtract(high, value)])
            place = np.arange(len(PHASES)) + shift
            ax.barh(place, value, 0.36, xerr=error, color=colour, label=who, error_kw={"lw": 1})
        ax.axvline(1, color="0.4", lw=1, ls="--")
        ax.set(title=f"{arch}, k = {k}", yticks=range(len(PHASES)), yticklabels=PHASES)
        ax.grid(axis="x", alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("times as fast as PyTorch as published")
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)
    print(path)


def main(argv: list[str] | None = None) -> None:
    """Run all cells, print the table, write the JSON and the picture."""
    from experiments.benchmarks.machine import (
        QUIET as QUIET_SHARE,
        Worker,
        add_device_flags,
        found_device,
        hardware,
        keep,
        limit_cores,
        on_what,
        positive,
        positives,
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--networks", help=f"of {', '.join(NETWORKS)}; all")
    parser.add_argument("--k", type=positives, help="sizes of the forget set (16,64,256)")
    parser.add_argument("--repeats", type=positive, help="3, quick 2")
    parser.add_argument("--threads", type=positive, help="cores for all (all that are available)")
    add_device_flags(parser)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument(
        "--from", dest="sources", type=Path, nargs="+", help="print and draw earlier results, run nothing"
    )
    parser.add_argument("--picture", type=Path, help="PNG file")
    args = parser.parse_args(argv)
    if args.sources is not None:
        for source in args.sources:
            if not source.is_file():
                parser.error(f"--from {source}: there is no such file")
        found = (row for source in args.sources for row in summary(json.loads(source.read_text())))
        # What a later file has, too, is taken from there.
        rows = list({(row["network"], row["k"], row["phase"], row["who"]): row for row in found}.values())
        print(table(rows))
        if args.picture:
            picture(rows, args.picture)
        return
    budgets = QUICK if args.quick else FULL
    archs = tuple(args.networks.split(",")) if args.networks else tuple(budgets)
    for arch in archs:
        if arch not in budgets:
            parser.error(f"--networks {arch}: there is no such network here, only {', '.join(budgets)}")
    sizes = args.k or ([16] if args.quick else [16, 64, 256])
    repeats = args.repeats or (2 if args.quick else 3)
    cores, now = limit_cores(args.threads), datetime.datetime.now(datetime.UTC)
    device = found_device(args.device)
    place = (device["device"], args.precision)
    ceiling = Worker(_ceiling, archs, cores, *place).answer()
    flags = f"--networks {','.join(archs)} --k {','.join(map(str, sizes))} --repeats {repeats}"
    kept: dict[str, Any] = {
        "command": f"python -m experiments.benchmarks.phases {'--quick ' if args.quick else ''}{flags}",
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware(cores) | device,
        "ceiling": ceiling,
        "budgets": {arch: dataclasses.asdict(budgets[arch]) for arch in archs},
        "others_share": 0.0,
        "rows": [],
    }
    for arch, k in itertools.product(archs, sizes):
        kept["rows"] += measure(arch, k, budgets[arch], repeats, cores, *place)
        kept["others_share"] = others_share(kept["rows"])
        # After every cell: an hour's figures are not to hang on the last minute.
        keep(kept, args.out, f"phases{'_quick' if args.quick else ''}", now)
    print(table(summary(kept)))
    reached = f"{ceiling['flops'] / 1e9:.0f} GFLOP/s, copy {ceiling['bytes'] / 2**30:.1f} GiB/s"
    print(f"\nCeiling, measured in this run: matrix product of {ceiling['product']:,} {reached}.")
    for row in summary(kept):
        if (row["phase"], row["who"]) == ("attack", OURS) and "share_of_copy" in row:
            print(f"Attack, {row['network']}, k = {row['k']}: {row['share_of_copy']:.0%} of the copy's bytes a second.")
    print(on_what(device, args.precision))
    if kept["others_share"] > QUIET_SHARE:
        print(f"NOT QUIET: others used up to {kept['others_share']:.0%} of the cores; these are no figures to quote.")
    if args.picture:
        picture(summary(kept), args.picture)


if __name__ == "__main__":
    main()
