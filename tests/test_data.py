"""Sources read from a hand-written prepared data set, archives and the digits; forget specs; every error."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxunlearn._types import Preprocess
from jaxunlearn.data import (
    Reading,
    Source,
    open_source,
    open_unlabelled,
    parse_forget,
    parse_targets,
    pictures,
    tfds_source,
)

RNG = np.random.default_rng(0)
#: Wider than high, and each a row higher than the one before.
MANY_SIZES = {
    split: [RNG.integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(n)]
    for split, n in (("train", 3), ("test", 2))
}
PIXELS = {"train": RNG.integers(0, 256, (60, 8, 8, 3), np.uint8), "test": RNG.integers(0, 256, (20, 8, 8, 3), np.uint8)}


def write_tfds(
    root,
    *,
    file_format="array_record",
    shape=(8, 8, 3),
    ids=True,
    labels=3,
    label_kind="classLabel",
    pixels=PIXELS,
    dtype="uint8",
):
    """Write what the genuine builder would prepare for a data set named ``toys``; return the labels."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_generated_pb2, tf_feature_generated_pb2

    folder = root / "toys" / "1.0.0"
    folder.mkdir(parents=True)
    core = "tensorflow_datasets.core.features"
    features = {
        "image": {
            "pythonClassName": f"{core}.image_feature.Image",
            "image": {"dtype": dtype, "shape": {"dimensions": [str(n) for n in shape]}, "encodingFormat": "png"},
        },
        "label": {
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(labels)},
        },
    }
    if label_kind == "text":
        features["label"] = {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    if ids:
        features["id"] = {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    whole = {"pythonClassName": f"{core}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(whole))
    if label_kind == "classLabel":
        (folder / "label.labels.txt").write_text("\n".join(["ant", "bee", "cow"][:labels]))
    splits, truth = [], {}
    for split, images in pixels.items():
        name = f"toys-{split}.{file_format}-00000-of-00001"
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {"name": split, "numBytes": "1", "shardLengths": [str(len(images))], "filepathTemplate": template}
        )
        truth[split] = np.arange(len(images)) * 7 % 3
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for i in range(len(images)):
            stream = io.BytesIO()
            Image.fromarray(images[i]).save(stream, "PNG")
            record = tf_feature_generated_pb2.Features()
            record.feature["image"].bytes_list.value.append(stream.getvalue())
            record.feature["label"].int64_list.value.append(int(truth[split][i]))
            if ids:
                record.feature["id"].bytes_list.value.append(f"{split}_{100 - i:05d}".encode())
            writer.write(tf_example_generated_pb2.Example(features=record).SerializeToString())
        writer.close()
    info = {"name": "toys", "version": "1.0.0", "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return truth


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Source:
    """The hand-written data set, as a source."""
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root)
    return open_source("tfds:toys", str(root))


@pytest.fixture(scope="module")
def digits() -> Source:
    """scikit-learn's digits, as a source."""
    return open_source("digits")


def write_npz(path, **changes):
    """Write a good archive with some arrays replaced, or dropped where the change is None."""
    arrays = {"x": PIXELS["train"], "y": np.arange(60) % 4, "split": np.array(["train"] * 50 + ["test"] * 10)} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return f"npz:{path}"


def message(call, *args, **kwargs) -> str:
    """Return the ValueError's message, which must be one line."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- sources -----------------------------------------------------------------


def test_digits_are_scikit_learns_in_its_order(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert digits.ids.tolist() == [str(i) for i in range(1797)]
    np.testing.assert_array_equal(digits.labels, bunch.target)
    np.testing.assert_array_equal(digits.images([1796, 3])[..., 0], bunch.images[[1796, 3]].astype(np.float32) / 16)
    rows = np.concatenate(list(digits.splits.values()))
    assert sorted(rows.tolist()) == list(range(1797))
    assert np.bincount(digits.labels[digits.splits["test"]]).min() > 20


def test_tfds_images_labels_ids_and_splits_are_what_was_written(toys):
    assert toys.class_names == ("ant", "bee", "cow")
    assert toys.num_classes == 3
    assert toys.input_shape == (8, 8, 3)
    assert {name: len(rows) for name, rows in toys.splits.items()} == {"train": 60, "test": 20}
    for split, rows in toys.splits.items():
        np.testing.assert_array_equal(toys.labels[rows], np.arange(len(rows)) * 7 % 3)
        assert toys.ids[rows[2]] == f"{split}_00098"
        images = toys.images(rows[::-1])
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, PIXELS[split][::-1] / 255.0, atol=1e-7)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_tfds_rows_of_both_splits_repeated_and_unordered(tmp_path, monkeypatch, cache_bytes):
    monkeypatch.setattr(pictures, "CACHE_BYTES", cache_bytes)
    write_tfds(tmp_path)
    source = open_source("tfds:toys", str(tmp_path))
    both = np.concatenate(list(PIXELS.values()))
    for rows in ([79, 0, 79, 61, 5], [5, 5], [], list(range(80))):
        np.testing.assert_allclose(source.images(rows), both[rows] / 255.0, atol=1e-7)


def test_tfds_without_an_id_feature_is_named_by_position(tmp_path):
    write_tfds(tmp_path, ids=False)
    source = open_source("tfds:toys", str(tmp_path))
    assert source.ids[[0, 59, 60]].tolist() == ["train_0", "train_59", "test_0"]
    assert parse_forget("59,train_3", source, seed=0).tolist() == [59, 3]


def test_tfds_leaves_the_loggers_level_alone(tmp_path):
    write_tfds(tmp_path)
    logger = logging.getLogger("absl")
    before = logger.level
    try:
        logger.setLevel(17)
        open_source("tfds:toys", str(tmp_path)).images([0])
        assert logger.level == 17
    finally:
        logger.setLevel(before)


def test_tfds_images_are_decoded_once(tmp_path, monkeypatch):
    write_tfds(tmp_path)
    source = open_source("tfds:toys", str(tmp_path))
    first = source.images([3, 70, 3])
    monkeypatch.setattr(pictures, "decode", lambda *args: pytest.fail("decoded again"))
    np.testing.assert_array_equal(source.images([70, 3]), first[1:])


def test_tfds_is_opened_once_a_process(tmp_path):
    write_tfds(tmp_path)
    assert open_source("tfds:toys", str(tmp_path)) is open_source("tfds:toys", str(tmp_path))


def test_view_reads_slices(digits):
    view = digits.view([5, 9, 11])
    assert len(view) == 3
    assert view.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(np.concatenate(list(view.batches(2))), digits.images([5, 9, 11]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_of_bytes_and_of_floats_are_the_same_images(tmp_path, dtype):
    x = PIXELS["train"] if dtype is np.uint8 else (PIXELS["train"] / 255).astype(dtype)
    source = open_source(write_npz(tmp_path / "a.npz", x=x))
    assert source.images([3]).dtype == np.float32
    np.testing.assert_allclose(source.images([3, 1]), PIXELS["train"][[3, 1]] / 255, atol=1e-7)
    assert source.num_classes == 4
    assert source.splits["test"].tolist() == list(range(50, 60))


def test_npz_of_grey_images_without_id_and_split(tmp_path):
    source = open_source(write_npz(tmp_path / "a.npz", x=PIXELS["train"][..., 0], split=None))
    assert source.input_shape == (8, 8, 1)
    assert list(source.splits) == ["train"]
    assert source.ids[7] == "7"


def test_npz_ids_may_be_strings_bytes_or_numbers(tmp_path):
    for ids in (np.arange(60) + 500, np.array([f"n{i}" for i in range(60)]), np.array([b"b%d" % i for i in range(60)])):
        source = open_source(write_npz(tmp_path / "a.npz", id=ids))
        first = ids[0].decode() if isinstance(ids[0], bytes) else str(ids[0])
        assert source.row_of(first) == 0


FLOATS = PIXELS["train"] / 255
NPZ_ERRORS = {
    "missing array": (dict(y=None), "has no array 'y', only split, x"),
    "x of one axis": (dict(x=np.zeros(60)), "x in .* must have shape"),
    "channels first": (dict(x=np.moveaxis(PIXELS["train"], 3, 1)), "channels first"),
    "integers": (dict(x=PIXELS["train"].astype(int)), "must be uint8, or floats in .0, 1.; got int64"),
    "nan": (dict(x=np.where(np.arange(60)[:, None, None, None] == 4, np.nan, FLOATS)), "NaN or infinite .* in row 4"),
    "not scaled": (dict(x=PIXELS["train"].astype(np.float32)), r"must lie in \[0, 1\]; got values from 0 to 255"),
    "normalised": (dict(x=FLOATS - 0.5), r"got values from -0.5 to 0.5"),
    "y too short": (dict(y=np.zeros(59, int)), "must be 60 integers"),
    "y of floats": (dict(y=np.zeros(60)), "got float64"),
    "negative label": (dict(y=np.arange(60) - 1), r"must be labels 0, 1, 2, \.\.\.; got -1 in row 0"),
    "a label of 33 bits": (dict(y=np.arange(60) + 2**32 * (np.arange(60) > 57)), "got 4294967355 in row 59"),
    "objects": (
        dict(y=np.array([{}] * 60, dtype=object)),
        "read: y.npy holds Python objects, a pickle",
    ),
    "repeated id": (dict(id=np.arange(60) // 2), "ids of .* must not repeat; '0' occurs 2 times"),
    "ids of floats": (dict(id=np.zeros(60)), "id in .* must be 60 strings or integers"),
    "no training rows": (dict(split=np.array(["test"] * 60)), "must name 'train' for some rows; got test"),
}


@pytest.mark.parametrize("name", NPZ_ERRORS)
def test_npz_errors(tmp_path, name):
    changes, expected = NPZ_ERRORS[name]
    assert re.search(expected, message(open_source, write_npz(tmp_path / "a.npz", **changes)))


def test_npz_files_that_are_none(tmp_path):
    assert "no data file" in message(open_source, f"npz:{tmp_path / 'absent.npz'}")
    (tmp_path / "text.npz").write_text("hello")
    assert "is not a NumPy .npz archive" in message(open_source, f"npz:{tmp_path / 'text.npz'}")
    write_npz(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in message(open_source, f"npz:{tmp_path / 'short.npz'}")
    (tmp_path / "bent.npz").write_bytes(whole[:2000] + b"\0" * 50 + whole[2050:])
    assert "bent.npz cannot be read: Bad CRC-32" in message(open_source, f"npz:{tmp_path / 'bent.npz'}")


def test_tfds_errors_say_what_to_prepare(tmp_path, monkeypatch):
    assert "no data directory" in message(open_source, "tfds:cifar10", str(tmp_path / "absent"))
    said = message(open_source, "tfds:mnist", str(tmp_path))
    assert "is not prepared" in said
    assert f"data_dir='{tmp_path}', file_format='array_record').download_and_prepare()" in said
    assert "TensorFlow is installed" in said
    assert "knows no data set" in message(open_source, "tfds:zebras", str(tmp_path))


def test_tfds_refuses_other_formats_sizes_and_damage(tmp_path):
    write_tfds(tmp_path / "parquet", file_format="parquet")
    assert "stored as parquet" in message(open_source, "tfds:toys", str(tmp_path / "parquet"))
    write_tfds(tmp_path / "sizes", shape=(-1, -1, 3), pixels=MANY_SIZES)
    sizes = open_source("tfds:toys", str(tmp_path / "sizes"))
    said = "train_00099 of tfds:toys is 41x50, others are 40x50, and this network of your own says no size"
    assert said in message(sizes.images, [0, 1])
    write_tfds(tmp_path / "deep", dtype="uint16")
    assert "prepare it with 8-bit images" in message(open_source, "tfds:toys", str(tmp_path / "deep"))
    write_tfds(tmp_path / "text", label_kind="text")
    assert "must have one class label feature; it has" in message(open_source, "tfds:toys", str(tmp_path / "text"))
    write_tfds(tmp_path / "labels", labels=2)
    assert "in split 'train'" in message(open_source, "tfds:toys", str(tmp_path / "labels"))
    write_tfds(tmp_path / "cut")
    file = tmp_path / "cut/toys/1.0.0/toys-train.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-70_000])
    said = message(open_source, "tfds:toys", str(tmp_path / "cut"))
    assert "cannot read toys-train.array_record-00000-of-00001" in said
    (tmp_path / "cut/toys/1.0.0/dataset_info.json").write_text("{")
    assert "cannot open tfds:toys: " in message(tfds_source._prepared.__wrapped__, "toys", str(tmp_path / "cut"))


def test_missing_libraries_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxunlearn\[data\]'"):
        tfds_source._builder("cifar10", None)


def test_a_path_without_its_kind_is_told_with_it(tmp_path):
    for name in ("a.npz", "a.csv", "a.PARQUET"):
        path = tmp_path / name
        assert "did you mean" not in message(open_source, str(path))
        path.touch()
        assert f"did you mean {name.lower()[2:]}:{path}? give" in message(open_source, str(path))
    (tmp_path / "a.txt").touch()
    assert "did you mean" not in message(open_source, str(tmp_path / "a.txt"))
    assert f"did you mean folder:{tmp_path}? give" in message(open_source, str(tmp_path))
    assert "did you mean" not in message(open_source, "x" * 5000)


def test_open_source_errors():
    for spec in ("mnist", "tfds:", "npz:", ""):
        assert f"unknown data source {spec!r}" in message(open_source, spec)
    assert "--data-dir is for tfds: and csv: sources only" in message(open_source, "digits", "somewhere")


# --- the network's size ------------------------------------------------------

#: As a network of CIFAR's size, and one of ImageNet's, say it.
SMALL, PHOTOGRAPH = Preprocess(resize=32, crop=(32, 32)), Preprocess(resize=36, crop=(32, 32), resample="bicubic")


def write_pictures(root, images):
    """Write images as ``0/NUMBER.png``; return the spec."""
    from PIL import Image

    (root / "0").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(root / "0" / f"{i:02d}.png")
    return f"folder:{root}"


@pytest.mark.parametrize("preprocess", [SMALL, PHOTOGRAPH, Preprocess(resize=(32, 32), crop=(32, 32))])
@pytest.mark.parametrize(("stored", "channels"), [(3, 3), (1, 3), (3, 1)])
def test_npz_of_another_size_is_read_as_the_same_pictures_in_files(tmp_path, preprocess, stored, channels):
    images = RNG.integers(0, 256, (12, 40, 50, stored), np.uint8)
    reading = Reading(preprocess=preprocess, channels=channels, num_classes=1)
    files = open_source(write_pictures(tmp_path / "files", images), reading=reading)
    np.savez(tmp_path / "a.npz", x=images, y=np.zeros(12, int))
    arrays = open_source(f"npz:{tmp_path / 'a.npz'}", reading=reading)
    assert arrays.input_shape == files.input_shape == (32, 32, channels)
    pixels = arrays.read(np.arange(12))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, files.read(np.arange(12)))
    assert dict(arrays.notes)["images"].startswith(f"of 40x50x{stored}, brought to 32x32x{channels}")
    public = open_unlabelled(f"npz:{tmp_path / 'a.npz'}", reading=reading)
    np.testing.assert_array_equal(public.read(np.arange(12)), pixels)


@pytest.mark.parametrize("preprocess", [SMALL, PHOTOGRAPH])
def test_tfds_of_many_sizes_is_read_as_the_same_pictures_in_files(tmp_path, preprocess):
    reading = Reading(preprocess=preprocess, channels=3, num_classes=1)
    write_tfds(tmp_path, shape=(-1, -1, 3), pixels=MANY_SIZES)
    stored = open_source("tfds:toys", str(tmp_path), reading=reading)
    both = [image for images in MANY_SIZES.values() for image in images]
    files = open_source(write_pictures(tmp_path / "files", both), reading=reading)
    rows = np.array([4, 0, 3, 0])
    np.testing.assert_array_equal(stored.read(rows), files.read(rows))
    assert (stored.input_shape, stored.num_classes) == ((32, 32, 3), 3)
    assert {name: len(rows) for name, rows in stored.splits.items()} == {"train": 3, "test": 2}
    assert dict(stored.notes)["images"].startswith("of many sizes, brought to 32x32x3")


def test_images_of_the_networks_size_are_taken_as_they_are(tmp_path, toys):
    # A photograph of that size would be resized to 9x9 before the crop.
    reading = Reading(preprocess=Preprocess(resize=9, crop=(8, 8)), channels=3)
    for dtype in (np.uint8, np.float32):
        x = PIXELS["train"] if dtype is np.uint8 else (PIXELS["train"] / 255).astype(dtype)
        source = open_source(write_npz(tmp_path / "a.npz", x=x), reading=reading)
        np.testing.assert_array_equal(source.read(np.arange(60)), x)
        assert source.notes == ()
    write_tfds(tmp_path)
    np.testing.assert_array_equal(
        open_source("tfds:toys", str(tmp_path), reading=reading).read(np.arange(60)), PIXELS["train"]
    )


def test_a_network_yet_to_be_built_takes_the_size_of_images_that_have_one(tmp_path):
    reading = Reading(preprocess=SMALL, channels=3, adapts=True)
    assert open_source(write_npz(tmp_path / "a.npz"), reading=reading).input_shape == (8, 8, 3)
    write_tfds(tmp_path / "one")
    assert open_source("tfds:toys", str(tmp_path / "one"), reading=reading).input_shape == (8, 8, 3)
    write_tfds(tmp_path / "many", shape=(-1, -1, 3), pixels=MANY_SIZES)
    assert open_source("tfds:toys", str(tmp_path / "many"), reading=reading).input_shape == (32, 32, 3)


def test_stored_images_that_cannot_be_made_to_fit(tmp_path):
    reading = Reading(preprocess=SMALL, channels=3)
    said = message(open_source, write_npz(tmp_path / "a.npz", x=PIXELS["train"] / 255), reading=reading)
    assert "holds floats of 8x8x3, the network takes 32x32x3: save them as uint8" in said
    four = open_source(write_npz(tmp_path / "a.npz", x=PIXELS["train"].repeat(2, 3)[..., :4]), reading=reading)
    assert four.input_shape == (8, 8, 4)  # no colours: refused by their size, as before
    assert open_source(write_npz(tmp_path / "a.npz"), reading=Reading(channels=3)).input_shape == (8, 8, 3)
    thin = np.zeros((2, 1, 4000, 3), np.uint8)
    spec = write_npz(tmp_path / "a.npz", x=thin, y=np.zeros(2, int), split=None)
    huge = Preprocess(resize=4000, crop=(32, 32))
    source = open_source(spec, reading=Reading(preprocess=huge, channels=3))
    said = message(source.images, [1])
    assert said.startswith(f"row 1 of {tmp_path / 'a.npz'} is 4000x1 pixels, too narrow to be resized to 4000")
    skip = Reading(preprocess=huge, channels=3, on_bad_image="skip")
    assert "none of 2 pictures can be read; row 0 of" in message(open_source, spec, reading=skip)


@pytest.mark.parametrize("library", ["none", "grain"])
def test_the_pages_example_takes_anything_with_length_and_items(library):
    page = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
    block, _ = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    before, given, after = re.split(r"^(dataset = .*)$", block, flags=re.MULTILINE)
    space = {"item": lambda i: {"image": np.full((8, 8, 1), i, np.uint8), "label": i % 10}}
    if library == "grain":
        space["grain"] = pytest.importorskip("grain")
        given = "dataset = grain.MapDataset.range(20).map(item)"
    exec(before + given + after, space)
    source = space["source"]
    np.testing.assert_array_equal(source.read(np.array([17, 3]))[:, 0, 0, 0], [17, 3])
    assert source.labels.tolist() == [i % 10 for i in range(20)]
    assert source.images([]).shape == (0, 8, 8, 1)


# --- forget specs ------------------------------------------------------------


def test_ids_in_the_order_named(toys):
    assert toys.ids[parse_forget("train_00050, 99,train_42", toys, seed=0)].tolist() == [
        "train_00050",
        "train_00099",
        "train_00042",
    ]


def test_ids_of_a_file(tmp_path, digits):
    (tmp_path / "ids.txt").write_text("# wrong labels\n5\n\n12  # a one\n8,\n")
    assert parse_forget(f"@{tmp_path / 'ids.txt'}", digits, seed=0).tolist() == [5, 12, 8]


def test_a_class_by_number_and_by_name(toys):
    rows = parse_forget("class:bee", toys, seed=0)
    np.testing.assert_array_equal(rows, parse_forget("class:1", toys, seed=0))
    assert set(toys.labels[rows]) == {1}
    assert len(rows) == 20


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 100), st.integers(1, 100))
def test_random_subsets_are_nested_distinct_and_of_the_training_split(seed, a, b):
    digits = open_source("digits")
    small, large = (parse_forget(f"random:{n}", digits, seed=seed) for n in sorted((a, b)))
    np.testing.assert_array_equal(small, large[: len(small)])
    assert len(set(large.tolist())) == max(a, b)
    assert np.isin(large, digits.splits["train"]).all()


def test_random_depends_on_the_seed_and_not_on_stored_order(toys):
    first = toys.ids[parse_forget("random:10", toys, seed=1)]
    assert set(first) != set(toys.ids[parse_forget("random:10", toys, seed=2)])
    order = np.concatenate([RNG.permutation(60), np.arange(60, 80)])
    mixed = Source(**{**vars_of(toys), "ids": toys.ids[order], "labels": toys.labels[order]})
    np.testing.assert_array_equal(mixed.ids[parse_forget("random:10", mixed, seed=1)], first)


def vars_of(source: Source) -> dict:
    """Return a source's fields."""
    import dataclasses

    return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 59), min_size=1, max_size=20, unique=True), st.data())
