"""Data sets in one NumPy archive: arrays ``x`` and ``y``, optionally ``id`` and ``split``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxunlearn.data._source import Source


def open_npz(path: str) -> Source:
    """Open an archive as `numpy.savez` writes it.

    ``x`` is (n, H, W, C) or (n, H, W), uint8 or floats in [0, 1]; ``y`` is
    (n,) integers from 0; ``id`` (n,) distinct integers or strings, default the
    row number; ``split`` (n,) strings, default all "train". The number of
    classes is the largest label plus one. Nothing is unpickled.

    Raises:
      ValueError: no such file, not an archive or cut short, a missing array,
        an array of Python objects, wrong shapes or types, NaN, floats outside
        [0, 1], a negative label, repeated ids, no training rows.
    """
    arrays = _load(path)
    for name in ("x", "y"):
        if name not in arrays:
            raise ValueError(
                f"{path} has no array {name!r}, only {', '.join(sorted(arrays)) or 'none'}: it needs x and y"
            )
    x, n = _pixels(path, arrays["x"])
    y = arrays["y"]
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y in {path} must be {n} integers, one an image; got {y.dtype} of shape {y.shape}")
    if y.min() < 0:
        raise ValueError(f"y in {path} must be labels from 0; got {y.min()} in row {y.argmin()}")

    ids, split = (
        _strings(path, name, arrays.get(name), n, default)
        for name, default in (("id", np.arange(n)), ("split", np.full(n, "train")))
    )
    if "train" not in split:
        raise ValueError(f"split in {path} must name 'train' for some rows; got {', '.join(np.unique(split)[:5])}")
    return Source(
        name=f"npz:{path}",
        num_classes=int(y.max()) + 1,
        input_shape=x.shape[1:],
        class_names=None,
        ids=ids,
        labels=y.astype(np.int32),
        splits={str(name): np.flatnonzero(split == name) for name in np.unique(split)},
        read=x.__getitem__,
    )


def open_images(spec: str) -> np.ndarray:
    """Return unlabelled images, the array ``x`` of ``npz:FILE``, (n, H, W, C) float32 in [0, 1].

    Raises:
      ValueError: another spec, or a file or images that `open_npz` would not take.
    """
    kind, _, path = spec.partition(":")
    if kind != "npz" or not path:
        raise ValueError(f"unlabelled images are given as npz:FILE, with an array x; got {spec!r}")
    arrays = _load(path)
    if "x" not in arrays:
        raise ValueError(f"{path} has no array 'x', only {', '.join(sorted(arrays)) or 'none'}")
    x, _ = _pixels(path, arrays["x"])
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x


def _load(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise ValueError(f"no data file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a NumPy .npz archive, or is cut short")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        if "bject arrays" in str(error):
            raise ValueError(f"{path} holds Python objects, which are never unpickled: save plain arrays") from error
        raise ValueError(f"{path} is damaged: {error}") from error


def _pixels(path: str, x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return checked images (n, H, W, C) and n."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x in {path} must have shape (n, height, width, channels); got {x.shape}")
    if x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        raise ValueError(
            f"x in {path} has shape {x.shape}, channels first: transpose it to (n, height, width, channels)"
        )
    if x.dtype == np.uint8:
        return x, len(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"x in {path} must be uint8, or floats in [0, 1]; got {x.dtype}")
    bad = ~np.isfinite(x).all(axis=(1, 2, 3))
    if bad.any():
        raise ValueError(f"x in {path} has NaN or infinite values in row {bad.argmax()}")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"x in {path} must lie in [0, 1]; got values from {x.min():g} to {x.max():g}"
            " (normalise inside the network with --mean and --std, not in the data)"
        )
    return x.astype(np.float32, copy=False), len(x)


def _strings(path: str, name: str, values: np.ndarray | None, n: int, default: np.ndarray) -> np.ndarray:
    if values is None:
        return default.astype(str)
    if values.shape != (n,) or values.dtype.kind not in "iuUS":
        raise ValueError(
            f"{name} in {path} must be {n} strings or integers, one an image; "
            f"got {values.dtype} of shape {values.shape}"
        )
    return np.char.decode(values) if values.dtype.kind == "S" else values.astype(str)
