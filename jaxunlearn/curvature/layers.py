"""Linear layers and convolutions of a network, and what each multiplies its kernel with.

Known from taps alone: a layer is what it does to noise, so that any network
library and any way of writing padding down will do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _repeat, _tree
from jaxunlearn._types import Array, Model, Params

#: Share of a layer's output that patches times kernel may miss (TF32, bfloat16), and it still is what we take it for.
_TOLERANCE = 1e-2


class Layer(NamedTuple):
    """How a layer reads its input; all empty for a linear layer.

    Attributes:
      kernel: sides of the kernel.
      strides: steps between two outputs.
      padding: zeros before and after the input, by side.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()


def patches(layer: Layer, x: Array) -> Array:
    """Return what a layer's kernel is multiplied with, one row for each output place; pure.

    Args:
      layer: how it reads its input.
      x: that input, (n, *sides, channels).

    Returns:
      (n * places, prod(kernel) * channels), columns in the order of Flax's kernels, sides before channels.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> patches(Layer((2, 2), (1, 1), ((0, 0), (0, 0))), x).tolist()
    [[0.0, 1.0, 2.0, 3.0]]
    """
    channels = x.shape[-1]
    if not layer.kernel:
        return x.reshape(-1, channels)
    padded = jnp.pad(x, ((0, 0), *layer.padding, (0, 0)))
    last = [side - size for side, size in zip(padded.shape[1:-1], layer.kernel, strict=True)]
    pieces = []
    for corner in itertools.product(*map(range, layer.kernel)):
        cut = (slice(at, at + end + 1, step) for at, end, step in zip(corner, last, layer.strides, strict=True))
        pieces.append(padded[(slice(None), *cut)])
    return jnp.stack(pieces, axis=-2).reshape(-1, len(pieces) * channels)


def tapped_layers(model: Model) -> dict[str, Layer]:
    """Return the linear layers and convolutions whose inputs the model's taps give, by the path of their kernel.

    A layer is known by what it does: its output on two images of noise is its
    patches times its kernel, plus its bias. Strides and padding are the ones
    for which that holds. Grouped and dilated convolutions are not among them,
    nor is a layer whose weights are not called ``kernel`` and ``bias``.

    Raises:
      ValueError: the model has no taps.
    """
    if model.spec.taps_fn is None:
        raise ValueError("model.spec.taps_fn is None: which inputs a layer gets is known only of a network with taps")
    low, high = model.spec.box
    noise = np.random.default_rng(0).uniform(low, high, (2, *model.spec.input_shape)).astype(np.float32)
    taps = _repeat.call(_taps, (model.spec.taps_fn,), model.params, model.model_state, noise)
    taps = {name: np.asarray(value) for name, value in taps.items()}
    leaves = _tree.flatten_paths(model.params)
    found = {}
    for path, kernel in leaves.items():
        module, _, name = path.rpartition("/")
        calls = [(taps[key], taps.get(key.removesuffix(":in"))) for key in _keys(module, taps)]
        bias = np.asarray(leaves.get(f"{module}/bias", 0.0), np.float64)
        layer = _recognised(calls, np.asarray(kernel, np.float64), bias) if calls and name == "kernel" else None
        if layer is not None:
            found[path] = layer
    return found


def layer_inputs(
    taps_fn: Any, paths: tuple[str, ...], params: Params, model_state: Params, x: Array, real: Array
) -> dict[str, list[Array]]:
    """Return what layers get, by path and call, with 0 for all images from number ``real`` on; pure."""
    taps = taps_fn(params, model_state, x)

    def kept(value: Array) -> Array:
        mask = (jnp.arange(value.shape[0]) < real).reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(mask, value, jnp.zeros((1,) * value.ndim, value.dtype))

    return {path: [kept(taps[key]) for key in _keys(path.rpartition("/")[0], taps)] for path in paths}


def _taps(taps_fn: Any, params: Params, model_state: Params, x: Array) -> dict[str, Array]:
    taps: dict[str, Array] = taps_fn(params, model_state, x)
    return taps


def _keys(module: str, taps: Mapping[str, Any]) -> list[str]:
    """Return the taps of a module's inputs, one for each of its calls."""
    names = itertools.chain([f"{module}:in"], (f"{module}#{nth}:in" for nth in itertools.count(1)))
    return list(itertools.takewhile(taps.__contains__, names))


def _recognised(calls: Sequence[tuple[Any, Any]], kernel: np.ndarray, bias: np.ndarray) -> Layer | None:
    """Return how a layer reads its inputs, if it does what a linear layer or a convolution does."""
    sides = kernel.ndim - 2
    for x, y in calls:
        fits = sides >= 0 and y is not None and x.ndim == y.ndim >= sides + 2
        if not fits or x.shape[-1] != kernel.shape[-2] or y.shape[-1] != kernel.shape[-1]:
            return None
        if (sides and x.ndim != kernel.ndim) or (not sides and x.shape[:-1] != y.shape[:-1]):
            return None
    x, y = calls[0]
    ways = [list(_ways(*three)) for three in zip(x.shape[1:], y.shape[1:], kernel.shape[:sides], strict=False)]
    best, least = None, _TOLERANCE
    for way in itertools.product(*ways):
        layer = Layer(*zip(*way, strict=True)) if way else Layer()
        missed = max(_missed(*call, kernel, bias, layer) for call in calls)
        if missed < least:
            best, least = layer, missed
    return best


def _ways(side: int, out: int, size: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield (size, stride, padding) with which a side gives so many outputs."""
    for stride in range(1, max(size, -(-side // out)) + 1):
        for low in range(size):
            high = max((out - 1) * stride + size - side - low, 0)
            if high < size and (side + low + high - size) // stride + 1 == out:
                yield size, stride, (low, high)


def _missed(x: np.ndarray, y: np.ndarray, kernel: np.ndarray, bias: np.ndarray, layer: Layer) -> float:
    """Return the share of a layer's output that patches times kernel do not give, at some places."""
    sides = len(layer.kernel)
    places = [np.unique(np.linspace(0, side - 1, min(side, 5)).astype(int)) for side in y.shape[1 : 1 + sides]]
    padded = np.pad(x.astype(np.float64), ((0, 0), *layer.padding, (0, 0))) if sides else x.astype(np.float64)
    made = np.zeros(())
    for corner in itertools.product(*map(range, layer.kernel)):
        at = [place * step + c for place, step, c in zip(places, layer.strides, corner, strict=True)]
        if any(index[-1] >= side for index, side in zip(at, padded.shape[1:], strict=False)):
            return math.inf  # another call of the layer, on a smaller input
        made = made + padded[np.ix_(np.arange(len(x)), *at)] @ kernel[corner] if sides else padded @ kernel
    wanted = (y[np.ix_(np.arange(len(y)), *places)] if sides else y).astype(np.float64) - bias
    return float(np.linalg.norm(made - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
