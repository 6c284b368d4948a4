"""Every row of the table of mistakes about data: one line, exit status 2, nothing written; nothing has a traceback."""

from __future__ import annotations

import csv
import io
import re
import shlex
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from jaxunlearn._types import Preprocess
from jaxunlearn.cli.main import main
from jaxunlearn.data import Reading, open_source, parse_forget, pictures
from tests import data_mistakes
from tests.data_mistakes import MISTAKES
from tests.picture_files import digit, write_folder, write_parquet

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def pattern(said: str) -> str:
    """Return the regular expression of a line in which ``...`` stands for a library's words."""
    return ".*".join(re.escape(part) for part in said.split("..."))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mistake.make(monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    argv = shlex.split(mistake.asked) + ([] if "--forget" in mistake.asked else ["--forget", "all"])
    assert main(["unlearn", "--weights", str(net), "--out", "out", "--quiet", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert re.fullmatch(f"jaxunlearn: error: {pattern(mistake.said)}\n", said.err), said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_has_every_mistake():
    assert "\n".join(data_mistakes.rows()) in PAGE.read_text(encoding="utf-8")
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)


def test_a_bad_picture_that_is_met_late_is_one_line_too(net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "CACHE_BYTES", 0)  # as with data that are too large to be looked at first
    write_folder(tmp_path / "photos", range(1, 11))
    (tmp_path / "photos/d9/x.png").write_bytes(digit(9)[:60])
    argv = ["unlearn", "--weights", str(net), "--data", "folder:photos", "--forget", "1.png", "--out", "out", "--quiet"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "photos/d9/x.png is damaged or cut short" in line
    assert main(["evaluate", "--weights", str(net), "--data", "folder:photos", "--split", "train", "--quiet"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_a_bad_picture_that_is_only_measured_is_found_before_the_work(net, tmp_path, monkeypatch, capsys):
    from jaxunlearn.cli import _run

    def never(*args, **kwargs):
        raise AssertionError("worked first")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_run, "Measured", never)
    write_folder(tmp_path / "photos", range(1, 11))
    (tmp_path / "photos/d9/x.png").write_bytes(digit(9)[:60])
    assert main(["unlearn", "--weights", str(net), "--data", "folder:photos", "--forget", "1.png", "--out", "out"]) == 2
    assert "photos/d9/x.png is damaged or cut short" in capsys.readouterr().err


def test_networks_of_other_than_one_or_three_channels(tmp_path):
    write_folder(tmp_path, [1])
    with pytest.raises(ValueError, match="pictures have 1 or 3 channels, the network takes 4"):
        open_source(f"folder:{tmp_path}", reading=Reading(channels=4, preprocess=Preprocess(resize=8, crop=(8, 8))))


# --- anything at all ---------------------------------------------------------

CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["file", "label", "id", "split", "1.png", "3", "999", "../x.png", "/x", "", "train", "~", "a\\b"]),
)
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attempt(spec: str, forget: str = "all") -> None:
    """Open data and read what is to be forgotten: rows, or a ValueError of one line."""
    for bad in ("fail", "skip"):
        try:
            source = open_source(spec, reading=Reading(num_classes=10, channels=1, on_bad_image=bad))
            rows = parse_forget(forget, source, seed=0)
            assert source.images(rows).shape == (len(rows), 8, 8, 1)
        except ValueError as error:
            told = str(error)
        else:
            continue
        assert told
        assert "\n" not in told, told


@FUZZ
@example([["1.png", "0\n0"]], True)  # a class of two lines
@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5), st.booleans())
def test_any_cells_of_a_table(tmp_path, rows, header):
    (tmp_path / "1.png").write_bytes(digit(1))
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["file", "label"], *rows] if header else rows)
    (tmp_path / "t.csv").write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    attempt(f"csv:{tmp_path / 't.csv'}")


@FUZZ
@given(st.binary(max_size=80))
def test_any_bytes_as_a_table_a_list_and_class_names(tmp_path, content):
    (tmp_path / "1.png").write_bytes(digit(1))
    (tmp_path / "good.csv").write_text("file,label\n1.png,1\n")
    (tmp_path / "t.csv").write_bytes(content)
    attempt(f"csv:{tmp_path / 't.csv'}")
    (tmp_path / "t.csv").write_bytes(b"file,label\n1.png,1\n" + content)
    attempt(f"csv:{tmp_path / 't.csv'}")
    attempt(f"csv:{tmp_path / 'good.csv'}", f"@{tmp_path / 't.csv'}")


@FUZZ
@given(CHANGES, st.just(0) | st.integers(0, 2000))
def test_any_bytes_changed_in_an_archive(tmp_path, changes, keep):
    np.savez(
        tmp_path / "good.npz", x=np.zeros((2, 8, 8, 1), np.uint8), y=[3, 1], id=["a", "b"], split=["train", "test"]
    )
    content = bytearray((tmp_path / "good.npz").read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    (tmp_path / "a.npz").write_bytes(content[:keep] if keep else content)
    attempt(f"npz:{tmp_path / 'a.npz'}")


@FUZZ
@given(st.binary(max_size=60), st.integers(0, 90))
def test_any_bytes_as_a_picture(tmp_path, content, keep):
    (tmp_path / "d" / "1").mkdir(parents=True, exist_ok=True)
    (tmp_path / "d" / "1" / "a.png").write_bytes(digit(1)[:keep] + content)
    attempt(f"folder:{tmp_path / 'd'}")


@FUZZ
@given(st.text(max_size=30))
def test_any_text_as_what_is_to_be_forgotten(tmp_path, text):
    write_folder(tmp_path / "photos", range(1, 11))
    attempt(f"folder:{tmp_path / 'photos'}", text)


@FUZZ
@example([(307, 1)])  # a column of pictures with fewer rows than the file says
@given(CHANGES)
def test_any_bytes_changed_in_parquet(tmp_path, changes):
    path = tmp_path / "a.parquet"
    write_parquet(path, [1, 2, 3])
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    path.write_bytes(content)
    attempt(f"parquet:{path}")
