"""Foreign weights, both ways: PyTorch state dicts and Flax variables.

The layout is mechanical. The path ``layer1_0/conv1/kernel`` is the tensor
``layer1.0.conv1.weight``; its last step decides what happens to the axes:

=============  ================  ==========================================
Flax           PyTorch           axes
=============  ================  ==========================================
``kernel``     ``weight``        (out, in, *spatial) <-> (*spatial, in, out)
``scale``      ``weight``        as they are
``bias``       ``bias``          as they are
``mean``       ``running_mean``  as they are
``var``        ``running_var``   as they are
=============  ================  ==========================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _tree
from jaxunlearn._types import Model, Recipe
from jaxunlearn.convert.files import as_numpy, read_state_dict, strip_prefix

__all__ = ["from_torch", "load_weights", "read_state_dict", "to_torch"]

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
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
    template = {**_tree.flatten_paths(model.params), **_tree.flatten_paths(_state(model))}
    wanted = {torch_name(path): path for path in template}
    shapes = {name: _torch_shape(path, np.shape(template[path])) for name, path in wanted.items()}
    _check_fit(tensors, shapes, model)
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            raise ValueError(f"tensor {name!r} must be floating point; got {tensor.dtype}")
        finite = np.isfinite(tensor)
        if not finite.all():
            raise ValueError(f"tensor {name!r} has {(~finite).sum()} NaN or infinite values of {tensor.size}")

    def fill(path: str, leaf: Any) -> Any:
        # A copy: JAX may alias NumPy's memory, and with it a PyTorch module that goes on training.
        return jnp.array(_to_flax(path, tensors[torch_name(path)]), leaf.dtype, copy=True)

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
        raise ValueError(f"a wrapped network cannot be exported: {', '.join(recipe.wrappers)} would be lost")
    leaves = {**_tree.flatten_paths(model.params), **_tree.flatten_paths(_state(model))}
    return {torch_name(path): np.array(_to_torch(path, np.asarray(leaf)), order="C") for path, leaf in leaves.items()}


def load_weights(path: str | Path, recipe: Recipe, build: Callable[..., Model]) -> Model:
    """Read a file of weights into the network of a recipe.

    Args:
      path: a file that `read_state_dict` reads.
      recipe: the network.
      build: ``build(recipe, abstract=True) -> Model``, such as `jaxunlearn.models.from_recipe`.

    Raises:
      OSError, ValueError: as `read_state_dict` and `from_torch`, with the file's name.
    """
    template = build(recipe, abstract=True)
    tensors = read_state_dict(path)
    try:
        return from_torch(tensors, template)
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: {error}") from None


def torch_name(path: str) -> str:
    """Return PyTorch's name of a parameter path.

    >>> torch_name("layer1_0/downsample_1/var")
    'layer1.0.downsample.1.running_var'
    """
    *modules, leaf = path.split("/")
    if leaf not in _LEAVES:
        raise ValueError(
            f"parameter {path!r} has no counterpart in PyTorch: its last step is none of {', '.join(_LEAVES)}"
        )
    return ".".join([*(re.sub(r"_(\d+)$", r".\1", name) for name in modules), _LEAVES[leaf]])


def _to_flax(path: str, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (1, 0), (-2, -1)) if path.endswith("kernel") else array


def _to_torch(path: str, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (-1, -2), (0, 1)) if path.endswith("kernel") else array


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("kernel") else shape


def _state(model: Model) -> Mapping[str, Any]:
    others = [name for name in model.model_state if name != "batch_stats"]
    if others:
        raise ValueError(f"model_state {others[0]!r} has no counterpart in PyTorch; only 'batch_stats' has")
    return model.model_state.get("batch_stats", {})


def _check_fit(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], model: Model) -> None:
    """Raise a ValueError that names the first tensor that does not fit, and what else is wrong."""
    recipe = model.spec.recipe
    network = "the network" if recipe is None else recipe.arch
    for name, tensor in tensors.items():
        if name in shapes and tensor.shape != shapes[name]:
            text = f"{name} has shape {tensor.shape}, the network needs {shapes[name]}"
            head = ".".join(model.spec.head or ())
            if name in (f"{head}.weight", f"{head}.bias") and tensor.shape[1:] == shapes[name][1:]:
                classes = (
                    f"the weights are for {tensor.shape[0]} classes, {network} is built for {model.spec.num_classes}"
                )
                raise ValueError(f"{classes} ({text})")
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
