"""Networks that a method changed: the network inside, what was put around it, and one `Model` as before.

A wrapped network has ``params = {"network": params of the one inside, NAME: its
own}``, and its recipe names the wrapper, so that checkpoints, evaluation and
further requests work on it as on any other. Wrapping a wrapped network works.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxunlearn import _tree
from jaxunlearn._types import Array, Model, ModelSpec, Params, Recipe
from jaxunlearn.wrappers.inside import NETWORK, Inside, features, head_map
from jaxunlearn.wrappers.patch import Patch
from jaxunlearn.wrappers.projector import Projector

__all__ = [
    "NETWORK",
    "Inside",
    "Parts",
    "Patch",
    "Projector",
    "Wrapped",
    "Wrapper",
    "features",
    "head_map",
    "layers",
    "rebuild",
    "unwrap",
    "wrap",
]


class Wrapper(Protocol):
    """What is put around a network: a frozen dataclass whose fields are its arguments, plain JSON.

    ``shapes()`` gives the shapes of its own float32 arrays by name;
    ``wrapper(own, inside)`` returns the new logits, (batch, C).
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of its own arrays."""
        ...

    def __call__(self, own: Params, inside: Inside) -> Array:
        """Return the logits of the wrapped network."""
        ...


#: Name in a recipe -> wrapper.
_WRAPPERS: dict[str, type[Any]] = {"patch": Patch, "projector": Projector}


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A network with a wrapper around it, as a function of the seam; equal parts make equal functions.

    Attributes:
      name: of the wrapper, and of its own subtree in ``params``.
      wrapper: what is around.
      network: the network inside; spec: what is known of it.
    """

    name: str
    wrapper: Wrapper
    network: Any
    spec: ModelSpec

    def __call__(
        self,
        params: Params,
        model_state: Params,
        x: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Params]:
        logits, new_state = self.network(params[NETWORK], model_state, x, train=train, rngs=rngs)
        model = Model(params=params[NETWORK], model_state=model_state, apply_fn=self.network, spec=self.spec)
        return self.wrapper(params[self.name], Inside(model, x, logits)), new_state


@dataclasses.dataclass(frozen=True)
class WrappedTaps:
    """Inner activations of a wrapped network: those of the one inside, by their path in ``params``."""

    taps_fn: Any

    def __call__(self, params: Params, model_state: Params, x: Array) -> dict[str, Array]:
        inside = self.taps_fn(params[NETWORK], model_state, x)
        return {f"{NETWORK}/{name}": value for name, value in inside.items()}


class Parts(NamedTuple):
    """A wrapped network taken apart, see `unwrap`."""

    model: Model
    name: str
    wrapper: Wrapper
    own: Params


def wrap(model: Model, name: str, arguments: Mapping[str, Any], own: Params) -> Model:
    """Put a wrapper around a network.

    Args:
      model: the network, wrapped already or not.
      name: of the wrapper: "patch" or "projector".
      arguments: of the wrapper, plain JSON; they go into the recipe.
      own: its arrays, as its ``shapes()`` says; arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A model with the same inputs, box, classes and ``model_state``; head and taps are those of the network
      inside, under the path "network". Fresh weights (``init_fn``) it cannot make.

    Raises:
      ValueError: no such wrapper, arguments it does not take, or arrays of other names or shapes.
    """
    wrapper, pairs = _make(name, arguments)
    wanted = wrapper.shapes()
    found = {path: tuple(jnp.shape(leaf)) for path, leaf in _tree.flatten_paths(own).items()}
    for path in sorted({*wanted, *found}):
        if wanted.get(path) != found.get(path):
            raise ValueError(
                f"the arrays of the wrapper {name!r} do not fit its arguments: {path} must have shape "
                f"{wanted.get(path, 'none at all')}; got {found.get(path, 'nothing')}"
            )
    inside, recipe = model.spec, model.spec.recipe
    spec = dataclasses.replace(
        inside,
        head=None if inside.head is None else (NETWORK, *inside.head),
        taps_fn=None if inside.taps_fn is None else WrappedTaps(inside.taps_fn),
        init_fn=None,
        recipe=None if recipe is None else dataclasses.replace(recipe, wrappers=(*recipe.wrappers, (name, pairs))),
    )
    return Model(
        params={NETWORK: model.params, name: dict(own)},
        model_state=model.model_state,
        apply_fn=Wrapped(name, wrapper, model.apply_fn, inside),
        spec=spec,
    )


def unwrap(model: Model) -> Parts | None:
    """Take the outermost wrapper off; None where there is none."""
    outer = model.apply_fn
    if not isinstance(outer, Wrapped):
        return None
    inside = Model(params=model.params[NETWORK], model_state=model.model_state, apply_fn=outer.network, spec=outer.spec)
    return Parts(inside, outer.name, outer.wrapper, model.params[outer.name])


def layers(model: Model) -> list[Model]:
    """Return a network, the one inside it, and so on to the innermost."""
    found, parts = [model], unwrap(model)
    while parts is not None:
        found.append(parts.model)
        parts = unwrap(parts.model)
    return found


def rebuild(model: Model, recipe: Recipe) -> Model:
    """Put the wrappers of a recipe around an abstract network (`jax.ShapeDtypeStruct`), to be filled by a loader.

    Raises:
      ValueError: as `wrap`.
    """
    for name, pairs in recipe.wrappers:
        wrapper, _ = _make(name, dict(pairs))
        own = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in wrapper.shapes().items()}
        model = wrap(model, name, dict(pairs), own)
    return model


def _make(name: str, arguments: Mapping[str, Any]) -> tuple[Wrapper, tuple[tuple[str, Any], ...]]:
    if name not in _WRAPPERS:
        raise ValueError(f"unknown wrapper {name!r}; there are {', '.join(_WRAPPERS)}")
    pairs = tuple(sorted((key, _hashable(value)) for key, value in arguments.items()))
    try:
        return _WRAPPERS[name](**dict(pairs)), pairs
    except TypeError as error:
        raise ValueError(f"the arguments do not fit the wrapper {name!r}: {error}") from None


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
