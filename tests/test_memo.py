"""What is kept is told by the numbers it was made of, and is one array at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _memo

OF = {"x": jnp.arange(3.0), "key": jax.random.key(0), "epsilon": 0.5, "norm": "l2"}


def test_the_last_array_is_kept_by_what_it_was_made_of(tmp_path):
    calls, folder = [], tmp_path / "kept"

    def made(of):
        return _memo.array(of, lambda: calls.append(of) or of["x"] * 2)

    made(OF)
    made(OF)
    assert len(calls) == 2  # nothing is kept outside
    with _memo.within(folder):
        once, again = made(OF), made(OF)
        assert len(calls) == 3
        assert isinstance(again, jax.Array)
        assert once.dtype == again.dtype
        np.testing.assert_array_equal(once, again)
        changes = (
            {"x": OF["x"] + 1},
            {"x": OF["x"][None]},
            {"x": OF["x"].astype(jnp.float16)},
            {"key": jax.random.key(1)},
            {"epsilon": 0.25},
            {"norm": "linf"},
            {"more": 0},
        )
        for change in changes:
            made(OF)
            before = len(calls)
            made(OF | change)
            assert len(calls) == before + 1, change
            assert len(list(folder.iterdir())) == 1
        made(OF)
        before = len(calls)
        (file,) = folder.iterdir()
        for damaged in (b"", file.read_bytes()[:90]):
            file.write_bytes(damaged)
            np.testing.assert_array_equal(made(OF), OF["x"] * 2)
        assert len(calls) == before + 2
    made(OF)
    assert len(calls) == before + 3


def test_under_jit_nothing_is_kept(tmp_path):
    with _memo.within(tmp_path / "kept"):
        found = jax.jit(lambda x: _memo.array({"x": x}, lambda: x * 2))(OF["x"])
    np.testing.assert_array_equal(found, OF["x"] * 2)
    assert not (tmp_path / "kept").exists()


def test_where_nothing_can_be_written_it_is_made_all_the_same(tmp_path):
    (tmp_path / "kept").write_text("a file")
    with _memo.within(tmp_path / "kept"):
        np.testing.assert_array_equal(_memo.array(OF, lambda: OF["x"] * 2), OF["x"] * 2)
