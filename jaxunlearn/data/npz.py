"""Data sets in one NumPy archive: arrays ``x`` and ``y``, optionally ``id`` and ``split``."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxunlearn import _cpu, _files
from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.files import fitted, to_fit

#: Labels are kept in 32 bits; one that does not fit must not become another by being cut off.
_MOST_CLASSES = 2**31 - 1


def open_npz(path: str, reading: Reading | None = None) -> Source:
    """Open an archive as `numpy.savez` writes it; all of it is in memory then.

    ``x`` is (n, H, W, C) or (n, H, W), uint8 or floats in [0, 1]; ``y`` is
    (n,) integers from 0; ``id`` (n,) distinct integers or strings, default the
    row number; ``split`` (n,) strings, default all "train". The number of
    classes is the largest label plus one. Nothing is unpickled, and other
    arrays are not read. Images of
    another size than the network's are brought to it, if they are uint8.
    Without labels only ``x`` is looked at.

    Raises:
      ValueError: no such file, not an archive or cut short, a missing array,
        an array of Python objects or one that the memory cannot hold, wrong
        shapes or types, NaN, floats outside [0, 1] or of another size than the
        network's, a label below 0 or beyond 32 bits, repeated ids, no training
        rows.
      ModuleNotFoundError: images are to be resized and Pillow is not installed.
    """
    reading = reading or Reading()
    arrays = _load(path, ("x", "y") if reading.labelled else ("x",))
    x, n = _pixels(path, arrays["x"])
    if not reading.labelled:
        arrays = {"y": np.zeros(n, np.int32)}
    y = arrays["y"]
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y in {path} must be {n} integers, one an image; got {y.dtype} of shape {y.shape}")
    for row in (int(y.argmin()), int(y.argmax())):
        if not 0 <= y[row] < _MOST_CLASSES:
            raise ValueError(f"y in {path} must be labels 0, 1, 2, ...; got {y[row]} in row {row}")

    ids, split = (
        _strings(path, name, arrays.get(name), n, default)
        for name, default in (("id", np.arange(n)), ("split", np.full(n, "train")))
    )
    if "train" not in split:
        raise ValueError(f"split in {path} must name 'train' for some rows; got {', '.join(np.unique(split)[:5])}")
    source = Source(
        name=f"npz:{path}",
        num_classes=int(y.max()) + 1,
        input_shape=x.shape[1:],
        class_names=None,
        ids=ids,
        labels=y.astype(np.int32),
        splits={str(name): np.flatnonzero(split == name) for name in np.unique(split)},
        read=x.__getitem__,
        archives=(Path(path),),
    )
    fit = to_fit(x.shape[1:], reading)
    if fit is None:
        return source
    if x.dtype != np.uint8:
        size = "x".join(map(str, (*fit.preprocess.crop, fit.channels)))  # type: ignore[union-attr]
        raise ValueError(
            f"x in {path} holds floats of {'x'.join(map(str, x.shape[1:]))}, the network takes {size}: "
            "save them as uint8, which are resized, or in that size"
        )
    return fitted(source, lambda rows: [x[row] for row in rows], lambda row: f"row {row} of {path}", fit)


def _load(path: str, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an archive that are needed, and ``id`` and ``split``."""
    if not Path(path).is_file():
        raise ValueError(f"no data file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a NumPy .npz archive, or is cut short")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            wanted = [name for name in (*needed, "id", "split") if name in members]
            size, most = sum(members[name].file_size for name in wanted), _cpu.host_memory()
            if most is not None and size > most:
                have = f"{most / 2**30:,.1f} GiB of memory here"
                raise ValueError(f"it would fill {size / 2**30:,.1f} GiB, and there are {have}")
            arrays = {name: _files.npz_array(archive, members[name]) for name in wanted}
    except Exception as error:  # zipfile and NumPy raise nearly anything of a damaged one
        reason = _files.printable(str(error) or type(error).__name__, most=160)
        raise ValueError(f"{path} cannot be read: {reason}") from error
    for name in needed:
        if name not in arrays:
            have = f"{path} has no array {name!r}, only {', '.join(sorted(members)) or 'none'}"
            raise ValueError(have + ": it needs x and y" * (len(needed) > 1))
    return arrays


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
        remedy = "normalise inside the network with --mean and --std, not in the data"
        if x.min() >= 0 and x.max() <= 255:
            remedy = "save pixels of 0 to 255 as uint8, or divide them by 255"
        raise ValueError(f"x in {path} must lie in [0, 1]; got values from {x.min():g} to {x.max():g}: {remedy}")
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
