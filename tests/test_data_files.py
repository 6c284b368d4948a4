"""Folders, CSV files and Parquet as data sets: what is in them comes out, in the network's order of classes."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import unicodedata

import numpy as np
import pytest

from jaxunlearn import _progress
from jaxunlearn._types import Preprocess
from jaxunlearn.data import (
    PictureError,
    Reading,
    join,
    open_source,
    open_unlabelled,
    parse_forget,
    parse_targets,
    pictures,
)
from tests.picture_files import NAMES, digit, label, write_folder, write_parquet, write_table

ROWS = range(1, 31)
DIGITS = open_source("digits")
TEN = Reading(num_classes=10, channels=1)
SAME = Preprocess(resize=8, crop=(8, 8))


def expected(rows) -> np.ndarray:
    """Return digits as 8-bit files hold them."""
    return np.round(DIGITS.images(list(rows)) * 255).astype(np.float32) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty digits in a folder of each of the ten classes."""
    root = tmp_path_factory.mktemp("folder")
    write_folder(root, ROWS)
    return root


def of(source, name):
    """Return the row of the digit of that number."""
    return source.row_of(f"{name}.png")


def message(call, *args, **kwargs) -> str:
    """Return the ValueError's message, which must be one line."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders -----------------------------------------------------------------


def test_a_folder_of_class_folders(folder):
    source = open_source(f"folder:{folder}", reading=TEN)
    assert source.ids.tolist() == sorted(f"{NAMES[label(row)]}/{row}.png" for row in ROWS)
    assert source.class_names == NAMES
    assert source.input_shape == (8, 8, 1)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 30}
    rows = [of(source, row) for row in ROWS]
    assert source.labels[rows].tolist() == [label(row) for row in ROWS]
    np.testing.assert_array_equal(source.images(rows), expected(ROWS))
    assert "10, their names sorted: d0, d1" in dict(source.notes)["classes"]


def test_split_folders(tmp_path):
    write_folder(tmp_path / "train", ROWS)
    write_folder(tmp_path / "test", range(35, 42))
    source = open_source(f"folder:{tmp_path}", reading=TEN)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 30, "test": 7}
    assert all(source.ids[row].startswith("test/d") for row in source.splits["test"])
    (tmp_path / "boat").mkdir()  # now train is a vehicle
    write_folder(tmp_path / "boat", [50])
    names = open_source(f"folder:{tmp_path}", reading=Reading(channels=1)).class_names
    assert names == ("boat", "test", "train")


def test_folders_inside_class_folders_links_and_hidden_files(tmp_path):
    write_folder(tmp_path / "apart", [3, 4])
    (tmp_path / "data/d3/more").mkdir(parents=True)
    (tmp_path / "data/d3/more/x.png").write_bytes(digit(3))
    (tmp_path / "data/d3/.DS_Store").write_bytes(b"\0")
    (tmp_path / "data/d3/Thumbs.db").write_bytes(b"\0")
    (tmp_path / "data/notes.txt").write_text("beside the classes")
    (tmp_path / "data/d4").symlink_to(tmp_path / "apart/d4")
    source = open_source(f"folder:{tmp_path / 'data'}", reading=Reading(channels=1))
    assert source.ids.tolist() == ["d3/more/x.png", "d4/4.png"]


@pytest.mark.parametrize("name", ["two words", "Łódź 東京", "a,b=c #1", "two\nlines", "'quoted'"])
def test_names_of_all_kinds(tmp_path, name):
    for place in (tmp_path / f"{name} class", tmp_path / "other"):
        place.mkdir()
        (place / f"{name}.png").write_bytes(digit(3))
    source = open_source(f"folder:{tmp_path}", reading=Reading(channels=1))
    mine = f"{name} class/{name}.png"
    row = source.row_of(mine)
    assert source.ids[row] == mine
    assert parse_forget(mine, source, seed=0).tolist() == [row]
    if "," not in name:
        assert "names 2 instances (" in message(parse_forget, f"{name}.png,7", source, seed=0)
    table = tmp_path / "forget.csv"
    table.write_text(f'"id"\n"{mine}"\n', encoding="utf-8")
    assert parse_forget(f"@{table}", source, seed=0).tolist() == [row]


def test_letters_composed_in_either_way_are_the_same_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / unicodedata.normalize("NFD", "café.png")).write_bytes(digit(3))
    source = open_source(f"folder:{tmp_path}", reading=Reading(channels=1))
    assert source.row_of(unicodedata.normalize("NFC", "a/café.png")) == 0
    assert source.row_of(unicodedata.normalize("NFC", "café.png")) == 0


# --- the order of classes ----------------------------------------------------


def test_three_of_many_classes_are_never_labelled_by_guess(tmp_path):
    write_folder(tmp_path, [3, 4, 5])
    said = message(open_source, f"folder:{tmp_path}", reading=TEN)
    assert "has 3 classes (d3, d4, d5), the network 10: give --classes FILE" in said
    said = message(open_source, f"folder:{tmp_path}", reading=dataclasses.replace(TEN, flags=False))
    assert "the network 10: give class_names: the names" in said
    named = dataclasses.replace(TEN, classes=NAMES)
    assert open_source(f"folder:{tmp_path}", reading=named).labels.tolist() == [3, 4, 5]
    turned = dataclasses.replace(TEN, classes=NAMES[::-1])
    assert open_source(f"folder:{tmp_path}", reading=turned).labels.tolist() == [6, 5, 4]


def test_folders_named_by_numbers_are_labels_as_they_are(tmp_path):
    write_folder(tmp_path, [3, 8], names=[str(n) for n in range(10)])
    source = open_source(f"folder:{tmp_path}", reading=TEN)
    assert source.labels.tolist() == [label(3), label(8)]
    assert source.class_names is None
    named = open_source(f"folder:{tmp_path}", reading=dataclasses.replace(TEN, classes=NAMES))
    assert (named.labels.tolist(), named.class_names) == ([label(3), label(8)], NAMES)


def test_synonyms_of_class_names(tmp_path):
    names = ("tench, Tinca tinca", "goldfish, Carassius, fish", "shark, fish")
    for name in ("goldfish", "shark, fish", "Tinca tinca"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(digit(3))
    reading = Reading(num_classes=3, classes=names, channels=1)
    source = open_source(f"folder:{tmp_path}", reading=reading)
    assert dict(zip(source.ids.tolist(), source.labels.tolist(), strict=True)) == {
        "goldfish/1.png": 1, "shark, fish/1.png": 2, "Tinca tinca/1.png": 0,
    }  # fmt: skip
    (tmp_path / "goldfish").rename(tmp_path / "fish")  # two classes'
    assert "class 'fish' of folder:" in message(open_source, f"folder:{tmp_path}", reading=reading)


# --- CSV files ---------------------------------------------------------------


def test_a_table_with_ids_splits_and_more(tmp_path):
    more = dict(
        id=lambda row: f"p{row}",
        split=lambda row: "test" if row % 5 == 0 else "train",
        person=lambda row: str(4711 + row % 3),
    )
    path = write_table(tmp_path, ROWS, **more)
    source = open_source(f"csv:{path}", reading=TEN)
    assert source.ids.tolist() == [f"p{row}" for row in ROWS]
    assert source.labels.tolist() == [label(row) for row in ROWS]
    assert source.ids[source.splits["test"]].tolist() == [f"p{row}" for row in ROWS if row % 5 == 0]
    np.testing.assert_array_equal(source.images(range(30)), expected(ROWS))
    rows = parse_forget("person=4712", source, seed=0)
    assert source.ids[rows].tolist() == [f"p{row}" for row in ROWS if row % 3 == 1 and row % 5]
    both = parse_forget("person=4712, 4713", source, seed=0)
    assert set(both.tolist()) == {row - 1 for row in ROWS if row % 3 and row % 5}
    with pytest.raises(ValueError, match=r"has person='713'; there are 4713, 4711, 4712$"):  # what is alike first
        parse_forget("person=713", source, seed=0)
    assert parse_forget("split=train", source, seed=0).tolist() == source.splits["train"].tolist()
    assert parse_forget("row:0,3", source, seed=0).tolist() == [0, 3]
    assert parse_forget("pictures/7.png,8.png,p9,11", source, seed=0).tolist() == [6, 7, 8, 10]
    assert parse_forget("all", source, seed=0).tolist() == source.splits["train"].tolist()
    (tmp_path / "forget.csv").write_text("person,file\n1,pictures/7.png\n2,12.png\n")
    assert parse_forget(f"@{tmp_path / 'forget.csv'}", source, seed=0).tolist() == [6, 11]
    assert parse_targets(f"@{_targets(tmp_path)}", source, np.array([6, 11]), seed=0).tolist() == [0, 0]


def _targets(folder):
    (folder / "targets.csv").write_text("id,label\np7,0\n12.png,0  # not a two\n")
    return folder / "targets.csv"


def test_a_table_as_spreadsheets_write_it(tmp_path):
    write_table(tmp_path, [3, 4])
    text = '\ufeff"File", Label\r\n\r\n"pictures/3.png", "3"\r\n pictures/./4.png ,4\r\n,\r\n'
    (tmp_path / "t.csv").write_bytes(text.encode())
    source = open_source(f"csv:{tmp_path / 't.csv'}", reading=TEN)
    assert source.ids.tolist() == ["pictures/3.png", "pictures/4.png"]
    assert source.labels.tolist() == [3, 4]


def test_files_may_lie_in_another_folder(tmp_path):
    path = write_table(tmp_path / "a", [3, 4])
    path = path.rename(tmp_path / "table.csv")
    assert "cannot be read: No such file" in message(open_source, f"csv:{path}", reading=TEN)
    source = open_source(f"csv:{path}", str(tmp_path / "a"), reading=TEN)
    np.testing.assert_array_equal(source.images([1]), expected([4]))


# --- Parquet -----------------------------------------------------------------


def test_parquet_of_hugging_face(tmp_path):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", range(1, 20), person=lambda row: row % 4)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", range(20, 31), person=lambda row: row % 4)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", range(35, 42), person=lambda row: row % 4)
    write_parquet(
        tmp_path / "data/validation-00000-of-00001.parquet", [50, 51], labels=[-1, -1], person=lambda row: row % 4
    )
    source = open_source(f"parquet:{tmp_path}", reading=TEN)
    assert source.class_names == NAMES
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 30, "test": 7}
    for name, rows in (("train", range(1, 31)), ("test", range(35, 42))):
        found = source.splits[name]
        assert source.ids[found].tolist() == [f"{row}.png" for row in rows]
        assert source.labels[found].tolist() == [label(row) for row in rows]
        np.testing.assert_array_equal(source.images(found[::-1]), expected(rows)[::-1])
    assert source.ids[parse_forget("person=3", source, seed=0)].tolist() == [f"{r}.png" for r in range(3, 31, 4)]


def test_parquet_holds_one_row_group_at_a_time(tmp_path, monkeypatch):
    from jaxunlearn.data import parquet

    monkeypatch.setattr(pictures, "CACHE_BYTES", 0)
    write_parquet(tmp_path / "a.parquet", ROWS, group=10)
    source = open_source(f"parquet:{tmp_path / 'a.parquet'}", reading=dataclasses.replace(TEN, preprocess=SAME))
    read, groups = parquet._read, []

    def watched(file, columns, group=None):
        groups.append(group)
        return read(file, columns, group)

    monkeypatch.setattr(parquet, "_read", watched)
    for batch in source.view(range(30)).batches(4):
        assert batch.shape[1:] == (8, 8, 1)
    assert groups == [0, 1, 2]
    groups.clear()
    np.testing.assert_array_equal(source.images([25, 3, 24, 4]), expected([26, 4, 25, 5]))
    assert groups == [0, 2]


def test_parquet_labels_by_number_name_and_the_networks_order(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [3, 4], names=None)
    assert open_source(f"parquet:{path}", reading=TEN).labels.tolist() == [3, 4]
    write_parquet(path, [3, 4], names=None, labels=["d3", "d4"])
    assert "has 2 classes (d3, d4), the network 10" in message(open_source, f"parquet:{path}", reading=TEN)
    named = dataclasses.replace(TEN, classes=NAMES)
    assert open_source(f"parquet:{path}", reading=named).labels.tolist() == [3, 4]
    write_parquet(path, [3, 4], names=["d3", "d4"], labels=[0, 1])
    assert "has 2 classes (d3, d4), the network 10" in message(open_source, f"parquet:{path}", reading=TEN)
    assert open_source(f"parquet:{path}", reading=named).labels.tolist() == [3, 4]
    assert open_source(f"parquet:{path}", reading=dataclasses.replace(TEN, num_classes=2)).labels.tolist() == [0, 1]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxunlearn\[parquet\]'"):
        open_source(f"parquet:{tmp_path}")


# --- reading -----------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_rows_in_any_order_kept_or_not(folder, monkeypatch, cache):
    monkeypatch.setattr(pictures, "CACHE_BYTES", cache)
    source = open_source(f"folder:{folder}", reading=TEN)
    assert source.kept == bool(cache)
    names = [9, 2, 9, 30, 1]
    np.testing.assert_array_equal(source.images([of(source, name) for name in names]), expected(names))
    assert source.images([]).shape == (0, 8, 8, 1)
    monkeypatch.setattr(pictures, "decode", lambda *args: pytest.fail("decoded again"))
    if cache:
        np.testing.assert_array_equal(source.images([of(source, 2)]), expected([2]))


def test_several_threads_decode(folder, monkeypatch):
    monkeypatch.setattr(pictures, "_cores", lambda: 3)
    meeting, decode = threading.Barrier(3), pictures.decode

    def together(*args):
        meeting.wait(timeout=20)  # broken, unless three decode at the same time
        return decode(*args)

    source = open_source(f"folder:{folder}", reading=dataclasses.replace(TEN, preprocess=SAME))
    monkeypatch.setattr(pictures, "decode", together)
    assert source.images(range(30)).shape == (30, 8, 8, 1)


def test_a_picture_is_made_to_fit_the_network(folder):
    reading = Reading(num_classes=10, channels=3, preprocess=Preprocess(resize=32, crop=(28, 28)))
    source = open_source(f"folder:{folder}", reading=reading)
    assert source.input_shape == (28, 28, 3)
    assert source.images([0]).shape == (1, 28, 28, 3)


def test_without_a_size_to_fit_all_must_have_one(tmp_path):
    from PIL import Image

    write_folder(tmp_path, [3, 4])
    Image.new("L", (9, 8)).save(tmp_path / "d4/z.png")
    source = open_source(f"folder:{tmp_path}", reading=Reading())
    assert source.input_shape == (8, 8, 1)
    assert "z.png is 8x9, others are 8x8" in message(source.images, range(3))


def test_skipped_pictures_are_in_no_split_and_cannot_be_forgotten(tmp_path):
    write_folder(tmp_path, [3, 4, 5, 6])
    (tmp_path / "d4/bad.png").write_bytes(digit(4)[:60])
    (tmp_path / "d4/notes.txt").write_text("no picture")
    spec, skip = f"folder:{tmp_path}", Reading(channels=1, on_bad_image="skip")
    with pytest.raises(PictureError, match=r"notes.txt is no picture by its name"):
        open_source(spec, reading=Reading(channels=1))
    seen = []
    with _progress.listening(lambda *report: seen.append(report)):
        source = open_source(spec, reading=skip)
    assert seen == [("checking pictures", 5, 5)]
    assert source.ids.tolist() == ["d3/3.png", "d4/4.png", "d4/bad.png", "d4/notes.txt", "d5/5.png", "d6/6.png"]
    assert source.splits["train"].tolist() == [0, 1, 4, 5]
    assert sorted(source.skipped) == [2, 3]
    assert dict(source.notes)["skipped"].startswith("2 of 6 pictures: ")
    assert "instance bad.png was skipped, it is damaged" in message(parse_forget, "bad.png", source, seed=0)
    assert parse_forget("row:4", source, seed=0).tolist() == [4]
    assert parse_forget("class:d4", source, seed=0).tolist() == [1]


def test_unlabelled_images_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "f", [3, 4])
    (tmp_path / "f/5.png").write_bytes(digit(5))
    (tmp_path / "f/readme.txt").write_text("beside them")
    path = write_table(tmp_path, [3, 4, 5], columns=("file",))
    write_parquet(tmp_path / "p.parquet", [3, 4, 5])
    np.savez(tmp_path / "a.npz", x=expected([3, 4, 5]))
    sums = sorted(expected([3, 4, 5]).sum((1, 2, 3)).tolist())
    for spec in ("folder:f", f"csv:{path.name}", "parquet:p.parquet", "npz:a.npz"):
        source = open_unlabelled(spec, reading=TEN)
        found = source.images(source.splits["train"]).sum((1, 2, 3))
        assert sorted(found.tolist()) == pytest.approx(sums), spec
    assert len(open_unlabelled("digits").splits["train"]) == 1797


# --- several sources as one --------------------------------------------------


def test_retain_and_test_sets_that_lie_apart(tmp_path):
    named = dataclasses.replace(TEN, classes=NAMES)
    write_folder(tmp_path / "forget", [3, 4])
    write_folder(tmp_path / "all", [3, 4, 5, 6, 7])  # the forget images are among them
    write_folder(tmp_path / "test", [40, 41])
    forget, rest, test = (open_source(f"folder:{tmp_path / name}", reading=named) for name in ("forget", "all", "test"))
    source = join(forget, retain=rest, test=test)
    rows = parse_forget("all", source, seed=0)
    assert source.ids[rows].tolist() == ["d3/3.png", "d4/4.png"]
    retained = source.retained(rows)
    assert source.ids[retained].tolist() == ["retain:d5/5.png", "retain:d6/6.png", "retain:d7/7.png"]
    np.testing.assert_array_equal(source.images(retained), expected([5, 6, 7]))
    some = source.retained(rows[:1])  # what is not forgotten of them is there once
    assert source.ids[some].tolist() == ["d4/4.png", *source.ids[retained].tolist()]
    tested = source.splits["test"]
    assert source.ids[tested].tolist() == sorted(f"test:{NAMES[label(row)]}/{row}.png" for row in (40, 41))
    assert source.labels[tested].tolist() == sorted([label(40), label(41)])
    assert "2 pictures of --retain-data are in" in dict(source.notes)["the same"]
    assert join(forget).retained(rows).tolist() == []


def test_sources_that_do_not_go_together(tmp_path):
    write_folder(tmp_path, [3, 4])
    wide = open_source(f"folder:{tmp_path}", reading=Reading(channels=1, preprocess=Preprocess(resize=9, crop=(9, 9))))
    assert "--test-data digits has images of 8x8x1" in message(join, wide, test=DIGITS)


def test_a_file_name_means_what_can_be_forgotten(tmp_path):
    write_folder(tmp_path / "train", [3, 4])
    write_folder(tmp_path / "test", [3, 5])
    write_folder(tmp_path / "more", [3])
    named = dataclasses.replace(TEN, classes=NAMES)
    source = open_source(f"folder:{tmp_path / 'train'}", reading=named)
    source = join(source, retain=open_source(f"folder:{tmp_path / 'more'}", reading=named))
    assert parse_forget("3.png", source, seed=0).tolist() == [0]
    shutil.rmtree(tmp_path / "more")
    source = open_source(f"folder:{tmp_path}", reading=named)
    assert source.ids[parse_forget("3.png", source, seed=0)].tolist() == ["train/d3/3.png"]
    assert "instance 5.png is in the split 'test'" in message(parse_forget, "5.png", source, seed=0)
