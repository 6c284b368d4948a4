"""How much each parameter matters for given instances.

Memory aware synapses (`mas`, Aljundi et al. 2018) and the diagonal of the Fisher information (`fisher`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxunlearn import _devices, _repeat, _validate
from jaxunlearn._types import ApplyFn, Array, Params, PyTree

Variant: TypeAlias = Literal["per_example", "batch_mean"]
Accumulate: TypeAlias = Literal["clean", "released"]
VARIANTS: tuple[Variant, ...] = ("per_example", "batch_mean")
ACCUMULATE: tuple[Accumulate, ...] = ("clean", "released")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAS:
    """The importance as a function of parameters and instances; equal settings compare equal. See `mas`."""

    apply_fn: ApplyFn
    microbatch_size: int = 16
    squared: bool = False
    variant: Variant = "per_example"
    accumulate: Accumulate = "clean"
    batch_size: int = 32
    train: bool = False
    loop: _repeat.Loop = "auto"

    def __post_init__(self) -> None:
        _validate.one_of("variant", self.variant, VARIANTS)
        _validate.one_of("accumulate", self.accumulate, ACCUMULATE)
        _validate.one_of("loop", self.loop, _repeat.LOOPS)
        _validate.positive_int("microbatch_size", self.microbatch_size)
        _validate.positive_int("batch_size", self.batch_size)
        for name, value in {"accumulate='released'": self.accumulate == "released", "train=True": self.train}.items():
            if value and self.variant != "batch_mean":
                raise ValueError(f"{name} needs variant='batch_mean'; got variant={self.variant!r}")

    def __call__(self, params: Params, model_state: Params, x: Array, *, weight: Array | None = None) -> PyTree:
        """Return the importance of every parameter.

        Args:
          params, model_state: of the network.
          x: (n, *input_shape), inside the box. Where its first axis is
            sharded over devices, each measures its own instances; under jit,
            where that cannot be seen, each measures all.
          weight: (n,), at least 0, not all 0; 0 is padding; None is all 1.

        Returns:
          A tree like ``params``, non-negative.

        Raises:
          ValueError: for no instances, weights of another length, negative or
            all zero, and for padding with ``train=True``, where it would
            enter the batch statistics.
        """
        x, weight = xs = _checked(x, weight)
        if self.train and not _repeat.is_traced(weight) and not np.all(_devices.host(weight)):
            raise ValueError("weight must have no zeros with train=True: padding would enter the batch statistics")
        if self.variant == "per_example":
            total, n = _repeat.accumulate(
                _per_example,
                xs,
                params,
                model_state,
                microbatch_size=self.microbatch_size,
                statics=(self.apply_fn, self.squared),
                loop=self.loop,
                label="importance",
            )
        else:
            zeros = jax.tree.map(jnp.zeros_like, params)
            total, _, n = _repeat.fold(
                _batch_mean,
                (zeros, zeros, jnp.zeros((), weight.dtype)),
                xs,
                params,
                model_state,
                microbatch_size=self.batch_size,
                statics=(self.apply_fn, self.squared, self.train, self.accumulate == "released"),
                exact=self.train,
                chunks="spread",
                loop=self.loop,
                label="importance",
            )
        return _like(params, jax.tree.map(lambda o: (o / _at_least_tiny(n)).astype(o.dtype), total))


def mas(
    apply_fn: ApplyFn,
    *,
    microbatch_size: int = 16,
    squared: bool = False,
    variant: Variant = "per_example",
    accumulate: Accumulate = "clean",
    batch_size: int = 32,
    train: bool = False,
    loop: _repeat.Loop = "auto",
) -> MAS:
    """Make the importance by memory aware synapses (Aljundi et al. 2018; L2UL section "MAS").

    "per_example" is ``mean_i |d ||f(x_i)||_2 / d theta|``, whatever the
    batching. "batch_mean" is the published code's (deviation L2UL-4): for each
    batch of n_b consecutive instances the absolute gradient of the batch's
    mean norm, weighted n_b; divided by the number of instances. With
    "released" the gradients are never zeroed between batches (L2UL-5):
    ``(n_1 |g_1| + n_2 |g_1 + g_2| + ...) / n``.

    Args:
      apply_fn: the seam.
      microbatch_size: per-example gradients held at a time, on CPU at most eight a core; does not change the result.
      squared: the squared norm, as in the original MAS.
      variant: "per_example" or "batch_mean".
      accumulate: "clean" or "released"; the latter with "batch_mean" only.
      batch_size: instances of a batch of "batch_mean".
      train: run the network in train mode, on batch statistics (L2UL-6), with
        "batch_mean" only; the moved statistics are thrown away.
      loop: "auto", "host" or "device"; does not change the result.

    Returns:
      ``fn(params, model_state, x, *, weight=None) -> tree like params``, see `MAS`.

    Raises:
      ValueError, TypeError: for unknown or clashing settings.

    >>> linear = lambda params, state, x, *, train=False, rngs=None: (x @ params["w"], state)
    >>> mas(linear)({"w": jnp.array([[1.0, 0.0]])}, {}, jnp.array([[2.0]]))["w"].tolist()
    [[2.0, 0.0]]
    """
    return MAS(
        apply_fn=apply_fn,
        microbatch_size=microbatch_size,
        squared=squared,
        variant=variant,
        accumulate=accumulate,
        batch_size=batch_size,
        train=train,
        loop=loop,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher:
    """The diagonal of the Fisher information; equal settings compare equal. See `fisher`."""

    apply_fn: ApplyFn
    microbatch_size: int = 16
    loop: _repeat.Loop = "auto"

    def __post_init__(self) -> None:
        _validate.one_of("loop", self.loop, _repeat.LOOPS)
        _validate.positive_int("microbatch_size", self.microbatch_size)

    def __call__(self, params: Params, model_state: Params, x: Array, *, weight: Array | None = None) -> PyTree:
        """Return the diagonal for every parameter.

        Args:
          params, model_state, x, weight: as for `MAS`.

        Returns:
          A tree like ``params``, non-negative.

        Raises:
          ValueError: for no instances, weights of another length, negative or all zero.
        """
        x, weight = _checked(x, weight)
        split = _devices.split_of(x, weight)
        n = x.shape[0] // _devices.parts(split)
        one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        classes = _repeat.call.eval_shape(_logits, (self.apply_fn,), params, model_state, one).shape[-1]
        # A row is an instance and a block of its classes, so that one forward pass serves a block. The instance is
        # looked up: copies of images for every block would not be flat.
        blocks = -(-classes // self.microbatch_size)
        size = -(-classes // blocks)
        rows = np.tile(np.arange(n * blocks, dtype=np.int32), _devices.parts(split))
        total = _repeat.accumulate(
            _of_blocks,
            (rows // blocks, rows % blocks * size, np.ones(len(rows), np.float32)),
            params,
            model_state,
            own=(x, weight),
            microbatch_size=max(self.microbatch_size // size, 1),
            statics=(self.apply_fn, size),
            loop=self.loop,
            label="Fisher information",
        )
        whole = _at_least_tiny(jnp.sum(weight))
        return _like(params, jax.tree.map(lambda f: (f / whole).astype(f.dtype), total))


def fisher(apply_fn: ApplyFn, *, microbatch_size: int = 16, loop: _repeat.Loop = "auto") -> Fisher:
    """Make the diagonal of the Fisher information, an exact expectation over the network's own answers.

    ``mean_i sum_c p_c(x_i) (d log p_c(x_i) / d theta)^2`` with p the softmax
    of the logits: neither sampled nor from labels. It takes C gradients an
    instance, and one forward pass for each ``microbatch_size`` of them.

    Args:
      apply_fn: the seam; it runs in eval mode.
      microbatch_size: gradients held at a time, on CPU by each core; does not change the result.
      loop: "auto", "host" or "device"; does not change the result.

    Returns:
      ``fn(params, model_state, x, *, weight=None) -> tree like params``, see `Fisher`.

    Raises:
      ValueError, TypeError: for unknown settings.

    >>> linear = lambda params, state, x, *, train=False, rngs=None: (x @ params["w"], state)
    >>> fisher(linear)({"w": jnp.zeros((1, 2))}, {}, jnp.array([[2.0]]))["w"].tolist()  # p (1 - p) x^2
    [[1.0, 1.0]]
    """
    return Fisher(apply_fn=apply_fn, microbatch_size=microbatch_size, loop=loop)


def normalise(importance: PyTree) -> PyTree:
    """Map each tensor to [0, 1] by ``(o - min) / (max - min)``; 0 where that has no meaning.

    A tensor of constant importance, or with a NaN or infinity, has no order
    of importance: it becomes 0 everywhere (L2UL-7).

    >>> normalise({"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.ones(2)})["a"].tolist()
    [0.0, 0.5, 1.0]
    """

    def tensor(o: Array) -> Array:
        if o.size == 0:
            return o
        low = jnp.min(o)
        span = jnp.max(o) - low
        ordered = jnp.isfinite(span) & (span >= jnp.finfo(o.dtype).tiny)  # below: flushed to 0 / 0
        return jnp.where(ordered, (o - low) / jnp.where(ordered, span, 1.0), 0.0)

    return jax.tree.map(tensor, importance)


def holding_weight(importance: PyTree) -> PyTree:
    """Return 1 less the normalised importance: 0 is free to move, 1 is held (L2UL).

    1 everywhere in a tensor of constant or non-finite importance.

    >>> holding_weight({"a": jnp.array([1.0, 3.0]), "b": jnp.zeros(2)})["b"].tolist()
    [1.0, 1.0]
    """
    return jax.tree.map(lambda o: 1.0 - o, normalise(importance))


def _checked(x: Array, weight: Array | None) -> tuple[Array, Array]:
    """Return instances and their weights; raise ValueError where they are nothing to measure on."""
    x = jnp.asarray(x)
    weight = jnp.ones(x.shape[:1], jnp.float32) if weight is None else jnp.asarray(weight, jnp.float32)
    _validate.same_length("the importance's arguments", {"x": x, "weight": weight})
    _repeat.rows((x, weight))
    if not _repeat.is_traced(weight):
        values = _devices.host(weight)
        _validate.in_range("weight", values, 0.0)
        if not np.any(values):
            raise ValueError("weight must not be all zero: there is no instance to measure importance on")
    return x, weight


def _like(params: Params, importance: PyTree) -> PyTree:
    """Lay the importance of parameters that are sharded out as they are."""

    def laid(o: Array, p: Array) -> Array:
        if _repeat.is_traced(o, p) or not isinstance(getattr(p, "sharding", None), NamedSharding):
            return o
        return o if p.sharding.is_fully_replicated else jax.device_put(o, p.sharding)

    return jax.tree.map(laid, importance, params)


def _norm(apply_fn: ApplyFn, squared: bool, train: bool, params: Params, model_state: Params, x: Array) -> Array:
    """Return the norm of the logits per instance, (batch,); its gradient is 0 at 0."""
    # The published code measures in train mode by accident; with dropout it must at least be the same twice.
    rngs = {"dropout": jax.random.key(0)} if train else None
    logits, _ = apply_fn(params, model_state, x, train=train, rngs=rngs)
    sq = jnp.sum(logits * logits, axis=-1)
    if squared:
        return sq
    away = sq > 0
    return jnp.where(away, jnp.sqrt(jnp.where(away, sq, 1.0)), 0.0)


def _per_example(
    apply_fn: ApplyFn, squared: bool, chunk: tuple[Array, Array], params: Params, model_state: Params
) -> tuple[PyTree, Array]:
    x, weight = chunk

    def row(x: Array, weight: Array) -> PyTree:
        g = jax.grad(lambda p: _norm(apply_fn, squared, False, p, model_state, x[None])[0])(params)
        # select, not scale alone: a network may give NaN on padding
        return jax.tree.map(lambda g: jnp.where(weight > 0, weight * jnp.abs(g), 0.0).astype(g.dtype), g)

    return jax.tree.map(lambda g: jnp.sum(g, axis=0), jax.vmap(row)(x, weight)), jnp.sum(weight)


def _logits(apply_fn: ApplyFn, params: Params, model_state: Params, x: Array) -> Array:
    return apply_fn(params, model_state, x, train=False)[0]


def _of_blocks(
    apply_fn: ApplyFn,
    size: int,
    chunk: tuple[Array, Array, Array],
    instances: tuple[Array, Array],
    params: Params,
    model_state: Params,
) -> PyTree:
    """Return the sum over rows (instance, first class of a block) of weight * p_c * (d log p_c)^2; 0 is padding."""
    x, weight = instances

    def row(i: Array, first: Array, real: Array) -> PyTree:
        def log_p(params: Params) -> Array:
            return jax.nn.log_softmax(_logits(apply_fn, params, model_state, x[i][None])[0])

        value, pull = jax.vjp(log_p, params)
        block = jax.nn.one_hot(first + jnp.arange(size), len(value), dtype=value.dtype)  # past the last class: zeros
        grads = jax.vmap(lambda direction: pull(direction)[0])(block)
        w, p = real * weight[i], block @ jnp.exp(value)

        def squares(g: Array) -> Array:
            # select, not scale alone: a network may give NaN on padding
            return jnp.where(w > 0, w * jnp.tensordot(p, g * g, axes=1), 0.0).astype(g.dtype)

        return jax.tree.map(squares, grads)

    return jax.tree.map(lambda g: jnp.sum(g, axis=0), jax.vmap(row)(*chunk))


def _batch_mean(
    apply_fn: ApplyFn,
    squared: bool,
    train: bool,
    released: bool,
    carry: tuple[PyTree, PyTree, Array],
    chunk: tuple[Array, Array],
    params: Params,
    model_state: Params,
) -> tuple[PyTree, PyTree, Array]:
    (omega, before, n), (x, weight) = carry, chunk
    n_b = jnp.sum(weight)

    def mean(params: Params) -> Array:
        norms = jnp.where(weight > 0, weight * _norm(apply_fn, squared, train, params, model_state, x), 0.0)
        return jnp.sum(norms) / _at_least_tiny(n_b)

    g = jax.tree.map(jnp.add, before, jax.grad(mean)(params))
    omega = jax.tree.map(lambda o, g: o + (n_b * jnp.abs(g)).astype(o.dtype), omega, g)
    return omega, g if released else before, n + n_b


def _at_least_tiny(n: Array) -> Array:
    return jnp.maximum(n, jnp.finfo(n.dtype).tiny)
