"""Every row of the table of mistakes about flags, output and the machine; and any flags at all: never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import re
import shlex
import unicodedata
import warnings
from contextlib import redirect_stderr, redirect_stdout

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from jaxunlearn import _journal
from jaxunlearn.cli import _comparison, _errors
from jaxunlearn.cli.main import main
from tests import flag_mistakes
from tests.flag_mistakes import MISTAKES
from tests.test_data_errors import PAGE, pattern


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").symlink_to(net)
    mistake.make(monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    assert main(shlex.split(mistake.asked)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    expected = pattern(mistake.said).replace("HERE", re.escape(str(tmp_path)))
    assert re.fullmatch(f"jaxunlearn: error: {expected}\n", said.err), said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_has_every_mistake():
    assert "\n".join(flag_mistakes.rows()) in PAGE.read_text(encoding="utf-8")
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)


def test_a_state_that_cannot_be_kept_is_told_of_once_and_the_work_goes_on(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    told = []
    monkeypatch.setattr(np, "savez", full)
    with _journal.Journal(tmp_path, 0.0, failed=told.append).open(), _journal.work("sum") as work:
        for i in range(3):
            work.keep(i, np.zeros(2))
    assert [error.errno for error in told] == [errno.ENOSPC]
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(OSError, match="No space"),
        _journal.Journal(tmp_path, 0.0).open(),
        _journal.work("sum") as work,
    ):
        work.keep(1, np.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_in_the_end_does_not_cost_the_state(tmp_path, monkeypatch):
    from jaxunlearn.cli import _resume, _run

    out = tmp_path / "a" / "out"
    monkeypatch.setattr(_run.report, "write_run", lambda *args, **kwargs: full_disk())

    def work():
        (_resume.folder_of(out) / "0001-x.npz").write_bytes(b"state")
        _run.write(out, None, overwrite=False)

    with pytest.raises(_errors.UserError, match="cannot write"), _resume.only_run(out):
        work()
    assert _resume.kept(out)


@pytest.mark.parametrize("file", ["w.npz", "w.safetensors"])
def test_an_export_onto_a_full_disk_names_the_file_and_leaves_nothing(file, net, tmp_path, monkeypatch, capsys):
    export = importlib.import_module("jaxunlearn.convert.export")  # the package has a function of that name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_write", lambda *args, **kwargs: full_disk(None))
    assert main(["export", "--weights", str(net), "--out", file, "--quiet"]) == 2
    assert capsys.readouterr().err == f"jaxunlearn: error: {file}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def full_disk(name="results.json"):
    raise OSError(errno.ENOSPC, "No space left on device", name)


def test_a_mistake_leaves_no_folders_on_the_way_to_the_output(net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["unlearn", "--weights", str(net), "--data", "digits", "--forget", "nobody", "--out", "a/b/c"]
    assert main(argv) == 2
    assert "unknown id 'nobody'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["\udcff", "é\udcc3"])
def test_a_folder_whose_name_is_no_text_is_refused_before_the_work(name, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["unlearn", "--weights", str(net), "--data", "digits", "--forget", "2", "--out", name]) == 2
    said = capsys.readouterr().err
    assert "has a name that is no text in this locale" in said
    assert "\\x" in said
    assert list(tmp_path.iterdir()) == []


def test_damaged_compiled_programs_are_told_of_once_and_dropped(tmp_path, monkeypatch, capsys):
    from jaxunlearn.cli import _cache

    monkeypatch.setattr(_cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back in the end
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with warnings.catch_warnings(), _cache.compiled():
            warnings.simplefilter("always")
            for name in ("f", "g"):
                warnings.warn(f"Error reading persistent compilation cache entry for {name!r}: x", stacklevel=1)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    (line,) = capsys.readouterr().err.splitlines()
    kept = tmp_path / "compiled"
    assert line == f"jaxunlearn: compiled anew: programs kept in {kept} cannot be used; they were dropped"
    assert not kept.exists()


# --- any flags at all --------------------------------------------------------

VALUES = st.one_of(
    st.sampled_from(
        [
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1",
            "1e400",
            "1e39",
            "-1e-9",
            "99999999999999999999",
            "x",
            "1.5",
            "1_000",
            "0x10",
            "true",
            ",",
            ",,",
            "=",
            "@",
            "@.",
            ":",
            "class:",
            "row:",
            "all",
            "random:3",
            "digits",
            "folder:",
            "npz:",
            "tests.digits_net:Tiny",
            "adv,adv",
            "adv:draws=x",
            "net",
            "/",
            ".",
            "..",
            "~",
        ]
    ),
    st.sampled_from(["", " ", "\x1b[2J", "a\nb", "\udcff", "\u202e", "٣", "--", "--out"]),
    st.text(st.characters(exclude_characters="\0"), max_size=5),  # an argument of a process cannot hold it
)
WORDS = ("demo", "unlearn", "export", "models", "compare", "train", "moments", "verify", "evaluate", "methods")


class Worked(BaseException):
    """The flags were good, and the work would begin."""


def flags_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return all flags of a command."""
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", lambda self, *args, **kwargs: parsers.append(self))
    if command == "unlearn":
        from jaxunlearn import methods
        from jaxunlearn.cli import unlearn

        parsers.append(unlearn._parser(methods.get("adv-imp")))
    else:
        with contextlib.suppress(Exception):
            main([command])
    monkeypatch.undo()
    return sorted(flag for flag in parsers[0]._option_string_actions if flag not in ("-h", "--help"))


@pytest.mark.parametrize("command", WORDS)
def test_any_flags_are_answered_in_one_line(command, net, tmp_path, monkeypatch):
    names = flags_of(command, monkeypatch)

    def never(*args, **kwargs):
        raise Worked

    from jaxunlearn.cli import _data, _device, _model, models as listing

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").symlink_to(net)
    monkeypatch.setattr(_device, "chosen", never)  # all work is done on a device
    monkeypatch.setattr(_data, "open_with_model", never)
    monkeypatch.setattr(_model, "load", never)
    monkeypatch.setattr(_comparison, "in_process", never)
    monkeypatch.setattr(listing, "_rows", list)
    monkeypatch.setattr(listing._output, "table", never)
    needed = {"compare": ["--out", "out", "--forget", "2"], "unlearn": ["--forget", "2"], "demo": ["--out", "o"]}
    pairs = st.lists(
        st.tuples(st.sampled_from(names) if names else st.text(max_size=3), VALUES, st.booleans()), max_size=5
    )

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pairs, st.booleans())
    def attempt(picked, whole):
        argv = [command, *(needed.get(command, []) if whole else [])]
        for flag, value, joined in picked:
            argv += [f"{flag}={value}"] if joined else [flag, value]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), contextlib.suppress(Worked):
            status = main(argv)
            assert status in (0, 2), argv
            assert (status == 2) == err.getvalue().startswith("jaxunlearn: error: ")
            assert status == 0 or out.getvalue() == ""
        lines = err.getvalue().splitlines()
        assert len(lines) <= 1, lines
        assert not [char for line in lines for char in line if unicodedata.category(char).startswith("C")], lines

    attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
