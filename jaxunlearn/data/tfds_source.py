"""Data sets prepared by TensorFlow Datasets, read from ArrayRecord without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _progress
from jaxunlearn.data._source import Reading, Source
from jaxunlearn.data.files import fitted, to_fit
from jaxunlearn.data.pictures import name_of

_CHUNK = 1000


def open_tfds(name: str, data_dir: str | None = None, reading: Reading | None = None) -> Source:
    """Open a prepared classification data set.

    Labels and ids are read once a process, without decoding an image. Images
    are read as pictures in files are; those that have the network's size are
    taken as they are. Ids are the feature ``id`` where there is one (CIFAR:
    ``train_36044``, the number being the original index), else the split and
    the stored position, ``train_0``.

    Args:
      name: ``NAME`` or ``NAME:CONFIG``, as TFDS names them.
      data_dir: the folder that holds ``NAME/VERSION``; default: TFDS's own.
      reading: how images of other sizes than the network's are brought to it.

    Raises:
      ValueError: no such data set, not prepared, not stored as ArrayRecord, no
        image or label feature, images that are not of 8 bits, damaged files.
      PictureError: an image that cannot be read.
      ModuleNotFoundError: TFDS is not installed.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise ValueError(
            f"no data directory {data_dir}: --data-dir is the folder that holds {name.split(':')[0]}/VERSION"
        )
    name, where = name.strip(), None if data_dir is None else str(Path(data_dir).expanduser().resolve())
    shape, given = _prepared(name, where).input_shape, reading or Reading()
    fit = to_fit(shape, given) or Reading(channels=shape[2] if shape[2] in (1, 3) else None)
    # Only what changes the images, so that they are kept once.
    how = Reading(preprocess=fit.preprocess, channels=fit.channels, flags=given.flags, on_bad_image=given.on_bad_image)
    return _open(name, where, how)


@functools.lru_cache(maxsize=4)
def _open(name: str, data_dir: str | None, reading: Reading) -> Source:
    source = _prepared(name, data_dir)
    records: Any = source.read
    return fitted(source, records, lambda row: f"{name_of(str(source.ids[row]))} of {source.name}", reading)


@functools.lru_cache(maxsize=4)
def _prepared(name: str, data_dir: str | None) -> Source:
    """Return a source that reads the bytes of images, not their pixels; a side that differs among them is None."""
    builder = _builder(name, data_dir)
    features = builder.info.features
    image, label = _image_and_label(name, features, builder.info.supervised_keys)
    shape = features[image].shape
    if len(shape) != 3 or features[image].np_dtype != np.uint8:
        raise ValueError(
            f"tfds:{name} holds images of shape {shape} and type {np.dtype(features[image].np_dtype)}: "
            "prepare it with 8-bit images"
        )

    order = [s for s in ("train", "test") if s in builder.info.splits]
    order += [s for s in builder.info.splits if s not in order and builder.info.splits[s].num_examples]
    if "train" not in order:
        raise ValueError(f"tfds:{name} has no split 'train', only {', '.join(order)}")
    ids: list[str] = []
    labels: list[np.ndarray] = []
    splits: dict[str, np.ndarray] = {}
    for split in order:
        found, y = _ids_and_labels(builder, split, image, label)
        splits[split] = np.arange(len(ids), len(ids) + len(found))
        ids += found
        labels.append(y)
    if len(set(ids)) < len(ids):  # an id feature that numbers each split from 0
        ids = [f"{split}_{ids[row]}" for split, rows in splits.items() for row in rows]

    return Source(
        name=f"tfds:{name}",
        num_classes=features[label].num_classes,
        input_shape=shape,
        class_names=tuple(features[label].names) if features[label].names else None,
        ids=np.array(ids),
        labels=np.concatenate(labels).astype(np.int32),
        splits=splits,
        read=_Records(builder, image, splits),  # type: ignore[arg-type]
    )


