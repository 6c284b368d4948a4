"""Loops from the host and on the device: equal results, no retracing, flat chunks."""

from __future__ import annotations

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxunlearn import _ahead, _progress, _repeat
from jaxunlearn._ahead import ahead

TRACES = {"affine": 0, "weighted": 0, "ordered": 0}


def affine(factor, i, carry, shift):
    TRACES["affine"] += 1
    return factor * carry + shift * i


def weighted(power, chunk, offset):
    TRACES["weighted"] += 1
    x, w = chunk
    return {"sum": jnp.sum(w * (x + offset) ** power), "n": jnp.sum(w)}


def ordered(base, carry, chunk):
    """Not a sum: tells chunk boundaries and their order."""
    TRACES["ordered"] += 1
    return base * carry + jnp.sum(chunk)


def test_on_host_follows_the_backend_and_gives_way_to_tracers():
    x = jnp.zeros(2)
    assert _repeat.on_host(x) == (jax.default_backend() == "cpu")
    assert _repeat.on_host(x, loop="host")
    assert not _repeat.on_host(x, loop="device")
    seen = []
    jax.vmap(lambda x: seen.append(_repeat.on_host({"a": x}, 1)) or x)(x)
    assert seen == [False]
    with pytest.raises(ValueError, match="loop='host' cannot run under jit, vmap or grad"):
        jax.jit(lambda x: _repeat.on_host(x, loop="host"))(x)
    with pytest.raises(ValueError, match="loop must be one of 'auto', 'host', 'device'; got 'gpu'"):
        _repeat.on_host(x, loop="gpu")


@pytest.mark.parametrize("n", [0, 1, 7])
def test_repeat_is_the_same_loop_in_either_form(n):
    expected = 2.0
    for i in range(n):
        expected = 3 * expected + 0.5 * i
    run = lambda loop: _repeat.repeat(affine, n, jnp.float32(2), jnp.float32(0.5), statics=(3,), loop=loop)
    assert float(run("host")) == float(run("device")) == float(run("auto")) == expected
    assert float(jax.jit(lambda: run("auto"))()) == expected


@pytest.mark.parametrize("loop", ["host", "device"])
def test_repeat_traces_once_for_equal_statics(loop):
    def run(start, shift):
        return _repeat.repeat(affine, 5, jnp.full(3, start), jnp.float32(shift), statics=(7,), loop=loop)

    run(1.0, 2.0)
    before = TRACES["affine"]
    run(3.0, -1.0)
    assert TRACES["affine"] == before


def test_repeat_reports_each_step_within_larger_work():
    seen = []
    with _progress.listening(lambda *told: seen.append(told)):
        _repeat.repeat(affine, 2, jnp.float32(0), 1.0, statics=(1,), loop="host", label="work", done=4, total=6)
        _repeat.repeat(affine, 1, jnp.float32(0), 1.0, statics=(1,), loop="host", label="alone")
    assert seen == [("work", 5, 6), ("work", 6, 6), ("alone", 1, 1)]


def test_repeat_refuses_a_negative_number_of_steps():
    with pytest.raises(ValueError, match="n must be at least 0; got -1"):
        _repeat.repeat(affine, -1, jnp.float32(0), 1.0, statics=(1,))


