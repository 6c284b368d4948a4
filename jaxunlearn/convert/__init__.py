"""Foreign weights: PyTorch's, Keras's and other people's Flax weights to Flax variables, and back.

The layout is mechanical (``jaxunlearn.convert.layouts``). The path
``layer1_0/conv1/kernel`` is PyTorch's tensor ``layer1.0.conv1.weight`` and
Keras's ``layer1_0/conv1/kernel``; its last step decides what happens to the axes:

==========  ================  ===============================================  ===================
Flax        PyTorch           axes                                             Keras
==========  ================  ===============================================  ===================
``kernel``  ``weight``        ``(out, in, *spatial) <-> (*spatial, in, out)``  ``kernel``
``scale``   ``weight``        as they are                                      ``gamma``
``bias``    ``bias``          as they are                                      ``bias``, ``beta``
``mean``    ``running_mean``  as they are                                      ``moving_mean``
``var``     ``running_var``   as they are                                      ``moving_variance``
==========  ================  ===============================================  ===================

An underscore before a number at the end of a step is a dot in PyTorch
(``features_2/conv_0_1`` is ``features.2.conv.0.1``), two are one underscore
(``encoder_layer__0``). ``in_proj_kernel`` is ``in_proj_weight``, its
axes swapped; ``class_token`` and ``pos_embedding`` are the same there. Keras's
axes are Flax's; of its ``depthwise_kernel`` alone the last two change places.

Flax's own names are the paths, with the collection before them or without:
``params/layer1_0/conv1/kernel``, ``batch_stats/layer1_0/bn1/mean``; dots may
stand for the slashes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _files
from jaxunlearn._types import Model, Recipe
from jaxunlearn.convert import fit, huggingface, layouts
from jaxunlearn.convert.export import SUFFIXES, Exported, export
from jaxunlearn.convert.files import PREFIXES, as_numpy, read_state_dict
from jaxunlearn.convert.fit import to_torch
from jaxunlearn.convert.layouts import KERAS

__all__ = [
    "SUFFIXES",
    "Exported",
    "classes",
    "export",
    "from_keras",
    "from_named",
    "from_torch",
    "huggingface",
    "load_weights",
    "read_state_dict",
    "to_torch",
]


@_files.one_line()
def from_torch(state_dict: Mapping[str, Any], model: Model) -> Model:
    """Fill a model's weights and statistics from a PyTorch state dict.

    Names may be those of a dialect (``jaxunlearn.convert.dialects``): Transformers's
    for networks that torchvision has, too, or those of old files.

    Args:
      state_dict: arrays or tensors by PyTorch's names; ``num_batches_tracked`` is ignored.
      model: the network to fill, with weights or abstract (`jax.ShapeDtypeStruct`).

    Returns:
      The model with the weights of the state dict in the dtypes of the template.

    Raises:
      ValueError: a tensor is missing, unexpected, of another shape (the first one
        is named with both shapes), not finite or not floating point; or the number
        of classes differs.

    >>> from jaxunlearn import _tree, models
    >>> import jax
    >>> net = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    >>> again = from_torch(to_torch(net), net)
    >>> _tree.digest(again.params) == _tree.digest(net.params)
    True
    """
    clean = fit.clean_names(state_dict, model)
    tensors = {clean[k]: as_numpy(k, v) for k, v in state_dict.items() if not fit.is_ignored(clean[k])}
    return fit.fill(layouts.choose_torch(tensors, fit.shapes(model)), tensors, model)


@_files.one_line()
def from_keras(weights: Mapping[str, Any], model: Model) -> Model:
    """Fill a model's weights and statistics from arrays by Keras's names, such as ``conv1_bn/gamma``.

    Args:
      weights: arrays by layer and variable, joined by a slash; a ``:0`` at the end is ignored.
      model: the network to fill; its module paths are Keras's layer names.

    Returns, Raises: as `from_torch`.
    """
    return fit.fill(KERAS, {name.removesuffix(":0"): as_numpy(name, value) for name, value in weights.items()}, model)


@_files.one_line()
def from_named(tensors: Mapping[str, Any], model: Model) -> Model:
    """Fill a model from arrays by the names that most of them have: PyTorch's, Keras's or Flax's own.

    Args:
      tensors: arrays by name, such as of `read_state_dict`.
      model: the network to fill.

    Returns, Raises: as `from_torch`.

    >>> from jaxunlearn import _tree, models
    >>> import jax
    >>> net = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    >>> variables = _tree.flatten_paths({"params": net.params, **net.model_state})
    >>> again = from_named(variables, net)
    >>> _tree.model_digest(again) == _tree.model_digest(net)
    True
    """
    clean = fit.clean_names(tensors, model)
    known = {clean[k]: as_numpy(k, value) for k, value in tensors.items() if not fit.is_ignored(clean[k])}
    return fit.fill(fit.choose(known, model), known, model)


def classes(tensors: Mapping[str, np.ndarray], head: tuple[str, ...]) -> int | None:
    """Return how many classes weights are for, by the classifier layer's tensor; None if it is not there.

    >>> classes({"fc.weight": np.zeros((7, 64))}, ("fc",)), classes({"fc/kernel": np.zeros((64, 7))}, ("fc",))
    (7, 7)
    """
    head, found = tuple(head), layouts.class_count(tensors, head)
    while found is None and head and f"{head[0]}." in PREFIXES:  # which `read_state_dict` cuts off
        head = head[1:]
        found = layouts.class_count(tensors, head)
    return found


@_files.one_line()
def load_weights(path: str | Path, recipe: Recipe, build: Callable[..., Model]) -> Model:
    """Read a file of weights into the network of a recipe.

    Args:
      path: a file that `read_state_dict` reads, or a folder of Transformers.
      recipe: the network; of a folder, `jaxunlearn.convert.huggingface.read_recipe`.
      build: ``build(recipe, abstract=True) -> Model``, such as `jaxunlearn.models.from_recipe`.

    Raises:
      OSError, ValueError: as `read_state_dict` and `from_named`, with the file's name.
    """
    tensors = read_state_dict(path)
    try:
        return from_named(tensors, build(recipe, abstract=True))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