def _builder(name: str, data_dir: str | None) -> Any:
    """Return the builder of a prepared data set, or say what to prepare and how."""
    try:
        import array_record.python.array_record_module  # type: ignore[import-untyped]  # noqa: F401
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tfds:{name} needs tensorflow-datasets, array_record and pillow: pip install 'jaxunlearn[data]'"
        ) from error

    try:
        builder = tfds.builder(name.replace(":", "/", 1), data_dir=data_dir, try_gcs=False)
        prepared = bool(builder.info.splits)
    except Exception as error:  # tfds raises its own, AssertionError and protobuf's for the same mistake
        reason = str(error).strip().splitlines()[0].rpartition('}": ')[2]
        if "ot found" in reason:
            reason = "TFDS knows no data set or configuration of that name"
        raise ValueError(f"cannot open tfds:{name}: {reason}") from error
    where = Path(builder.data_path)
    if not prepared:
        root = str(where).removesuffix(f"/{builder.info.full_name}")
        builder_call = f"tfds.builder('{name.replace(':', '/', 1)}', data_dir='{root}', file_format='array_record')"
        raise ValueError(
            f"tfds:{name} is not prepared: no data in {where}. Prepare it once, where TensorFlow is installed: "
            f"""python -c "import tensorflow_datasets as tfds; {builder_call}.download_and_prepare()" """
            "(reading it needs no TensorFlow)"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"tfds:{name} in {where} is stored as {builder.info.file_format.value}, which cannot be read by row: "
            "prepare it with file_format='array_record'"
        )
    return builder


def _image_and_label(name: str, features: Any, supervised: Any) -> tuple[str, str]:
    """Return the names of the image and the label feature: the supervised pair, else the only ones."""
    import tensorflow_datasets as tfds

    def only(kind: Any) -> str:
        keys = [key for key, feature in features.items() if isinstance(feature, kind)]
        keys = [key for key in keys if supervised and key in supervised] or keys
        if len(keys) != 1:
            word = "image" if kind is tfds.features.Image else "class label"
            raise ValueError(f"tfds:{name} must have one {word} feature; it has {', '.join(features)}")
        return keys[0]

    return only(tfds.features.Image), only(tfds.features.ClassLabel)


def _source(builder: Any, split: str, image: str) -> Any:
    """Return the records of a split, their images not decoded."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})


def _ids_and_labels(builder: Any, split: str, image: str, label: str) -> tuple[list[str], np.ndarray]:
    ids: list[str] = []
    labels: list[int] = []
    source = _source(builder, split, image)
    for records in _chunks(source, range(len(source)), builder, split):
        for record in records:
            key = record.get("id", f"{split}_{len(ids)}")
            ids.append(key.decode() if isinstance(key, bytes) else str(key))
            labels.append(int(record[label]))
        _progress.report(f"reading labels: {split} set", len(ids), len(source))
    y = np.array(labels, dtype=np.int64)
    if len(y) and (y.min() < 0 or y.max() >= builder.info.features[label].num_classes):
        raise ValueError(f"tfds:{builder.info.full_name} has instances without a label in split {split!r}")
    return ids, y


def _chunks(source: Any, positions: Sequence[int], builder: Any, split: str) -> Iterator[list[Any]]:
    """Yield decoded records; a damaged or missing file becomes one ValueError that names it."""
    for start in range(0, len(positions), _CHUNK):
        try:
            with _quiet():
                yield source.__getitems__(list(positions[start : start + _CHUNK]))
        except (RuntimeError, OSError, IndexError) as error:
            files = ", ".join(Path(path).name for path in builder.info.splits[split].filenames)
            raise ValueError(
                f"cannot read {files} in {builder.data_path}: damaged or cut short ({str(error).splitlines()[0]})"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the remark that OpenCV would decode faster."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Records:
    """The bytes of images by row, over all splits."""

    def __init__(self, builder: Any, image: str, splits: dict[str, np.ndarray]) -> None:
        self._builder, self._image, self._splits = builder, image, splits
        self._sources = {split: _source(builder, split, image) for split in splits}

    def __call__(self, rows: np.ndarray) -> list[bytes]:
        found = [b""] * len(rows)
        for split, all_rows in self._splits.items():
            places = np.flatnonzero(np.isin(rows, all_rows))
            positions = (rows[places] - all_rows[0]).tolist() if len(places) else []
            records = _chunks(self._sources[split], positions, self._builder, split)
            for place, record in zip(places, (record for chunk in records for record in chunk), strict=True):
                found[place] = record[self._image]
        return found