def test_any_spelling_of_ids_gives_their_rows(rows, data):
    source = SPELLING
    spellings = [
        data.draw(st.sampled_from([f"train_{row + 1:05d}", f"{row + 1}", f"train_{row + 1}", f" 00{row + 1} "]))
        for row in rows
    ]
    assert parse_forget(",".join(spellings), source, seed=0).tolist() == rows


def test_a_number_that_ends_two_ids_stands_for_neither():
    ids = np.array(["cat_1", "dog_1", "dog_2", "7"])
    splits = {"train": np.arange(4)}
    source = Source(**{**vars_of(SPELLING), "ids": ids, "labels": np.zeros(4, np.int32), "splits": splits})
    assert parse_forget("dog_1,2,7", source, seed=0).tolist() == [1, 2, 3]
    assert "unknown id '1'" in message(parse_forget, "1", source, seed=0)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_rows_or_one_line(text):
    if text.strip().startswith("@"):
        return
    try:
        rows = parse_forget(text, SPELLING, seed=0)
    except ValueError:
        message(parse_forget, text, SPELLING, seed=0)
    else:
        assert len(set(rows.tolist())) == len(rows) > 0


SPELLING = Source(
    name="spelling",
    num_classes=4,
    input_shape=(1, 1, 1),
    class_names=None,
    ids=np.array([f"train_{i + 1:05d}" for i in range(60)] + [f"test_{i + 1:05d}" for i in range(20)]),
    labels=np.arange(80, dtype=np.int32) % 3,
    splits={"train": np.arange(60), "test": np.arange(60, 80)},
    read=lambda rows: np.zeros((len(rows), 1, 1, 1), np.uint8),
)

