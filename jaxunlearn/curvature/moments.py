"""Second moments of what a network's layers read, in float64: the space that an edit must not disturb.

For a linear layer the sum of ``x x^T`` over its input vectors, for a
convolution over its input patches (Saha et al. 2021; Hoang et al. 2024). Sums
over parts of a data set add up, so what one part gave can be taken out again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _journal, _progress, _repeat, _tree, _validate
from jaxunlearn._types import Array, Artefact, Model
from jaxunlearn.curvature.layers import Layer, layer_inputs, patches, tapped_layers

#: Images of one pass; the same for every sum, so that inputs are the same to the last bit in all of them.
CHUNK = 16


def input_moments(model: Model, x: Any, layers: Mapping[str, Layer]) -> dict[str, np.ndarray]:
    """Return the sum of x x^T over what each layer reads for some images, (in, in) float64 by path.

    One pass in eval mode, reported as "moments", which goes on where it was
    killed if a journal is open; memory is flat in the number of images. Inputs
    are in the network's dtype, products and sums in float64.

    Args:
      model: a network with taps.
      x: (n, *input_shape), or anything whose slices become one; none gives zeros.
      layers: of `tapped_layers`, or some of them.
    """
    return _summed(model, x, layers)[0]


def _summed(model: Model, x: Any, layers: Mapping[str, Layer]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the sums, and the fingerprint of each image: reading images twice may take as long as summing."""
    n, leaves = len(x), _tree.flatten_paths(model.params)
    total: dict[str, Any] = {path: np.zeros((_width(leaves[path]),) * 2) for path in layers}
    marks = np.zeros(n, np.uint64)
    on_host = jax.default_backend() == "cpu"  # whose BLAS takes the product of a matrix with itself at half the price
    statics = (model.spec.taps_fn, tuple(layers))
    with _journal.work("moments") as work:
        with jax.enable_x64(True):  # else sums that were kept would come back to a device in float32
            done, (total, marks), _ = work.resume((total, marks))
        for start in range(done * CHUNK, n, CHUNK):
            rows = np.asarray(x[start : start + CHUNK])
            real = len(rows)
            marks[start : start + real] = _fingerprints(rows)
            rows = np.concatenate([rows, np.zeros((CHUNK - real, *rows.shape[1:]), rows.dtype)])
            read = _repeat.call(layer_inputs, statics, model.params, model.model_state, rows, np.int32(real))
            for path, value in ((path, value) for path, calls in read.items() for value in calls):
                if on_host:
                    columns = np.asarray(_repeat.call(patches, (layers[path],), value), np.float64)
                    total[path] += columns.T @ columns
                else:
                    with jax.enable_x64(True):
                        total[path] = _repeat.call(_add_product, (layers[path],), total[path], value)
            _progress.report("moments", min(start + CHUNK, n), n)
            work.keep(start // CHUNK + 1, (total, marks))
    return {path: np.asarray(total[path]) for path in layers}, marks


def moments_artefact(
    model: Model, x: Any, *, layers: Sequence[str] = (), true_strides: bool = True, max_bytes: float = 4e9
) -> Artefact:
    """Return the second moments of all layers' inputs over a training set, as an artefact of kind "moments".

    Beside the matrices it keeps a fingerprint of each image, so that only
    images that are in the sums can be taken out of them, and each once.

    Args:
      model: a network with taps, at the weights it was trained to.
      x: the training images, not augmented, (n, *input_shape) or anything whose slices become that.
      layers: globs over paths of kernels (``layer3*/kernel``); none: every layer that is recognised.
      true_strides: False has convolutions read at every place, as the published code does (PGU-4).
      max_bytes: of all matrices together; one of 8,192 inputs takes 512 MiB.

    Raises:
      ValueError: no taps, no images, no layer, a glob without a match, or too many bytes.
    """
    if len(x) == 0:
        raise ValueError("x is empty: second moments need images")
    _validate.inputs("x", x[:CHUNK], model.spec)
    chosen = _chosen(tapped_layers(model), layers)
    if not true_strides:
        chosen = {path: layer._replace(strides=(1,) * len(layer.kernel)) for path, layer in chosen.items()}
    leaves = _tree.flatten_paths(model.params)
    need = sum(8 * _width(leaves[path]) ** 2 for path in chosen)
    if need > max_bytes:
        raise ValueError(
            f"the second moments of {len(chosen)} layers take {need / 1e9:.1f} GB, more than max_bytes={max_bytes:g}: "
            "choose fewer layers by glob, or raise it"
        )
    sums, marks = _summed(model, x, chosen)
    return as_artefact(sums, chosen, marks, model)


def are_of(artefact: Artefact, model: Model, x: Any, *, layers: Sequence[str] = ()) -> bool:
    """Return whether an artefact of kind "moments" is what `moments_artefact` gives; nothing is summed.

    Args:
      artefact: to look at.
      model, x, layers: as for `moments_artefact`; images are told by their fingerprints, reported as "checking images".
    """
    held = artefact.arrays["instances"]
    known = artefact.model_digest == _tree.model_digest(model) and len(held) == len(x)
    if not known or layers_of(artefact) != _chosen(tapped_layers(model), layers):
        return False
    for start in range(0, len(x), CHUNK):
        if not np.array_equal(_fingerprints(x[start : start + CHUNK]), held[start : start + CHUNK]):
            return False
        _progress.report("checking images", min(start + CHUNK, len(x)), len(x))
    return True


def layers_of(artefact: Artefact) -> dict[str, Layer]:
    """Return the layers that an artefact of kind "moments" has matrices of, by the path of their kernel."""
    return {
        path: Layer(tuple(kernel), tuple(strides), tuple((low, high) for low, high in padding))
        for path, (kernel, strides, padding) in artefact.meta["layers"].items()
    }


def without(artefact: Artefact, model: Model, x: Any) -> Artefact:
    """Return an artefact of kind "moments" with some images taken out of its sums.

    Exact to the rounding of float64 while the model is the one that the sums
    were made with; afterwards an approximation, since the inputs of later layers drift.

    Args:
      artefact: of `moments_artefact`.
      model: what the images are shown to.
      x: images that are in the sums, (k, *input_shape).

    Raises:
      ValueError: an image that is not among those summed over, or not any more.
    """
    layers, held = layers_of(artefact), artefact.arrays["instances"]
    left = np.delete(held, places(artefact, x))
    part = input_moments(model, x, layers)
    rest = {path: artefact.arrays[_name(path)] - part[path] for path in layers}
    return dataclasses.replace(as_artefact(rest, layers, left, model), model_digest=artefact.model_digest)


def places(artefact: Artefact, x: Any) -> np.ndarray:
    """Return where in the sums of an artefact of kind "moments" each image stands, (k,); raise as `without`."""
    held = artefact.arrays["instances"]
    there: dict[int, list[int]] = {}
    for place, mark in enumerate(held.tolist()):
        there.setdefault(mark, []).append(place)
    found = []
    for row, mark in enumerate(_fingerprints(x).tolist()):
        if not there.get(mark):
            raise ValueError(
                f"image {row} is not among the {len(held):,} images that the second moments are of: "
                "they must be those of the whole training set, without what was forgotten before"
            )
        found.append(there[mark].pop())
    return np.array(found, int)


def moment(artefact: Artefact, path: str) -> np.ndarray:
    """Return the matrix of one layer, (in, in) float64."""
    return artefact.arrays[_name(path)]


def as_artefact(
    moments: Mapping[str, np.ndarray], layers: Mapping[str, Layer], instances: np.ndarray, model: Model
) -> Artefact:
    """Return second moments as an artefact of a model, such as the one that a request leaves.

    Args:
      moments, layers: by the path of a kernel, see `input_moments`.
      instances: fingerprints of the images in the sums, as another such artefact has them.
      model: what it is bound to.
    """
    return Artefact(
        kind="moments",
        version=1,
        arrays={**{_name(path): matrix for path, matrix in moments.items()}, "instances": instances},
        meta={"layers": {path: [list(part) for part in layer] for path, layer in layers.items()}},
        model_digest=_tree.model_digest(model),
    )


def _name(path: str) -> str:
    return f"moments/{path}"


def _fingerprints(x: Any) -> np.ndarray:
    """Return 64 bits an image, (n,) uint64."""
    rows = np.asarray(x, np.float32)
    marks = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(marks, "<u8").astype(np.uint64)


def _chosen(layers: Mapping[str, Layer], patterns: Sequence[str]) -> dict[str, Layer]:
    if not layers:
        raise ValueError("the network has no linear layer or convolution with taps: there is nothing to sum over")
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in layers):
            raise ValueError(f"no layer matches {pattern!r}; there are {', '.join(layers)}")
    wanted = {path for path in layers for pattern in patterns or ("*",) if fnmatchcase(path, pattern)}
    return {path: layer for path, layer in layers.items() if path in wanted}


def _width(kernel: Any) -> int:
    return math.prod(kernel.shape[:-1])


def _add_product(layer: Layer, total: Array, x: Array) -> Array:
    columns = patches(layer, x).astype(jnp.float64)
    return total + columns.T @ columns
