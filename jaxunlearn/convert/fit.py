"""Fill a network from named arrays, and name the arrays of a network: what a file and a network have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _tree
from jaxunlearn._types import Model
from jaxunlearn.convert import layouts
from jaxunlearn.convert.files import PREFIXES, strip_prefix
from jaxunlearn.convert.layouts import KERAS, Layout, Shape

#: PyTorch's count of batches, which no layer of Flax keeps.
COUNTER = "num_batches_tracked"


def clean_names(names: Collection[str], model: Model | None = None) -> dict[str, str]:
    """Return, for each name of a file, the name without what wrappers and TensorFlow put around it.

    Where all layers of a network lie in one module of such a name (``self.net = ...``), it stays.

    Args:
      names: of the file.
      model: the network that they are to fill, or None.

    >>> clean_names(["module.fc.weight", "module.fc.bias"])["module.fc.bias"], clean_names(["conv1/kernel:0"])
    ('fc.bias', {'conv1/kernel:0': 'conv1/kernel'})
    """
    if any("/" in name for name in names):
        return {name: name.removesuffix(":0") for name in names}
    clean, own = list(strip_prefix(dict.fromkeys(names))), "" if model is None else own_prefix(model)
    if own and not any(name.startswith((own, "params.", "batch_stats.", "model_state.")) for name in clean):
        clean = [own + name for name in clean]
    return dict(zip(names, clean, strict=True))


def own_prefix(model: Model) -> str:
    """Return the steps that all of a network's arrays have in common and that a wrapper could have put there, too."""
    prefix, paths = "", [*leaves(model)]
    while len(steps := {path.partition("/")[0] for path in paths}) == 1 and f"{min(steps)}." in PREFIXES:
        prefix += f"{min(steps)}."
        paths = [path.partition("/")[2] for path in paths]
    return prefix


def is_ignored(name: str) -> bool:
    """Return whether a tensor of a file has no part in logits: a counter, or the pooler that a ViT was trained with."""
    return name.rsplit(".", 1)[-1] == COUNTER or name.startswith("vit.pooler.")


def statistics(model: Model) -> Mapping[str, Any]:
    """Return the tree of a model's BatchNorm statistics: Linen's collection of them, or all of an NNX module's state.

    Raises:
      ValueError: its ``model_state`` has something else than statistics.
    """
    state = model.model_state
    if set(state) <= {"batch_stats"}:
        return state.get("batch_stats", {})
    if all(path.rpartition("/")[2] in ("mean", "var") for path in _tree.flatten_paths(state)):
        return state
    odd = next(name for name in state if name != "batch_stats")
    raise ValueError(f"model_state {odd!r} has no counterpart elsewhere; only 'batch_stats' has")


def leaves(model: Model) -> dict[str, Any]:
    """Return a model's weights and statistics by path.

    Raises:
      ValueError: as `statistics`.
    """
    return {**_tree.flatten_paths(model.params), **_tree.flatten_paths(statistics(model))}


def shapes(model: Model) -> dict[str, Shape]:
    """Return the shapes of a model's weights and statistics by path."""
    return {path: np.shape(leaf) for path, leaf in leaves(model).items()}


def choose(names: Collection[str], model: Model) -> Layout:
    """Return the layout that most of a model's names among the clean ones of a file are of."""
    return layouts.choose(names, shapes(model), _tree.flatten_paths(statistics(model)))


def flax_layout(model: Model) -> Layout:
    """Return the layout of Flax's own names: ``params/fc/kernel``, ``batch_stats/bn1/mean``."""
    return layouts.flax(state=_tree.flatten_paths(statistics(model)))[0]


def layout_of(model: Model) -> Layout:
    """Return the layout that the original of a network has, by its recipe; PyTorch's where that says nothing."""
    recipe = model.spec.recipe
    return layouts.of_arch("" if recipe is None else recipe.arch)


