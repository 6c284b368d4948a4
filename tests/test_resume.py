"""Work that is killed at any moment and done again goes on, and gives the same bytes as work that never was."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxunlearn import _journal, _progress, _repeat, _tree, curvature, importance, loop, methods, testing
from jaxunlearn.attacks import attack_batch, pgd
from jaxunlearn.testing import tiny_problem


class Killed(BaseException):
    """Like SIGKILL: nothing but a test catches it."""


@contextlib.contextmanager
def killed_after(reports: int):
    """Kill what is inside at its n-th report of progress."""
    seen = []

    def listen(label, done, total):
        seen.append((label, done))
        if len(seen) == reports:
            raise Killed

    with _progress.listening(listen):
        yield seen


def journal(folder, interval=0.0):
    folder.mkdir(exist_ok=True)
    return _journal.Journal(folder, interval)


# --- what is kept ---


def test_a_state_comes_back_bit_by_bit_in_its_kinds(tmp_path):
    state = {
        "half": jnp.arange(3, dtype=jnp.bfloat16) / 3,
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(7), 3),
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "empty": jnp.zeros((0, 4), jnp.int8),
        "flag": jnp.array(True),
        "weak": jnp.asarray(0.5),
        "host": np.arange(6.0).reshape(2, 3).T,
        "half on the host": np.ones(2, ml_dtypes.bfloat16),
        "number": 3,
        "share": 0.1,
        "yes": True,
    }
    assert state["weak"].weak_type
    items = [jnp.ones(2), {"loss": np.float32(1.5), "steps": np.arange(2)}, {"loss": np.float32(2.5)}]
    with journal(tmp_path).open(), _journal.work("things") as work:
        assert work.resume(state, items) == (0, state, items)
        work.keep(5, state, items)
    with journal(tmp_path).open(), _journal.work("things") as work:
        done, found, grown = work.resume(jax.tree.map(lambda leaf: leaf, state))
    assert done == 5
    for name, leaf in state.items():
        again = found[name]
        assert type(again) is type(leaf), name
        assert jnp.asarray(again).dtype == jnp.asarray(leaf).dtype
        if isinstance(leaf, jax.Array) and not name.startswith("key"):
            assert again.weak_type == leaf.weak_type
        plain = jax.random.key_data if name.startswith("key") else np.asarray
        assert np.asarray(plain(again)).tobytes() == np.asarray(plain(leaf)).tobytes(), name
    assert [list(item) if isinstance(item, dict) else None for item in grown] == [None, ["loss", "steps"], ["loss"]]
    assert grown[1]["loss"].dtype == np.float32
    np.testing.assert_array_equal(grown[1]["steps"], [0, 1])


def test_what_cannot_be_kept_is_refused_and_leaves_no_file(tmp_path):
    with journal(tmp_path).open(), _journal.work("things") as work, pytest.raises(TypeError, match="got str"):
        work.keep(1, {"name": "a"})
    assert not list(tmp_path.iterdir())


def test_without_a_journal_nothing_is_written():
    with _journal.work("things") as work:
        assert work.resume(1) == (0, 1, [])
        work.keep(1, object())


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_file_is_as_none(tmp_path, damage):
    with journal(tmp_path).open(), _journal.work("things") as work:
        work.keep(2, jnp.arange(100))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with journal(tmp_path).open(), _journal.work("things") as work:
        assert work.resume(0)[0] == 0


def test_inner_work_is_told_apart_by_the_step_it_belongs_to_and_goes_when_that_is_done(tmp_path):
    def run(stop=None):
        steps, total = [], jnp.zeros(())
        with journal(tmp_path).open() as _, _journal.work("outer") as outer:
            first, total, _ = outer.resume(total)
            for i in range(first, 3):
                for name in ("a", "b"):
                    with _journal.work(name) as inner:
                        done, part, _ = inner.resume(jnp.zeros(()))
                        for j in range(done, 2):
                            if (i, name, j) == stop:
                                raise Killed
                            steps.append((i, name, j))
                            part = part + 10 * i + j
                            inner.keep(j + 1, part)
                    total = total + part
                outer.keep(i + 1, total)
        return float(total), steps

    whole, every = run()
    for file in tmp_path.iterdir():
        file.unlink()
    for stop in [(0, "a", 1), (0, "b", 1), (1, "b", 0), (2, "b", 1)]:
        with pytest.raises(Killed):
            run(stop)
        assert not [file.name for file in tmp_path.iterdir() if "@" in file.name and f"@{stop[0]}." not in file.name]
    total, steps = run()
    assert total == whole
    assert steps == every[-1:]


def test_it_is_written_no_more_often_than_the_interval(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_journal.time, "monotonic", lambda: now[0])
    with journal(tmp_path, 10.0).open(), _journal.work("things") as work:
        for second in range(1, 26):
            now[0] = second
            work.keep(second, second)
    with journal(tmp_path).open(), _journal.work("things") as work:
        assert work.resume(0)[:2] == (20, 20)


def test_what_is_attached_comes_back_with_the_state(tmp_path):
    seen = {"points": [[0, 0.5]]}
    with journal(tmp_path).open():
        _journal.attach(lambda: seen, seen.update)
        with _journal.work("loop") as work:
            work.keep(1, 1)
        seen["points"] = []
        with _journal.work("loop") as work:  # the second of the name has nothing yet
            assert work.resume(0)[0] == 0
    with journal(tmp_path).open():
        _journal.attach(lambda: seen, seen.update)
        with _journal.work("loop") as work:
            work.resume(0)
    assert seen == {"points": [[0, 0.5]]}


# --- parts ---


def sums(model, x):
    return importance.mas(model.apply_fn, microbatch_size=2, loop="host")(model.params, model.model_state, x)


def attacked(model, x):
    keys = jax.random.split(jax.random.key(0), len(x))
    label = jnp.zeros(len(x), jnp.int32)
    attack = pgd(model.apply_fn, norm="l2", steps=3, loop="host")
    more = dict(epsilon=0.4, step_size=0.1, microbatch_size=2, progress="attack")
    return attack_batch(attack, keys, model.params, model.model_state, x, label, **more)


def test_a_part_killed_between_any_two_chunks_goes_on(tmp_path):
    given = tiny_problem(k=7)
    for number, (part, count) in enumerate([(sums, 4), (attacked, 12)]):
        whole = _tree.digest({"out": part(given.model, given.forget.x)})
        folder = tmp_path / str(number)
        for _ in range(count):  # killed at its second report each time: the step of the first one was kept
            with contextlib.suppress(Killed), killed_after(2), journal(folder).open():
                part(given.model, given.forget.x)
        with killed_after(-1) as seen, journal(folder).open():
            found = part(given.model, given.forget.x)
        assert _tree.digest({"out": found}) == whole
        assert len(seen) <= 1, seen  # what was kept was not done again


def test_a_gram_matrix_killed_between_blocks_goes_on(tmp_path, monkeypatch):
    given = tiny_problem(k=6)

    def rows(params, context, x):
        logits, _ = given.model.apply_fn(params, context, x[None])
        return logits.max()

    paths = curvature.select_paths(given.model.params, ["*"])
    jacobian = curvature.Jacobian(rows, tuple(paths), 4)
    part = curvature.Part(given.model.params, given.model.model_state, given.forget.x)
    whole = curvature.gram(jacobian, part, max_bytes=6 * 4 * 20)
    made = []
    real = curvature.Jacobian.rows

    def fail(self, *args, **more):
        made.append(self.paths)
        if len(made) == 4:
            raise Killed
        return real(self, *args, **more)

    monkeypatch.setattr(curvature.Jacobian, "rows", fail)
    with pytest.raises(Killed), journal(tmp_path).open():
        curvature.gram(jacobian, part, max_bytes=6 * 4 * 20)
    before = len(made)
    with journal(tmp_path).open():
        np.testing.assert_array_equal(curvature.gram(jacobian, part, max_bytes=6 * 4 * 20), whole)
    assert before == 4
    assert made[3] == made[4]  # the block in which it was killed, none before


# --- methods ---


@pytest.mark.parametrize("name", methods.names())
def test_every_method_killed_at_any_step_gives_the_same(name, tmp_path):
    spec = methods.get(name)
    problem, key = testing.problem_maker(spec)(0, goal=spec.goals[0]), jax.random.key(3)
    given = {"whole_class": True, "draws": 2, "attack_steps": 3, "max_passes": 3, "proxies": 24, "steps": 2}
    fields = {field.name for field in dataclasses.fields(spec.Config)}
    config = dataclasses.replace(spec.Config(), **{name: value for name, value in given.items() if name in fields})

    def run(callback=None):
        return loop.run(problem, method=spec, config=config, key=key, loop="host", callback=callback)

    whole = run()

    def kill_at(step):
        def callback(event):
            if event.steps == step:
                raise Killed

        return callback

    for step in range(1, whole.steps + 1, max(1, whole.steps // 3)):
        with contextlib.suppress(Killed), journal(tmp_path).open():
            run(kill_at(step))
    kept = journal(tmp_path)
    with kept.open():
        again = run()
    assert kept.taken_up or whole.steps <= 1  # the only step was not over when it was killed
    assert _tree.model_digest(again.model) == _tree.model_digest(whole.model)
    assert again.stop_reason == whole.stop_reason
    assert again.steps == whole.steps
    np.testing.assert_array_equal(again.forgotten_at, whole.forgotten_at)
    assert again.history.keys() == whole.history.keys()
    for column, values in whole.history.items():
        np.testing.assert_array_equal(again.history[column], values, err_msg=column)


def test_a_fold_in_a_trace_is_left_alone(tmp_path):
    def total(xs):
        return _repeat.accumulate(jnp.sum, xs, microbatch_size=2)

    with journal(tmp_path).open():
        assert float(jax.jit(total)(jnp.arange(5.0))) == 10
    assert not list(tmp_path.iterdir())