FORGET_ERRORS = {
    "nine": "unknown id 'nine': ids of spelling look like train_00001 or train_00060",
    "a,b,c,d,e,f,g": "unknown ids 'a', 'b', 'c', 'd', 'e' and 2 more",
    "61": "unknown id '61'",
    "7,8,train_00007": "instance 7 = train_00007 is named 2 times",
    "7,7,7": "instance 7 is named 3 times",
    "test_00003": "instance test_00003 is in the split 'test'",
    "": "the forget set is empty",
    " , ": "the forget set is empty",
    "class:3": "the forget set is empty: no training instance of spelling has the label 3",
    "class:4": "label 4 is out of range: spelling has labels 0 to 3",
    "class:-1": "label -1 is out of range",
    "class:dog": "no class 'dog' in spelling",
    "random:0": "the forget set is empty: random:0",
    "random:61": "random:61 asks for more than the 60 training instances",
    "random:-5": "random: takes a number",
    "random:many": "random: takes a number of instances, such as random:16; got 'many'",
    "@absent.txt": "cannot read absent.txt: No such file or directory",
}


@pytest.mark.parametrize("spec", FORGET_ERRORS)
def test_forget_errors(spec):
    assert message(parse_forget, spec, SPELLING, seed=0).startswith(FORGET_ERRORS[spec])