@given(n=st.integers(1, 40), size=st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_split_and_join_are_inverse(n, size):
    xs = {"x": np.arange(2 * n, dtype=np.float32).reshape(n, 2), "key": jax.random.split(jax.random.key(n), n)}
    chunks = _repeat.split(xs, size=size)
    assert chunks["x"].shape == (-(-n // size), size, 2)
    assert float(chunks["x"].sum()) == xs["x"].sum()  # padding is zero
    back = _repeat.join(chunks, n=n)
    np.testing.assert_array_equal(back["x"], xs["x"])
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(xs["key"]))


def test_dealt_chunks_of_sharded_rows_stay_sharded_and_microbatches_are_whole():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(jnp.arange(32.0), NamedSharding(mesh, P("batch")))
    chunk = _repeat.pick(_repeat.split(x, size=16), 1)
    assert chunk.tolist() == list(range(1, 32, 2))
    assert len({shard.index[0].start for shard in chunk.addressable_shards}) == 8
    for size in (16, 32):
        whole = _repeat.microbatch(x, 0, size=size)
        assert whole.tolist() == list(range(size))
        assert whole.sharding.is_fully_replicated


@given(n=st.integers(1, 40), size=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("loop", ["host", "device"])
def test_accumulate_sums_over_rows_whatever_the_microbatch(loop, n, size):
    x = np.random.default_rng(n).normal(size=n).astype(np.float32)
    w = np.random.default_rng(n + 1).integers(0, 2, n).astype(np.float32)
    total = _repeat.accumulate(weighted, (x, w), 0.5, microbatch_size=size, statics=(2,), loop=loop)
    np.testing.assert_allclose(total["sum"], np.sum(w * (x + 0.5) ** 2), rtol=1e-5, atol=1e-5)
    assert float(total["n"]) == w.sum()


def test_accumulate_from_the_host_does_not_retrace_for_another_number_of_rows():
    run = lambda n: _repeat.accumulate(weighted, (jnp.ones(n), jnp.ones(n)), 0.0, microbatch_size=8, statics=(3,))
    before = TRACES["weighted"]
    assert [float(run(n)["sum"]) for n in (5, 8, 9, 30)] == [5, 8, 9, 30]
    assert TRACES["weighted"] == before + 1


@pytest.mark.parametrize("loop", ["host", "device"])
def test_accumulate_under_jit_and_vmap(loop):
    loop = "auto" if loop == "host" else loop  # "auto" is the host on CPU, the device under jit
    xs = jnp.arange(12.0).reshape(2, 6)
    sums = lambda x: _repeat.accumulate(weighted, (x, jnp.ones(6)), 0.0, microbatch_size=4, statics=(1,), loop=loop)[
        "sum"
    ]
    assert jax.vmap(sums)(xs).tolist() == [15, 51]
    assert float(jax.jit(sums)(xs[0])) == float(sums(xs[0])) == 15


@pytest.mark.parametrize("exact", [False, True])
def test_fold_keeps_rows_consecutive_and_in_order(exact):
    x = jnp.arange(1.0, 12)  # chunks 1..4, 5..8, 9..11
    run = lambda loop: _repeat.fold(
        ordered, jnp.float32(0), x, microbatch_size=4, statics=(100,), exact=exact, loop=loop
    )
    assert float(run("host")) == float(run("device")) == 10 * 10000 + 26 * 100 + 30


def test_fold_exact_shows_the_last_rows_without_padding():
    sizes = []

    def note(carry, chunk):
        sizes.append(chunk.shape[0])
        return carry + jnp.sum(chunk)

    seen = []
    with _progress.listening(lambda *told: seen.append(told)):
        assert float(_repeat.fold(note, jnp.float32(0), jnp.ones(7), microbatch_size=3, exact=True, label="w")) == 7
        assert sizes == [3, 1]  # traced once each
        assert seen == [("w", 1, 3), ("w", 2, 3), ("w", 3, 3)]
        assert float(_repeat.fold(note, jnp.float32(0), jnp.ones(2), microbatch_size=3, exact=True)) == 2
        assert sizes == [3, 1, 2]


def test_rows_and_sizes_are_checked():
    with pytest.raises(ValueError, match=r"one leading axis; got lengths \[\(2,\), \(3,\)\]"):
        _repeat.rows((jnp.zeros(2), jnp.zeros(3)))
    with pytest.raises(ValueError, match=r"one leading axis; got lengths \[\(\)\]"):
        _repeat.rows(jnp.float32(1))
    with pytest.raises(ValueError, match="no rows"):
        _repeat.rows(jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match="microbatch_size must be at least 1; got 0"):
        _repeat.chunk_size(3, 0)
    assert _repeat.chunk_size(3, 8, exact=True) == 3


cpu_only = pytest.mark.skipif(jax.default_backend() != "cpu", reason="threads are for CPUs")


class Read:
    """Items that know how many of them were read."""

    def __init__(self, n=None):
        self.read, self.n = 0, n

    def __iter__(self):
        for i in itertools.count() if self.n is None else range(self.n):
            self.read += 1
            yield i


@given(items=st.lists(st.integers()), cores=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_ahead_is_map(items, cores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ahead, "count_cores", lambda: cores)
        assert list(ahead(lambda item: item + 1, items)) == [item + 1 for item in items]


@cpu_only
def test_ahead_keeps_the_order_where_a_later_item_is_done_first(monkeypatch):
    monkeypatch.setattr(_ahead, "count_cores", lambda: 2)
    later = threading.Event()

    def work(item):
        if item == 0:
            assert later.wait(60), "one item at a time"
        if item == 1:
            later.set()
        return item

    assert list(ahead(work, range(5))) == [0, 1, 2, 3, 4]


@cpu_only
@pytest.mark.parametrize("cores", [1, 3])
def test_ahead_reads_little_ahead(monkeypatch, cores):
    monkeypatch.setattr(_ahead, "count_cores", lambda: cores)
    items = Read(50)
    lead = [items.read - done for done, _ in enumerate(ahead(abs, items), 1)]
    assert len(lead) == 50
    assert lead[:-1] == sorted(lead[:-1], reverse=True)
    assert max(lead) == 2 * cores


def test_ahead_elsewhere_than_on_cpu_is_a_plain_map(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    items, here = Read(), threading.current_thread()
    results = ahead(lambda item: threading.current_thread(), items)
    assert [next(results) for _ in range(3)] == [here] * 3
    assert items.read == 3


@cpu_only
def test_ahead_raises_at_the_place_of_the_item(monkeypatch):
    monkeypatch.setattr(_ahead, "count_cores", lambda: 2)
    items = Read(100)
    results = ahead(lambda item: 1 // (item - 7), items)
    assert [next(results) for _ in range(7)] == [-1] * 7
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert items.read <= 7 + 1 + 2 * 2
    assert list(ahead(abs, [-1, -2])) == [1, 2]  # the threads are still there


@cpu_only
@pytest.mark.parametrize("interrupted", [False, True])
def test_ahead_ended_early_waits_for_what_is_being_done_and_drops_the_rest(monkeypatch, interrupted):
    monkeypatch.setattr(_ahead, "count_cores", lambda: 1)
    items, done, began, hold = Read(), [], threading.Event(), threading.Event()

    def work(item):
        if item == 1:
            began.set()
            threading.Timer(0.2, hold.set).start()  # by then the rest is cancelled
        if item > 0:
            hold.wait(60)
        done.append(item)

    results = ahead(work, items)
    next(results)
    assert items.read == 3
    assert began.wait(60)
    if interrupted:  # while the caller waits for item 1

        def interrupt(waiting):
            raise KeyboardInterrupt

        monkeypatch.setattr(_ahead, "_first", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(results)
    else:
        results.close()
    assert done == [0, 1]
    assert items.read <= 4


@cpu_only
def test_ahead_within_an_item_is_a_plain_map():
    def work(item):
        return list(ahead(lambda inner: (item, inner, threading.current_thread()), range(20)))

    for item, found in enumerate(ahead(work, range(20))):
        assert [pair[:2] for pair in found] == [(item, inner) for inner in range(20)]
        assert len({pair[2] for pair in found}) == 1


@cpu_only
def test_ahead_works_under_the_settings_of_its_caller():
    def settings_there(value):
        array = jnp.asarray(value)
        return array.dtype, array.device, jax.config.jax_default_matmul_precision

    outside = settings_there(1.0)
    device = jax.devices()[-1]
    with jax.enable_x64(True), jax.default_device(device), jax.default_matmul_precision("highest"):
        inside = settings_there(1.0)
        assert inside == (np.float64, device, "highest")
        assert list(ahead(settings_there, [1.0] * 5)) == [inside] * 5
    assert list(ahead(settings_there, [1.0] * 5)) == [outside] * 5
