"""Time single convolutions of ResNet-20, forward and both gradients, by the libraries of XLA and of PyTorch.

    python -m experiments.benchmarks.convolutions              # batches of 272, all cores
    taskset -c 0 python -m experiments.benchmarks.convolutions # one core

3 x 3, stride 1, the widths of the three stages. XLA as it comes (jaxlib 0.10:
YNNPACK), XLA with Eigen (`jaxunlearn.tune_cpu` asks for it), PyTorch: each in a
process of its own, in turn. "Cores" is CPU time over wall-clock time. Of the weight gradient all
forms of `jaxunlearn.models._conv`, with the number of images in a group; and
BatchNorm with ReLU, forward and backward, where no library is called.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

STAGES = ((32, 16), (16, 32), (8, 64))  # side, channels
XLA, EIGEN, TORCH = "XLA as it comes", "XLA, Eigen", "PyTorch"
FORMS = {"convolution": (8, 16, 32), "narrow product": (2, 4, 8)}
REPEATS = 15


def _arrays(n: int, side: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = (n, side, side, channels), (n, side, side, channels), (3, 3, channels, channels)
    x, dy, w = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, dy, w


def _ours(n: int, side: int, channels: int) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp
    from jax import lax

    from jaxunlearn.models import _conv

    x, dy, w = map(jnp.asarray, _arrays(n, side, channels))
    strides, padding = (1, 1), ((1, 1), (1, 1))

    def grouped(form: str, size: int, x: Any, dy: Any, w: Any) -> Any:
        if form == "convolution":
            of = partial(_conv._channels_as_batch, w=w, strides=strides, padding=padding)
        else:
            of = partial(_conv._shifted_on_both_sides, w=w, padding=padding)

        def add(i: Any, dw: Any) -> Any:
            return dw + of(*(lax.dynamic_slice_in_dim(a, i * size, size) for a in (x, dy)))

        return lax.fori_loop(0, n // size, add, jnp.zeros_like(w))

    def normalised(x: Any) -> Any:
        mean, var = jnp.mean(x, (0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
        return jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5))

    calls = {
        "forward": lambda x, dy, w: _conv._conv(x, w, strides, padding),
        "input gradient": lambda x, dy, w: _conv._input_gradient(dy, x, w, strides, padding),
        "weight gradient": lambda x, dy, w: _conv._weight_gradient(dy, x, w, strides, padding),
    }
    calls |= {f"- {form}, {size}": partial(grouped, form, size) for form, sizes in FORMS.items() for size in sizes}
    calls["BatchNorm, ReLU"] = lambda x, dy, w: jax.vjp(normalised, x)[1](dy)
    jitted = {name: jax.jit(call) for name, call in calls.items()}
    return {name: lambda call=call: jax.block_until_ready(call(x, dy, w)) for name, call in jitted.items()}


def _torch(n: int, side: int, channels: int) -> dict[str, Callable[[], Any]]:
    import torch
    import torch.nn.functional as F

    from experiments.benchmarks.compare_torch import nchw

    x, dy, w = _arrays(n, side, channels)
    images, grads, kernel = nchw(x), nchw(dy), torch.from_numpy(np.transpose(w, (3, 2, 0, 1)).copy())
    wanted = images.clone().requires_grad_()

    def gradient(mask: list[bool]) -> Any:
        options = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        return torch.ops.aten.convolution_backward(grads, images, kernel, None, *options, mask)

    def normalised() -> None:
        wanted.grad = None
        F.relu(F.batch_norm(wanted, None, None, training=True)).backward(grads)

    return {
        "forward": lambda: F.conv2d(images, kernel, padding=1),
        "input gradient": lambda: gradient([True, False, False]),
        "weight gradient": lambda: gradient([False, True, False]),
        "BatchNorm, ReLU": normalised,
    }


def _work(pipe: Any, who: str, n: int, cores: int) -> None:
    from experiments.benchmarks.machine import limit_cores
    from jaxunlearn import _cpu, tune_cpu

    limit_cores(cores)
    if who == XLA:
        _cpu.convolve_on_all_cores = lambda: None  # type: ignore[assignment]  # the memory is kept all the same
    tune_cpu()
    for side, channels in iter(pipe.recv, None):
        calls, found = (_torch if who == TORCH else _ours)(n, side, channels), {}
        for name, call in calls.items():
            call()  # compiles
            taken = []
            for _ in range(REPEATS):
                began, cpu = time.perf_counter(), time.process_time()
                call()
                taken.append((time.perf_counter() - began, time.process_time() - cpu))
            wall, cpu = (np.array(part) for part in zip(*taken, strict=True))
            quartiles = [1000 * q for q in statistics.quantiles(wall, n=4)]
            found[name] = {"ms": quartiles, "cores": float(np.median(cpu / wall))}
        pipe.send(found)


def main(argv: list[str] | None = None) -> None:
    """Measure all and print one row a stage and call."""
    from experiments.benchmarks.machine import Worker, limit_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=272)
    parser.add_argument("--threads", type=int, help="cores for all (all that are available)")
    args = parser.parse_args(argv)
    if args.images < 32:
        parser.error(f"--images must be at least 32, the largest group; got {args.images}")
    cores = limit_cores(args.threads)
    workers = {who: Worker(_work, who, args.images, cores) for who in (XLA, EIGEN, TORCH)}
    print(f"{args.images} images, {cores} cores; ms: median (quartiles), cores in use\n")
    print(f"| stage | | {' | '.join(workers)} |\n|---|---|---|---|---|")
    for side, channels in STAGES:
        found = {who: worker.ask((side, channels)) for who, worker in workers.items()}
        for name in found[XLA]:
            cells = []
            for rows in found.values():
                row = rows.get(name)
                if row is None:
                    cells.append("-")
                else:
                    low, middle, high = row["ms"]
                    cells.append(f"{middle:.1f} ({low:.1f}-{high:.1f}), {row['cores']:.1f}")
            print(f"| {side} x {side}, {channels} | {name} | {' | '.join(cells)} |", flush=True)
    for worker in workers.values():
        worker.end()


if __name__ == "__main__":
    main()
