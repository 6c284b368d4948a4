"""One spec, one data set: ``digits``, ``tfds:NAME[:CONFIG]`` or ``npz:FILE``."""

from __future__ import annotations

from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.digits import open_digits
from jaxunlearn.data.npz import open_npz
from jaxunlearn.data.tfds_source import open_tfds


def open_source(spec: str, data_dir: str | None = None, *, reading: Reading | None = None) -> Source:
    """Open a data set by its spec.

    Args:
      spec: ``digits``, ``tfds:NAME``, ``tfds:NAME:CONFIG`` or ``npz:FILE``.
      data_dir: where TFDS data lie; only for ``tfds:``.
      reading: how pictures in files become arrays; sources of one size have no use for it.

    Raises:
      ValueError: an unknown spec, or data that are absent, damaged or of the wrong form.
      ModuleNotFoundError: a library that the source needs is not installed.

    >>> source = open_source("digits")
    >>> source.input_shape, {name: len(rows) for name, rows in source.splits.items()}
    ((8, 8, 1), {'train': 1540, 'test': 257})
    """
    del reading
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest:
        return open_tfds(rest, data_dir)
    if data_dir is not None:
        raise ValueError(f"--data-dir is for tfds: sources only; got {data_dir!r} with {spec!r}")
    if spec == "digits":
        return open_digits()
    if kind == "npz" and rest:
        return open_npz(rest)
    raise ValueError(f"unknown data source {spec!r}: give digits, tfds:NAME, tfds:NAME:CONFIG or npz:FILE")
