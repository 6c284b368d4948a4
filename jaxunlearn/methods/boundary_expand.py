"""Boundary expand: send the forget set to a class of its own, then take it away ("Boundary Unlearning", CVPR 2023).

The classifier's layer gets one more output with random weights, the
cross-entropy of that class on D_f is minimised over all weights, and the network
is returned without it: a forget instance then gets what is left of its other
logits. BASE-5: one published copy forgets to take the class away.

The widened layer lives in the state only, and the network needs no change: it
is vmapped over two classifiers, the old one and one with the new output. Its
body does not depend on them, so that it runs once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import losses
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, ModelSpec, Params, Problem, PyTree
from jaxunlearn.methods._descent import Descent, MomentumConfig, Rows, State, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MomentumConfig):
    """Hyper-parameters of boundary expand."""

    learning_rate: float = hparam(1e-5, "SGD learning rate", traced=True, low=0.0)
    max_passes: int = hparam(500, "budget, in passes over the forget set", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the settings of a published comparison on CIFAR-10, ResNet-18: 20 passes to the end."""
        return cls(learning_rate=1e-4, max_passes=20, batch_norm="update", stop="budget")


@dataclasses.dataclass(frozen=True)
class BoundaryExpand(Descent):
    """The method bound to its static settings."""

    def check(self, problem: Problem) -> None:
        """Raise unless the model says which layer its classifier is, and that layer's last axis is the class axis."""
        spec = problem.model.spec
        leaves = jax.tree.leaves(_at(problem.model.params, _path(spec)))
        if any(leaf.shape[-1:] != (spec.num_classes,) for leaf in leaves):
            shapes = ", ".join(str(leaf.shape) for leaf in leaves)
            raise ValueError(
                f"method 'boundary-expand' cannot widen {'/'.join(_path(spec))!r}: the last axis of its arrays must be "
                f"the {spec.num_classes} classes; got {shapes}"
            )

    def trained(self, key: Array, problem: Problem) -> Params:
        """Return the weights with one more output, drawn as for a fresh layer: uniform within 1 / sqrt(inputs).

        Raises:
          ValueError: as `check`.
        """
        self.check(problem)
        spec, params = problem.model.spec, problem.model.params
        leaves = jax.tree.leaves(_at(params, _path(spec)))
        bound = min(1 / np.sqrt(np.prod(leaf.shape[:-1])) for leaf in leaves)

        def widen(leaf: Array, key: Array) -> Array:
            fresh = jax.random.uniform(key, (*leaf.shape[:-1], 1), leaf.dtype, -bound, bound)
            return jnp.concatenate([leaf, fresh], axis=-1)

        keys = jax.random.split(key, len(leaves))
        return _change(params, _path(spec), lambda head: _map_leaves(widen, head, keys))

    def network(self, trained: Params, spec: ModelSpec) -> Params:
        def narrow(leaf: Array) -> Array:
            return leaf[..., : spec.num_classes]

        return _change(trained, _path(spec), lambda head: jax.tree.map(narrow, head))

    def loss(self, key: Array, model: Model, state: State, rows: Rows) -> tuple[Array, Params]:
        logits, model_state = self.wide_logits(key, model, rows.forget.x)
        new = jnp.full_like(rows.forget.y, model.spec.num_classes)
        return mean(rows.forget.weight, losses.cross_entropy(logits, new)), model_state

    def wide_logits(self, key: Array, model: Model, x: Array) -> tuple[Array, Params]:
        """Return the C + 1 logits of a model with widened weights, and the model state after them."""
        path, classes = _path(model.spec), model.spec.num_classes

        def two(leaf: Array) -> Array:
            new = jnp.broadcast_to(leaf[..., classes:], (*leaf.shape[:-1], classes))
            return jnp.stack([leaf[..., :classes], new])

        def run(params: Params) -> tuple[Array, Params]:
            return self.logits(key, model.replace(params=params), x)

        params = _change(model.params, path, lambda head: jax.tree.map(two, head))
        logits, model_state = jax.vmap(run, in_axes=(_axes(params, path),), out_axes=(0, None))(params)
        return jnp.concatenate([logits[0], logits[1][:, :1]], axis=-1), model_state


def _path(spec: ModelSpec) -> tuple[str, ...]:
    if spec.head is None:
        raise ValueError(
            "method 'boundary-expand' needs to know which layer is the classifier, and this model does not say: "
            "name it by head=, such as from_linen(..., head=('fc',))"
        )
    return spec.head


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    for name in path:
        tree = tree[name]
    return tree


def _change(tree: PyTree, path: tuple[str, ...], change: Callable[[PyTree], PyTree]) -> Any:
    """Return a nested dict with the part at a path changed."""
    return {**tree, path[0]: _change(tree[path[0]], path[1:], change)} if path else change(tree)


def _axes(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return what `jax.vmap` maps over: axis 0 of the part at a path."""
    return {name: _axes(tree[name], path[1:]) if name == path[0] else None for name in tree} if path else 0


def _map_leaves(fn: Callable[[Array, Array], Array], tree: PyTree, keys: Array) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [fn(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


def make(config: Config) -> BoundaryExpand:
    """Bind boundary expand to its static settings."""
    return BoundaryExpand(config)


SPEC = MethodSpec(
    name="boundary-expand",
    make=make,
    Config=Config,
    summary="send the forget set to a class of its own, then take that class away",
    goals=("misclassify",),
    cost="one forward and backward pass over the forget set a pass",
    paper="Chen et al., CVPR 2023, Boundary Unlearning",
    strength="learning_rate",
)
