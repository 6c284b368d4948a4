"""NNX modules as functions of the seam."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn._types import Array, Model, ModelSpec, Params, Recipe
from jaxunlearn.adapters.common import (
    check_head,
    check_normalisation,
    check_spec,
    checked,
    mode_arguments,
    standardise,
)

_MODES = ("deterministic", "use_running_average")


class _Leaf(NamedTuple):
    """Where a variable lives in the module and what becomes of it."""

    path: tuple[Any, ...]
    kind: str  # "params", "state", "key" or "count"
    shape: tuple[int, ...]
    stream: str = ""


@dataclasses.dataclass(frozen=True)
class NnxApply:
    """An NNX module as a function of the seam; equal module graphs make equal functions.

    The module is put together anew from a static graph in every call, so that no
    object outlives a trace. Keys of random layers come from ``rngs`` by the
    name of their stream, else from ``rngs["dropout"]``.
    """

    train_graph: Any
    eval_graph: Any
    leaves: tuple[_Leaf, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(
        self,
        params: Params,
        model_state: Params,
        x: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Params]:
        x = standardise(x, self.mean, self.std)
        flat = dict(self._values(params, model_state, train, rngs))
        # From arrays, not from variables: BatchNorm assigns to its variables, which must belong to this very trace.
        module = nnx.merge(self.train_graph if train else self.eval_graph, _nested(flat))
        logits = module(x, **mode_arguments(module, train))
        if not train or not model_state:
            return logits, model_state
        after = _flat(nnx.to_pure_dict(nnx.state(module, graph=True)))
        return logits, _nested({_strings(at.path): after[at.path] for at in self.leaves if at.kind == "state"})

    def _values(
        self, params: Params, model_state: Params, train: bool, rngs: Mapping[str, Array] | None
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yield path and value of every variable of the module."""
        for number, at in enumerate(self.leaves):
            if at.kind == "key":
                key = _stream_key(at.stream, train, rngs)
                key = jax.random.fold_in(key, number)
                yield at.path, jax.random.split(key, at.shape) if at.shape else key
            elif at.kind == "count":
                yield at.path, jnp.zeros(at.shape, jnp.uint32)
            else:
                yield at.path, _find(params if at.kind == "params" else model_state, _strings(at.path))


def from_nnx(
    model: nnx.Module,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    box: tuple[float, float] = (0.0, 1.0),
    mean: Any = None,
    std: Any = None,
    head: tuple[str, ...] | None = None,
    recipe: Recipe | None = None,
) -> Model:
    """Make a model of an NNX module; the module itself is left as it is.

    `flax.nnx.Param` variables become ``params``, random state is replaced by keys
    from ``rngs``, and everything else becomes ``model_state``. List positions
    become string keys: ``model.layers[0].kernel`` is ``params["layers"]["0"]["kernel"]``.
    Layers are switched by ``deterministic`` and ``use_running_average``, as by
    ``model.train()`` and ``model.eval()``, and by an argument of ``__call__`` (`from_linen`).

    Args:
      model: maps (batch, *input_shape) to logits (batch, C).
      input_shape, num_classes, box, mean, std, head, recipe: as for `from_linen`.

    Raises:
      ValueError: as `from_linen`; or no parameters.
      TypeError: not an NNX module.

    >>> net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> model = from_nnx(net, input_shape=(4,), num_classes=3, head=())
    >>> model(jnp.ones((2, 4))).shape
    (2, 3)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module; got {type(model).__name__}")
    input_shape, box = check_spec(input_shape, num_classes, box)
    mean, std = check_normalisation(mean, std, input_shape)
    graphs = {}
    for train in (True, False):
        modes = dict.fromkeys(_MODES, not train)
        view = nnx.view(model, raise_if_not_found=False, graph=True, **modes)
        graphs[train], state = nnx.split(view, graph=True)
    leaves = tuple(_leaf(path, variable) for path, variable in nnx.to_flat_state(state))
    values = _flat(nnx.to_pure_dict(state))
    trees = {
        kind: _nested({_strings(at.path): values[at.path] for at in leaves if at.kind == kind})
        for kind in ("params", "state")
    }
    if not trees["params"]:
        raise ValueError(f"model must have flax.nnx.Param variables; {type(model).__name__} has none")
    spec = ModelSpec(
        num_classes=num_classes,
        input_shape=input_shape,
        box=box,
        head=check_head(head, trees["params"]),
        recipe=recipe,
    )
    apply_fn = NnxApply(graphs[True], graphs[False], leaves, mean, std)
    return checked(Model(params=trees["params"], model_state=trees["state"], apply_fn=apply_fn, spec=spec))


def _leaf(path: tuple[Any, ...], variable: Any) -> _Leaf:
    if isinstance(variable, nnx.RngState):
        kind = "count" if isinstance(variable, nnx.RngCount) else "key"
        return _Leaf(path, kind, tuple(variable.shape), variable.tag)
    kind = "params" if isinstance(variable, nnx.Param) else "state"
    return _Leaf(path, kind, tuple(getattr(variable, "shape", ())))


def _stream_key(stream: str, train: bool, rngs: Mapping[str, Array] | None) -> Array:
    if not train:
        return jax.random.key(0)  # not drawn from: random layers are deterministic
    for name in (stream, "dropout"):
        if rngs is not None and name in rngs:
            return rngs[name]
    raise ValueError(f"random layers in train mode need rngs with 'dropout' or {stream!r}; got {rngs and sorted(rngs)}")


def _strings(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, path))


def _flat(tree: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    flat: dict[tuple[Any, ...], Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, (*path, name)) if isinstance(value, Mapping) else {(*path, name): value}
    return flat


def _nested(flat: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for (*parents, name), value in flat.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _find(tree: Params, path: tuple[str, ...]) -> Any:
    node: Any = tree
    for name in path:
        node = node[name]
    return node
