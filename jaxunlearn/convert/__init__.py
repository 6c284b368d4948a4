"""Foreign weights: PyTorch state dicts, both ways, and Keras weights to Flax variables.

The layout is mechanical (`jaxunlearn.convert.layouts`). The path
``layer1_0/conv1/kernel`` is PyTorch's tensor ``layer1.0.conv1.weight`` and
Keras's ``layer1_0/conv1/kernel``; its last step decides what happens to the axes:

=============  ================  ============================================  ===================
Flax           PyTorch           axes                                          Keras
=============  ================  ============================================  ===================
``kernel``     ``weight``        (out, in, *spatial) <-> (*spatial, in, out)   ``kernel``
``scale``      ``weight``        as they are                                   ``gamma``
``bias``       ``bias``          as they are                                   ``bias``, ``beta``
``mean``       ``running_mean``  as they are                                   ``moving_mean``
``var``        ``running_var``   as they are                                   ``moving_variance``
=============  ================  ============================================  ===================

An underscore before a number at the end of a step is a dot in PyTorch, two are
one underscore (``encoder_layer__0``). ``in_proj_kernel`` is ``in_proj_weight``, its
axes swapped; ``class_token`` and ``pos_embedding`` are the same there. Keras's
axes are Flax's; of its ``depthwise_kernel`` alone the last two change places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _tree
from jaxunlearn._types import Model, Recipe
from jaxunlearn.convert import layouts
from jaxunlearn.convert.files import as_numpy, read_state_dict, strip_prefix
from jaxunlearn.convert.layouts import KERAS, TORCH, Layout, torch_name

__all__ = ["classes", "from_keras", "from_named", "from_torch", "load_weights", "read_state_dict", "to_torch"]

_IGNORED = "num_batches_tracked"


def from_torch(state_dict: Mapping[str, Any], model: Model) -> Model:
    """Fill a model's weights and statistics from a PyTorch state dict.

    Args:
      state_dict: arrays or tensors by PyTorch's names; ``num_batches_tracked`` is ignored.
      model: the network to fill, with weights or abstract (`jax.ShapeDtypeStruct`).

    Returns:
      The model with the weights of the state dict in the dtypes of the template.

    Raises:
      ValueError: a tensor is missing, unexpected, of another shape (the first one
        is named with both shapes), not finite or not floating point; or the number
        of classes differs.

    >>> from jaxunlearn import models
    >>> import jax
    >>> net = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    >>> again = from_torch(to_torch(net), net)
    >>> _tree.digest(again.params) == _tree.digest(net.params)
    True
    """
    tensors = {k: as_numpy(k, v) for k, v in strip_prefix(state_dict).items() if k.rsplit(".", 1)[-1] != _IGNORED}
    return _fill(TORCH, tensors, model)


def from_keras(weights: Mapping[str, Any], model: Model) -> Model:
    """Fill a model's weights and statistics from arrays by Keras's names, such as ``conv1_bn/gamma``.

    Args:
      weights: arrays by layer and variable, joined by a slash; a ``:0`` at the end is ignored.
      model: the network to fill; its module paths are Keras's layer names.

    Returns, Raises: as `from_torch`.
    """
    return _fill(KERAS, {name.removesuffix(":0"): as_numpy(name, value) for name, value in weights.items()}, model)


def from_named(tensors: Mapping[str, Any], model: Model) -> Model:
    """Fill a model by `from_keras` where names have slashes, else by `from_torch`."""
    return (from_keras if layouts.of(tensors) is KERAS else from_torch)(tensors, model)


def classes(tensors: Mapping[str, np.ndarray], head: tuple[str, ...]) -> int | None:
    """Return how many classes weights are for, by the classifier layer's tensor; None if it is not there.

    >>> classes({"fc.weight": np.zeros((7, 64))}, ("fc",)), classes({"fc/kernel": np.zeros((64, 7))}, ("fc",))
    (7, 7)
    """
    layout = layouts.of(tensors)
    last = tensors.get(layout.separator.join((*head, layout.kernel)))
    return last.shape[layout.class_axis] if last is not None and last.ndim else None


def _fill(layout: Layout, tensors: Mapping[str, np.ndarray], model: Model) -> Model:
    template = {**_tree.flatten_paths(model.params), **_tree.flatten_paths(_state(model))}
    wanted = layout.tensors({path: np.shape(leaf) for path, leaf in template.items()}, tensors)
    _check_fit(layout, tensors, dict(wanted.values()), model)
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            raise ValueError(f"tensor {name!r} must be floating point; got {tensor.dtype}")
        finite = np.isfinite(tensor)
        if not finite.all():
            raise ValueError(f"tensor {name!r} has {(~finite).sum()} NaN or infinite values of {tensor.size}")

    def fill(path: str, leaf: Any) -> Any:
        # A copy: JAX may alias NumPy's memory, and with it a PyTorch module that goes on training.
        return jnp.array(layout.to_flax(path, tensors[wanted[path][0]], leaf.shape), leaf.dtype, copy=True)

    state = dict(model.model_state)
    if "batch_stats" in state:
        state["batch_stats"] = _tree.map_with_path(fill, state["batch_stats"])
    return model.replace(params=_tree.map_with_path(fill, model.params), model_state=state)


def to_torch(model: Model) -> dict[str, np.ndarray]:
    """Return a model's weights and statistics as a PyTorch state dict of NumPy arrays.

    The way there and back is bit-identical.

    Raises:
      ValueError: the network is wrapped (a patch network or projector around it has
        no counterpart in PyTorch), or has parameters without one.
    """
    recipe = model.spec.recipe
    if recipe is not None and recipe.wrappers:
        names = ", ".join(name for name, _ in recipe.wrappers)
        raise ValueError(f"a wrapped network cannot be exported: {names} would be lost")
    leaves = {**_tree.flatten_paths(model.params), **_tree.flatten_paths(_state(model))}
    arrays = {path: layouts.to_torch(path, np.asarray(leaf)) for path, leaf in leaves.items()}
    return {torch_name(path): np.array(array, order="C") for path, array in arrays.items()}


def load_weights(path: str | Path, recipe: Recipe, build: Callable[..., Model]) -> Model:
    """Read a file of weights into the network of a recipe.

    Args:
      path: a file that `read_state_dict` reads.
      recipe: the network.
      build: ``build(recipe, abstract=True) -> Model``, such as `jaxunlearn.models.from_recipe`.

    Raises:
      OSError, ValueError: as `read_state_dict` and `from_named`, with the file's name.
    """
    template = build(recipe, abstract=True)
    tensors = read_state_dict(path)
    try:
        return from_named(tensors, template)
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: {error}") from None


def _state(model: Model) -> Mapping[str, Any]:
    others = [name for name in model.model_state if name != "batch_stats"]
    if others:
        raise ValueError(f"model_state {others[0]!r} has no counterpart elsewhere; only 'batch_stats' has")
    return model.model_state.get("batch_stats", {})


def _check_fit(
    layout: Layout, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], model: Model
) -> None:
    """Raise a ValueError that names the first tensor that does not fit, and what else is wrong."""
    recipe = model.spec.recipe
    network = "the network" if recipe is None else recipe.arch
    for name, tensor in tensors.items():
        if name in shapes and tensor.shape != shapes[name]:
            text = f"{name} has shape {tensor.shape}, the network needs {shapes[name]}"
            layer, axis = name.rpartition(layout.separator)[0], layout.class_axis
            rest, needed = (np.delete(shape, axis).tolist() for shape in (tensor.shape, shapes[name]))
            if layer == layout.separator.join(model.spec.head or ()) and rest == needed:
                count = tensor.shape[axis]
                raise ValueError(
                    f"the weights are for {count} classes, {network} is built for {model.spec.num_classes} ({text})"
                )
            raise ValueError(f"the weights do not fit {network}: {text}")
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    wrong = []
    if missing:
        wrong.append(f"missing {missing[0]} of shape {shapes[missing[0]]}{_more(missing)}")
    if unexpected:
        wrong.append(f"unexpected {unexpected[0]} of shape {tensors[unexpected[0]].shape}{_more(unexpected)}")
    if wrong:
        raise ValueError(f"the weights do not fit {network}: {'; '.join(wrong)}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
