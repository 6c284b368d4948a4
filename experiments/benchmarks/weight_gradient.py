"""Compare forms of the convolution's weight gradient inside a whole network's gradient, on one core, in turn.

    taskset -c 1 python -m experiments.benchmarks.weight_gradient                # ResNet-20, 16 to 256 images
    taskset -c 1 python -m experiments.benchmarks.weight_gradient --network resnet18_cifar --sizes 16,32 --repeats 7

Forms: ours (`jaxunlearn.models._conv`, groups of images in turn); all images in
one piece; patches and one matrix product; XLA's own gradient of
`lax.conv_general_dilated`; and for ResNet-20 the network in eager PyTorch. All
give the gradient of the mean cross-entropy in all weights, BatchNorm in train
mode, in a process that keeps its memory (`jaxunlearn.tune_cpu`; without it: --no-keep). Ratios are within
a repeat.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments import real
from experiments.benchmarks import torch_l2ul
from jaxunlearn import losses, models, tune_cpu
from jaxunlearn._types import Array, Model
from jaxunlearn.models import _conv

OURS, TORCH = "ours", "PyTorch"
now = _conv._weight_gradient


def piece(dy: Array, x: Array, w: Array, strides: Any, padding: Any) -> Array:
    """Convolve all images in one piece, as ours does with each of its groups."""
    return _conv._channels_as_batch(x, dy, w=w, strides=strides, padding=padding)


def patches(dy: Array, x: Array, w: Array, strides: Any, padding: Any) -> Array:
    """Multiply patches of all images with output gradients."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    shifted = _conv._shifted(padded, w.shape[:2], strides, dy.shape[1:3])
    matrix = jnp.concatenate(shifted, axis=-1).reshape(-1, w.shape[0] * w.shape[1] * w.shape[2])
    return (matrix.T @ dy.reshape(-1, w.shape[3])).reshape(w.shape)


def own(dy: Array, x: Array, w: Array, strides: Any, padding: Any) -> Array:
    """Leave it to XLA."""

    def conv(w: Array) -> Array:
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return jax.vjp(conv, w)[1](dy)[0]


FORMS = {OURS: now, "one piece": piece, "patches": patches, "XLA": own}


def gradient(model: Model, form: Callable[..., Array], x: Any, y: Any) -> Callable[[], Any]:
    """Return a compiled call with a form of the weight gradient."""

    def loss(params: Any, state: Any, x: Array, y: Array) -> Array:
        return losses.cross_entropy(model.apply_fn(params, state, x, train=True)[0], y).mean()

    _conv._weight_gradient = form  # looked up when the network is traced
    try:
        run = jax.jit(jax.grad(loss)).lower(model.params, model.model_state, x, y).compile()
    finally:
        _conv._weight_gradient = now
    return lambda: jax.block_until_ready(run(model.params, model.model_state, x, y))


def of_torch(x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return the same gradient in eager PyTorch."""
    torch.set_num_threads(1)
    network = torch_l2ul.load(real.weights("cifar_resnet20")).train()
    images, label = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y).long()

    def run() -> None:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(images), label).backward()

    return run


def main(argv: list[str] | None = None) -> None:
    """Measure and print one row a form and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar_resnet20")
    parser.add_argument("--sizes", default="16,32,128,256")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="let the C library give memory back")
    args = parser.parse_args(argv)
    if args.keep:
        tune_cpu()
    resnet20 = args.network == "cifar_resnet20"
    if resnet20:
        model = real.network(args.network)
    else:
        model = models.from_recipe(models.recipe(args.network), key=jax.random.key(0))
    print("| network | images | form | ms, median | times as fast as ours, median (quartiles) |\n|---|---|---|---|---|")
    for n in map(int, args.sizes.split(",")):
        x = np.random.default_rng(0).uniform(size=(n, *model.spec.input_shape)).astype(np.float32)
        y = np.arange(n, dtype=np.int32) % model.spec.num_classes
        runs = {name: gradient(model, form, x, y) for name, form in FORMS.items()}
        for name, run in runs.items():
            pairs = zip(jax.tree.leaves(run()), jax.tree.leaves(runs[OURS]()), strict=True)
            assert all(np.allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()) for a, b in pairs), name
        if resnet20:
            runs[TORCH] = of_torch(x, y)
            runs[TORCH]()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(args.repeats):
            turn = repeat % len(runs)
            for name in [*runs][turn:] + [*runs][:turn]:
                began = time.perf_counter()
                runs[name]()
                seconds[name].append(time.perf_counter() - began)
        for name, taken in seconds.items():
            ratios = [ours / other for ours, other in zip(seconds[OURS], taken, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            ms = 1000 * statistics.median(taken)
            print(f"| {args.network} | {n} | {name} | {ms:.1f} | {middle:.2f} ({low:.2f}-{high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
