"""One spec, one data set: ``digits``, ``npz:``, ``tfds:``, ``folder:``, ``csv:`` and ``parquet:``."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.digits import open_digits
from jaxunlearn.data.folder import open_folder
from jaxunlearn.data.npz import open_npz
from jaxunlearn.data.parquet import open_parquet
from jaxunlearn.data.table import open_csv
from jaxunlearn.data.tfds_source import open_tfds

#: Every spec, for messages.
KINDS = "digits, folder:DIR, csv:FILE, npz:FILE, parquet:FILE_OR_DIR, tfds:NAME or tfds:NAME:CONFIG"
#: Specs that have a use for a data folder.
WITH_DIR = ("tfds", "csv")


def open_source(spec: str, data_dir: str | None = None, *, reading: Reading | None = None) -> Source:
    """Open a data set by its spec.

    Args:
      spec: ``digits``, ``tfds:NAME``, ``tfds:NAME:CONFIG``, ``npz:FILE``,
        ``folder:DIR``, ``csv:FILE`` or ``parquet:FILE_OR_DIR``.
      data_dir: where TFDS data lie; for ``csv:`` the folder that files are relative to.
      reading: how pictures are brought to the network's size; ``digits`` have no use for it.

    Raises:
      ValueError: an unknown spec, or data that are absent, damaged or of the wrong form.
      ModuleNotFoundError: a library that the source needs is not installed.

    >>> source = open_source("digits")
    >>> source.input_shape, {name: len(rows) for name, rows in source.splits.items()}
    ((8, 8, 1), {'train': 1540, 'test': 257})
    """
    kind, _, rest = spec.partition(":")
    if "\0" in spec:
        raise _unknown(spec)
    if kind == "tfds" and rest:
        return open_tfds(rest, data_dir, reading)
    if kind == "csv" and rest:
        return open_csv(rest, data_dir, reading)
    if data_dir is not None:
        raise ValueError(f"--data-dir is for tfds: and csv: sources only; got {data_dir!r} with {spec!r}")
    if spec == "digits":
        return open_digits()
    if kind == "npz" and rest:
        return open_npz(rest, reading)
    if kind == "folder" and rest:
        return open_folder(rest, reading)
    if kind == "parquet" and rest:
        return open_parquet(rest, reading)
    raise _unknown(spec)


def _unknown(spec: str) -> ValueError:
    """Return what to say of a spec that is none; a path without its kind is told with it."""
    kind = os.path.splitext(spec)[1].removeprefix(".").lower()
    meant = "folder" if os.path.isdir(spec) else kind if kind in ("npz", "csv", "parquet") else None
    hint = f"did you mean {meant}:{spec}? " if meant and os.path.exists(spec) else ""
    return ValueError(f"unknown data source {spec!r}: {hint}give {KINDS}")


def open_unlabelled(spec: str, data_dir: str | None = None, *, reading: Reading | None = None) -> Source:
    """Open images without classes, all of them in the split "train" and with the label 0.

    The same specs as `open_source`. A folder may hold pictures outside of class
    folders, a CSV file needs no column but ``file``, an archive no array but ``x``.

    Raises:
      ValueError, ModuleNotFoundError: as `open_source`.
    """
    reading = dataclasses.replace(reading or Reading(), labelled=False)
    source = open_source(spec, data_dir, reading=reading)
    rows = np.setdiff1d(np.arange(len(source.ids)), list(source.skipped))
    return dataclasses.replace(source, labels=np.zeros(len(source.ids), np.int32), splits={"train": rows})