def test_forget_file_errors(tmp_path):
    (tmp_path / "empty").write_text("# nothing\n\n")
    assert "is empty" in message(parse_forget, f"@{tmp_path / 'empty'}", SPELLING, seed=0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x9f\x80")
    assert "not a text file" in message(parse_forget, f"@{tmp_path / 'binary'}", SPELLING, seed=0)
    assert "Is a directory" in message(parse_forget, f"@{tmp_path}", SPELLING, seed=0)


# --- relabel targets ---------------------------------------------------------


def test_random_targets_are_uniform_over_the_other_labels():
    rows = np.arange(60)
    seen = np.stack([parse_targets("random", SPELLING, rows, seed=seed) for seed in range(300)])
    shift = (seen - SPELLING.labels[:60]) % 4
    counts = np.bincount(shift.ravel(), minlength=4)
    assert counts[0] == 0
    expected = 300 * 60 / 3
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


def test_random_targets_are_a_function_of_seed_and_id():
    a = parse_targets("random", SPELLING, np.array([4, 9]), seed=3)
    b = parse_targets("random", SPELLING, np.array([9, 1, 4]), seed=3)
    assert a.tolist() == b[[2, 0]].tolist()


def test_targets_of_a_label_and_of_a_file(tmp_path, toys):
    rows = toys.splits["train"][[0, 3]]
    assert parse_targets("cow", toys, rows, seed=0).tolist() == [2, 2]
    assert parse_targets("7", toys, rows, seed=0, num_classes=9).tolist() == [7, 7]
    (tmp_path / "t.csv").write_text("id,label\ntrain_00097,bee\n100,2\n")
    targets = parse_targets(f"@{tmp_path / 't.csv'}", toys, rows, seed=0)
    assert targets.tolist() == [2, 1]
    assert targets.dtype == np.int32


def test_target_errors(tmp_path, toys):
    rows = toys.splits["train"][[0, 3, 1]]

    def of(spec):
        return message(parse_targets, spec, toys, rows, seed=0)

    assert of("ant") == (
        "the target of instance train_00100 is its true label, ant (and of 1 more): give another label, or 'random'"
    )
    assert of("5") == "label 5 is out of range: tfds:toys has labels 0 to 2"
    assert of("dog").startswith("no class 'dog'")
    for text, expected in {
        "100,1\n97\n": "must hold lines id,label; got '97'",
        "100,1\n97,2\n1,2": "gives a target for '1', which is not in the forget set",
        "100,1\n97,2\n": "gives no target for train_00099",
        "100,1\n97,2\n97,1\n": "gives two targets for '97'",
        "100,8\n": "label 8 is out of range",
    }.items():
        (tmp_path / "t.csv").write_text(text)
        assert expected in of(f"@{tmp_path / 't.csv'}")
    assert "cannot read" in of(f"@{tmp_path / 'absent.csv'}")
    assert "at least 2 classes" in message(parse_targets, "random", toys, rows, seed=0, num_classes=1)


# --- real CIFAR-10 -----------------------------------------------------------


def test_cifar10_by_original_index(shared):
    source = open_source("tfds:cifar10", str(shared / "data" / "tfds"))
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 50000, "test": 10000}
    rows = parse_forget("36044,49165", source, seed=0)
    assert source.ids[rows].tolist() == ["train_36044", "train_49165"]
    assert np.bincount(source.labels[source.splits["train"]]).tolist() == [5000] * 10
    sample = source.images(source.splits["train"][::50])
    np.testing.assert_allclose(sample.mean((0, 1, 2)), [0.4914, 0.4822, 0.4465], atol=0.01)
