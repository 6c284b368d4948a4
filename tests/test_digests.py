"""Digests of a run's data, computed again by hand: of what the network saw, of files, of the rows measured."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.data import Reading, join, open_source
from jaxunlearn.job import digests
from jaxunlearn.job.request import Request
from tests.picture_files import write_folder, write_parquet

sha = lambda data: hashlib.sha256(data).hexdigest()


def asked(source, rows, **more):
    return Request(model=None, source=source, rows=np.array(rows), **more)


def of(request):
    return digests.of_data(request, request.forget())


def by_hand(x, y, ids):
    """The documented form, from bytes, without code of ours."""
    text = json.dumps(ids).encode("ascii")
    parts = [b"ids||u1|(%d,)|" % len(text), text]
    parts += [b"x|<f4|", str(x.shape).encode(), b"|", x.astype("<f4").tobytes()]
    parts += [b"y|<i4|(%d,)|" % len(y), b"".join(int(label).to_bytes(4, "little") for label in y)]
    return sha(b"".join(parts))


def in_rows(rows):
    return sha(b"".join(int(row).to_bytes(8, "little") for row in rows))


def test_the_forget_set_and_the_rows_measured():
    source = open_source("digits")
    found = of(asked(source, [57, 5]))
    assert found == {
        "forget set": by_hand(source.images([57, 5]), source.labels[[57, 5]], ["57", "5"]),
        "retain rows": in_rows(row for row in source.splits["train"] if row not in (5, 57)),
        "test rows": in_rows(source.splits["test"]),
    }


def test_a_choice_of_rows_is_another_digest():
    source = open_source("digits")
    request = asked(source, [5], limits={"retain": 7})
    assert of(request)["retain rows"] == in_rows(request.sets()["retain"])
    assert len(request.sets()["retain"]) == 7


@pytest.mark.parametrize("change", ["pixel", "label", "id", "order"])
def test_whatever_changes_changes_it(change):
    x, y, ids = np.zeros((2, 2, 2, 1), np.float32), np.array([0, 1]), ["a", "b"]
    before = digests.forget_set(x, y, ids)
    assert before == by_hand(x, y, ids)
    if change == "pixel":
        x[0, 0, 0, 0] = np.float32(1 / 255)
    elif change == "label":
        y = np.array([0, 2])
    else:
        ids = ["a", "ä\n"] if change == "id" else ids[::-1]
    assert digests.forget_set(x, y, ids) != before
    assert digests.forget_set(x, y, ids) == by_hand(x, y, ids)


def test_pictures_in_files_as_sha256sum_tells(tmp_path):
    write_folder(tmp_path / "photos", range(10))
    source = open_source(f"folder:{tmp_path / 'photos'}", reading=Reading(channels=1))
    found = of(asked(source, [3, 1]))
    lines = [sha(source.files[row].read_bytes()) + "\n" for row in (3, 1)]
    assert found["files of the forget set"] == sha("".join(lines).encode())
    pixels = [np.asarray(Image.open(source.files[row]))[..., None] / np.float32(255) for row in (3, 1)]
    assert found["forget set"] == by_hand(np.stack(pixels), source.labels[[3, 1]], source.ids[[3, 1]].tolist())
    assert not [name for name in found if name.startswith("file ")]


def test_files_that_hold_many(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.zeros((4, 8, 8, 1), np.uint8), y=np.arange(4))
    write_parquet(tmp_path / "train.parquet", range(20))
    for name in ("npz:own.npz", "parquet:train.parquet"):
        kind, _, file = name.partition(":")
        source = open_source(f"{kind}:{tmp_path / file}", reading=Reading(channels=1))
        found = of(asked(source, [0]))
        assert found[f"file {file}"] == sha((tmp_path / file).read_bytes())
        assert "files of the forget set" not in found
        assert of(asked(join(source, test=open_source("digits")), [0]))[f"file {file}"] == found[f"file {file}"]


def test_files_that_are_large_or_gone_are_left_out(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", range(10))
    source = open_source(f"folder:{tmp_path / 'photos'}", reading=Reading(channels=1))
    request = asked(source, [3])
    size = source.files[3].stat().st_size
    monkeypatch.setattr(digests, "LARGEST", size - 1)
    assert "files of the forget set" not in of(request)
    monkeypatch.setattr(digests, "LARGEST", size)
    assert "files of the forget set" in of(request)
    forget = request.forget()
    source.files[3].unlink()
    found = digests.of_data(request, forget)
    assert "forget set" in found
    assert "files of the forget set" not in found