def fill(layout: Layout, tensors: Mapping[str, np.ndarray], model: Model) -> Model:
    """Return a model with weights and statistics from arrays by clean names.

    Raises:
      ValueError: as `jaxunlearn.convert.from_torch`.
    """
    wanted = layout.tensors(shapes(model), tensors)
    _check_fit(layout, tensors, dict(wanted.values()), model)
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            raise ValueError(f"tensor {name!r} must be floating point; got {tensor.dtype}: save it as float32")
        finite = np.isfinite(tensor)
        if not finite.all():
            raise ValueError(
                f"tensor {name!r} has {(~finite).sum()} NaN or infinite values of {tensor.size}: "
                "take weights from before training diverged"
            )

    def put(path: str, leaf: Any) -> Any:
        name = wanted[path][0]
        with np.errstate(over="ignore"):
            array = layout.to_flax(path, tensors[name], leaf.shape).astype(leaf.dtype)
        if not np.isfinite(array).all():
            raise ValueError(
                f"tensor {name!r} has values up to {np.abs(tensors[name]).max():g}, too large for {leaf.dtype}"
            )
        # A copy: JAX may alias NumPy's memory, and with it a PyTorch module that goes on training.
        return jnp.array(array, copy=True)

    state = _tree.map_with_path(put, statistics(model))
    if "batch_stats" in model.model_state:
        state = {"batch_stats": state}
    return model.replace(params=_tree.map_with_path(put, model.params), model_state=state)


def named(layout: Layout, model: Model, names: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return a model's arrays in a layout, by name; ``names`` are those of a file whose choices are to be followed."""
    found = {path: np.asarray(leaf) for path, leaf in leaves(model).items()}
    wanted = layout.tensors({path: leaf.shape for path, leaf in found.items()}, names)
    return {
        wanted[path][0]: np.array(layout.from_flax(path, leaf, wanted[path][1]), order="C")
        for path, leaf in found.items()
    }


def refuse_wrapped(model: Model) -> None:
    """Raise a ValueError if something is around the network that has no counterpart elsewhere."""
    recipe = model.spec.recipe
    if recipe is not None and recipe.wrappers:
        names = ", ".join(name for name, _ in recipe.wrappers)
        raise ValueError(f"a wrapped network cannot be exported: {names} would be lost")


def to_torch(model: Model) -> dict[str, np.ndarray]:
    """Return a model's weights and statistics as a PyTorch state dict of NumPy arrays.

    The way there and back is bit-identical.

    Raises:
      ValueError: the network is wrapped (a patch network or projector around it has
        no counterpart in PyTorch), or has parameters without one.
    """
    refuse_wrapped(model)
    layout = layout_of(model)
    return named(layouts.TORCH if layout is KERAS else layout, model)


def _check_fit(layout: Layout, tensors: Mapping[str, np.ndarray], need: Mapping[str, Shape], model: Model) -> None:
    """Raise a ValueError that names the first tensor that does not fit, and what else is wrong."""
    recipe = model.spec.recipe
    network = "the network" if recipe is None else recipe.arch
    head = layouts.head_layer(layout, model.spec.head or ())
    for name, tensor in tensors.items():
        if name in need and tensor.shape != need[name]:
            text = f"{name} has shape {tensor.shape}, the network needs {need[name]}"
            layer, axis = name.rpartition(layout.separator)[0], layout.class_axis
            if layer == head and tensor.ndim == len(need[name]):
                rest, needed = (np.delete(shape, axis).tolist() for shape in (tensor.shape, need[name]))
                if rest == needed:
                    count = tensor.shape[axis]
                    raise ValueError(
                        f"the weights are for {count} classes, {network} is built for {model.spec.num_classes} ({text})"
                    )
            raise ValueError(f"the weights do not fit {network}: {text}")
    missing = [name for name in need if name not in tensors]
    unexpected = [name for name in tensors if name not in need]
    wrong = []
    if missing:
        wrong.append(f"missing {missing[0]} of shape {need[missing[0]]}{_more(missing)}")
    if unexpected:
        wrong.append(f"unexpected {unexpected[0]} of shape {tensors[unexpected[0]].shape}{_more(unexpected)}")
    if wrong:
        raise ValueError(f"the weights do not fit {network}: {'; '.join(wrong)}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
