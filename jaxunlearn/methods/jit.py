"""JiT: smooth the network around the forget instances (Foster et al. 2024, "An Information Theoretic Approach").

Zero-shot: the network and D_f only. For each batch of D_f, with logits f,
noise n_j, x'_j = clip(x + sigma n_j) and no gradient through f(x'_j)::

    l = (1 / N) sum_j sum_x ||f(x) - f(x'_j)|| / ||x - x'_j||          theta <- theta - eta grad l

one pass over D_f by plain SGD. The sum over the batch ties eta to the batch
size. The aim is that forget instances look unseen, not that they are
misclassified: the stopping rule only ends a run that has gone that far.

Departures from the published code, each an option: JIT-1, there gradients
accumulate over the steps; JIT-2, there the network is in train mode, dropout
included; JIT-4, there the smallest and largest value of the batch bound the
noisy images. JIT-3: a pair with x = x' or f(x) = f(x') adds 0 to value and
gradient, where the published code divides by 0. JIT-5: the authors' notebook
compares a retrained model with itself; nothing here does.

``sigma`` is in units of the network's inputs (the box of the model). The
published values are for inputs divided by a standard deviation s: there sigma
0.01 and eta 3e-4 (VGG without BatchNorm) stand for 0.01 s and 3e-4 s here. At
3e-4 one step on 16 images destroys a CIFAR-10 ResNet-20; the default is the
largest of 1e-5, 3e-5, 1e-4, 3e-4 at which its answers on held-out cut-and-paste
images agree with the original's on 95 % (mean of five forget sets; 3e-5: 90 %).
That is for one step on 16 images. A step on a full batch of 128 is eight times as
long, and a class takes many of them. In 39 steps on 384 images of one class of
CIFAR-10 (N = 3) that network lost none of their labels at 3.2e-8, 35 % at 3.2e-7,
where it was still right on 84 % of other training images, and diverged at 1e-6:
for n images start from 1.6e-4 / n and go up to ten times that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, Params, Problem
from jaxunlearn.methods._descent import Descent, DescentConfig, Rows, State, chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DescentConfig):
    """Hyper-parameters of JiT."""

    learning_rate: float = hparam(
        1e-5,
        "SGD learning rate, for a sum over the batch: made for 16 instances, for n start from 1.6e-4 / n",
        traced=True,
        low=0.0,
    )
    sigma: float = hparam(0.01, "standard deviation of the noise, in input units", traced=True, low=0.0)
    draws: int = hparam(25, "noisy copies of an instance, N", low=1)
    bounds: str = hparam(
        "box",
        "what noisy images are clipped to: the range of the inputs, or of the batch, as published",
        choices=("box", "batch"),
        deviation="JIT-4",
    )
    accumulate: bool = hparam(
        False, "step by the sum of all gradients so far, as published: they are never zeroed", deviation="JIT-1"
    )
    batch_norm: str = hparam(
        "frozen",
        "frozen: eval mode; update: train mode, dropout too, as published",
        choices=("frozen", "update"),
        deviation="JIT-2",
    )
    max_passes: int = hparam(1, "budget, in passes over the forget set", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the published settings (JIT-1, JIT-2, JIT-4); sigma and learning rate as for VGG, see the module."""
        return cls(learning_rate=3e-4, sigma=0.01, bounds="batch", accumulate=True, batch_norm="update", stop="budget")


@dataclasses.dataclass(frozen=True)
class JiT(Descent):
    """The method bound to its static settings."""

    def optimiser(self, hparams: Mapping[str, Array], problem: Problem | None = None) -> optax.GradientTransformation:
        return chain({**hparams, "momentum": jnp.ones(())} if self.config.accumulate else hparams)

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        """Return the sum over the batch; noise is keyed by step, instance and draw."""
        x, weight = rows.forget.x, rows.forget.weight
        low, high = _range(x, weight) if self.config.bounds == "batch" else model.spec.box
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows.forget.index)
        logits, model_state = self.logits(key, model, x)
        fixed = jax.lax.stop_gradient(model.params)

        def draw(model_state: Params, j: Array) -> tuple[Params, tuple[Array, Array]]:
            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, j), x.shape[1:], x.dtype))(keys)
            noisy = jnp.clip(x + state.hparams["sigma"] * noise, low, high)
            at = model.replace(params=fixed, model_state=model_state)
            there, model_state = self.logits(jax.random.fold_in(key, -1 - j), at, noisy)
            return model_state, (there, length(noisy - x))

        numbers = jnp.arange(self.config.draws)
        # Draws one after another: memory is that of one batch; no gradient passes through the loop.
        model_state, (there, distance) = jax.lax.scan(draw, model_state, numbers)
        apart = (distance > 0) & (weight > 0)[None]
        slope = length(logits[None] - jax.lax.stop_gradient(there), keep=2) / jnp.where(apart, distance, 1.0)
        return jnp.sum(jnp.where(apart, weight[None] * slope, 0.0)) / self.config.draws, model_state


def length(v: Array, *, keep: int = 1) -> Array:
    """Return the norm over all axes but the first ``keep``; value and gradient are 0 at 0.

    >>> jax.grad(lambda v: length(v)[0])(jnp.zeros((1, 2))).tolist()
    [[0.0, 0.0]]
    """
    square = jnp.sum(v * v, axis=tuple(range(keep, v.ndim)))
    away = square > 0
    return jnp.where(away, jnp.sqrt(jnp.where(away, square, 1.0)), 0.0)


def _range(x: Array, weight: Array) -> tuple[Array, Array]:
    """Return the smallest and the largest value of the instances that are no padding."""
    real = weight.reshape(-1, *(1,) * (x.ndim - 1)) > 0
    return jnp.min(x, where=real, initial=jnp.inf), jnp.max(x, where=real, initial=-jnp.inf)


def make(config: Config) -> JiT:
    """Bind JiT to its static settings."""
    return JiT(config)


SPEC = MethodSpec(
    name="jit",
    make=make,
    Config=Config,
    summary="smooth the network around the forget instances by noisy copies of them",
    goals=("misclassify",),
    cost="draws forward passes and one backward pass over the forget set",
    paper="Foster et al. 2024, arXiv 2402.01401",
    strength="learning_rate",
)
