"""Penalties and masks on parameters as optax gradient transformations."""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _validate
from jaxunlearn._repeat import is_traced
from jaxunlearn._tree import flatten_paths, map_with_path
from jaxunlearn._types import Array, Params, PyTree


class MaskedRegularizationState(NamedTuple):
    """What `masked_regularization` reads at every update."""

    holding_weight: PyTree
    anchor: PyTree
    strength: Array


def masked_regularization(
    holding_weight: PyTree, anchor: Params, strength: Array | float
) -> optax.GradientTransformationExtraArgs:
    """Add ``strength * holding_weight * (params - anchor)`` to the updates.

    That is the gradient of ``strength / 2 * sum(holding_weight * (params -
    anchor)**2)`` (L2UL's penalty, a sum over all parameters). Put it first in
    an `optax.chain`, before weight decay, momentum and learning rate.

    ``init`` copies the three values into the state, and ``update`` reads the
    state alone: under vmap they may differ by lane, and a donated anchor
    stays alive.

    Args:
      holding_weight: tree like the parameters: 0 is free, 1 is held.
      anchor: tree like the parameters: where they are held.
      strength: scalar, at least 0, may be traced.

    Raises:
      ValueError: for a strength out of range; from ``init`` for trees unlike
        the parameters; from ``update`` without params.

    >>> tx = masked_regularization({"w": jnp.array([0.0, 1.0])}, {"w": jnp.zeros(2)}, 0.5)
    >>> params = {"w": jnp.array([2.0, 2.0])}
    >>> tx.update({"w": jnp.zeros(2)}, tx.init(params), params)[0]["w"].tolist()
    [0.0, 1.0]
    """
    _validate.in_range("strength", strength, 0.0)

    def init(params: Params) -> MaskedRegularizationState:
        check_like("holding_weight", holding_weight, params)
        check_like("anchor", anchor, params)
        values = (holding_weight, anchor, strength)
        return MaskedRegularizationState(*jax.tree.map(lambda a: jnp.array(a, copy=True), values))

    def update(
        updates: PyTree, state: MaskedRegularizationState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, MaskedRegularizationState]:
        if params is None:
            raise ValueError("masked_regularization needs the parameters: call update(updates, state, params)")

        def add(u: Array, w: Array, p: Array, a: Array) -> Array:
            return u + (state.strength * w * (p - a)).astype(u.dtype)

        return jax.tree.map(add, updates, state.holding_weight, params, state.anchor), state

    return optax.GradientTransformationExtraArgs(init, update)


class FreezeState(NamedTuple):
    """The mask that `freeze` reads at every update."""

    mask: PyTree


def freeze(mask: PyTree) -> optax.GradientTransformationExtraArgs:
    """Set the updates of held entries to zero, by a mask of the parameters' shapes.

    Put it last in an `optax.chain`: what momentum, weight decay or a NaN
    gradient would do to a held entry is dropped, and it keeps its bits.
    `optax.freeze` does the same for whole tensors known when code is made;
    here entries of a tensor are told apart, and ``init`` copies the mask into
    the state, so that it may be traced and differ by lane under vmap.

    Args:
      mask: tree like the parameters, of 0 (free) and 1 (held) or bool.

    Raises:
      ValueError: from ``init``, for a tree unlike the parameters or a value
        that is neither 0 nor 1.

    >>> tx = freeze({"w": jnp.array([0, 1])})
    >>> tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))[0]["w"].tolist()
    [1.0, 0.0]
    """

    def init(params: Params) -> FreezeState:
        check_like("mask", mask, params)
        for path, leaf in flatten_paths(mask).items():
            if not is_traced(leaf) and not np.isin(np.asarray(leaf), (0, 1)).all():
                raise ValueError(f"mask must hold only 0 (free) and 1 (held); {path} has other values")
        return FreezeState(jax.tree.map(lambda m: jnp.asarray(m) != 0, mask))

    def update(
        updates: PyTree, state: FreezeState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, FreezeState]:
        return jax.tree.map(lambda u, m: jnp.where(m, jnp.zeros_like(u), u), updates, state.mask), state

    return optax.GradientTransformationExtraArgs(init, update)


def freeze_paths(*patterns: str) -> optax.GradientTransformationExtraArgs:
    """Set the updates of whole tensors to zero, by path; put it last in an `optax.chain`.

    Args:
      *patterns: shell patterns (`fnmatch.fnmatchcase`) on slash-joined paths such as
        "block1/conv/kernel"; ``*`` crosses slashes, case matters.

    Raises:
      ValueError: for no pattern; from ``init`` for a pattern that matches nothing.

    >>> tx = freeze_paths("head/*")
    >>> params = {"body": jnp.ones(1), "head": {"bias": jnp.ones(1)}}
    >>> jax.tree.map(float, jax.tree.map(jnp.sum, tx.update(params, tx.init(params))[0]))
    {'body': 1.0, 'head': {'bias': 0.0}}
    """
    if not patterns:
        raise ValueError("freeze_paths needs at least one pattern")

    def mask(tree: Params) -> PyTree:
        paths = list(flatten_paths(tree))
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                raise ValueError(f"no parameter matches {pattern!r}; there are {', '.join(paths)}")
        return map_with_path(lambda path, _: any(fnmatch.fnmatchcase(path, p) for p in patterns), tree)

    return optax.masked(optax.set_to_zero(), mask)


def check_like(name: str, tree: PyTree, params: Params) -> None:
    """Raise ValueError naming the first path at which a tree is unlike the parameters."""
    have, want = ({p: np.shape(leaf) for p, leaf in flatten_paths(t).items()} for t in (tree, params))
    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            given, needed = (f"shape {t[path]}" if path in t else "nothing" for t in (have, want))
            raise ValueError(f"{name} must be a tree like the parameters; at {path!r} it has {given}, they {needed}")
