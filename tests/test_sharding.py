"""Meshes and placements: eight devices give what one gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, PartitionSpec as P

from jaxunlearn import _config, _devices, _repeat, attacks, curvature, importance, loop, losses, methods, sharding
from jaxunlearn._types import Batch, Problem
from tests import spread, tiny


def test_mesh_covers_the_devices_with_an_automatic_axis() -> None:
    mesh = sharding.data_mesh()
    assert dict(mesh.shape) == {"data": len(jax.devices())}
    assert mesh.axis_types == (AxisType.Auto,)
    two = sharding.data_mesh(jax.devices()[2:4])
    assert list(two.devices.flat) == jax.devices()[2:4]
    with pytest.raises(ValueError, match="devices must name at least one device; got none"):
        sharding.data_mesh([])


def test_batches_are_split_and_weights_copied() -> None:
    mesh = sharding.data_mesh()
    batch = sharding.shard_batch(Batch.of(np.arange(32.0).reshape(16, 2), np.arange(16)), mesh)
    assert all(field.sharding.spec == P("data") for field in batch)
    assert batch.x.addressable_shards[3].data.tolist() == [[12.0, 13.0], [14.0, 15.0]]
    weights = sharding.replicate({"w": jnp.ones(3)}, mesh)
    assert weights["w"].sharding.is_fully_replicated
    assert len(weights["w"].devices()) == len(jax.devices())
    for bad in (np.ones((9, 2)), np.float32(1)):
        with pytest.raises(ValueError, match="the batch axis must be a multiple of the 8 devices; got shape"):
            sharding.shard_batch({"x": bad}, mesh)


def test_per_example_work_on_eight_devices_equals_one() -> None:
    mesh = sharding.data_mesh()
    params = tiny.linear_params(jax.random.key(0), 6, 3)
    batch = Batch.of(jax.random.normal(jax.random.key(1), (16, 6)), np.arange(16) % 3)

    @jax.jit
    def work(params: dict, batch: Batch) -> tuple:
        def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
            return losses.cross_entropy(tiny.linear(params, {}, x[None])[0], y[None])[0]

        rows = jax.vmap(jax.grad(loss), (None, 0, 0))(params, batch.x, batch.y)
        picked = batch.x[jnp.array([3, 1])]  # raises under explicit axes
        return rows, picked, jax.lax.top_k(batch.x[:, 0], 2)[0]

    single = work(params, batch)
    spread = work(sharding.replicate(params, mesh), sharding.shard_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def on_one_device() -> dict[str, np.ndarray]:
    return spread.leaves(spread.work(spread.problem()))


def lay(weights: str, devices: int = 8) -> Problem:
    """Return the request of `spread` with its instances split over devices, and its weights split or copied."""
    problem, mesh = spread.problem(), sharding.data_mesh(jax.devices()[:devices])
    model = sharding.replicate(problem.model, mesh)
    if weights == "split":
        model = model.replace(params=sharding.shard_params(problem.model.params, mesh, smallest=1))
        assert [leaf.sharding.spec for leaf in jax.tree.leaves(model.params)] == [
            P(None, None, None, "data"),
            P("data"),
            P("data"),
        ]
    return dataclasses.replace(problem, model=model, forget=sharding.shard_batch(problem.forget, mesh))


@pytest.mark.parametrize("weights", ["copied", "split"])
def test_attack_importance_curvature_steps_and_evaluation_on_eight_devices_equal_one(
    weights: str, on_one_device: dict[str, np.ndarray]
) -> None:
    found = spread.leaves(spread.work(lay(weights)))
    assert found.keys() == on_one_device.keys()
    for path, value in on_one_device.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


def multiplications(compiled: jax.stages.Compiled) -> float:
    """Return the floating-point operations that each device does."""
    return compiled.cost_analysis()["flops"]


def work_of_a_device(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> float:
    """Return the floating-point operations of a device in all that goes through `_repeat.call` while this runs."""
    done, call = [], _repeat.call

    def counted(fn: Any, statics: tuple, *args: Any) -> Any:
        if not _repeat.is_traced(args):
            done.append(multiplications(call.lower(fn, statics, *args).compile()))
        return call(fn, statics, *args)

    counted.eval_shape = call.eval_shape  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(_repeat, "call", counted)
        run()
    return sum(done)


WORK = {
    "attack": lambda p: attacks.attack_batch(
        attacks.pgd(p.model.apply_fn, steps=2),
        jax.random.split(jax.random.key(0), 16),
        p.model.params,
        p.model.model_state,
        p.forget.x,
        p.forget.y,
        epsilon=1.0,
        step_size=0.1,
        microbatch_size=2,
    ),
    "mas": lambda p: importance.mas(p.model.apply_fn, microbatch_size=2)(
        p.model.params, p.model.model_state, p.forget.x
    ),
    "mas, by batch": lambda p: importance.mas(p.model.apply_fn, variant="batch_mean")(
        p.model.params, p.model.model_state, p.forget.x
    ),
    "fisher": lambda p: importance.fisher(p.model.apply_fn, microbatch_size=8)(
        p.model.params, p.model.model_state, p.forget.x
    ),
    "rows": lambda p: curvature.Jacobian(curvature.LogitDirection(p.model.apply_fn), ("conv", "dense"), 2).rows(
        p.model.params, p.model.model_state, (p.forget.x, np.ones((16, 4), np.float32))
    ),
}


@pytest.mark.parametrize("what", WORK)
def test_a_device_does_its_share_of_the_work(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, each = (work_of_a_device(monkeypatch, lambda p=p: WORK[what](p)) for p in (spread.problem(), lay("copied")))
    assert each < one / 4, f"a device of 8 does {each / one:.2f} of the work of one"


def test_a_device_does_its_share_of_a_step() -> None:
    unlearner = methods.get("adv-imp").make(methods.get("adv-imp").Config(**spread.ADV_IMP))
    hparams = _config.traced(methods.get("adv-imp").Config(**spread.ADV_IMP))
    done = []
    for problem in (spread.problem(), lay("copied")):
        state = loop.start(unlearner, jax.random.key(0), problem, hparams)
        step = loop._advance.lower(unlearner, state, phase=0, part=0, split=_devices.split_of(problem.forget))
        done.append(multiplications(step.compile()))
    assert done[1] < done[0] / 4, f"a device of 8 does {done[1] / done[0]:.2f} of a step of one"


@pytest.mark.parametrize("loop", ["host", "device"])
def test_importance_goes_through_each_devices_own_rows(loop: str) -> None:
    alone, shared = spread.problem(), lay("split", devices=4)  # four rows a device, in microbatches of three
    for make in (importance.mas, importance.fisher):
        run = make(alone.model.apply_fn, microbatch_size=3, loop=loop)
        one, many = (run(p.model.params, p.model.model_state, p.forget.x) for p in (alone, shared))
        for name, value in one.items():
            np.testing.assert_allclose(many[name], value, rtol=1e-4, atol=1e-6)
            assert many[name].sharding.spec == shared.model.params[name].sharding.spec


def test_weights_are_split_along_their_longest_axis() -> None:
    mesh = sharding.data_mesh()
    tree = {"a": np.ones((3, 8, 16)), "odd": np.ones((9, 7)), "small": np.ones(8), "scalar": np.float32(1)}
    laid = sharding.shard_params(tree, mesh, smallest=9)
    assert {name: leaf.sharding.spec for name, leaf in laid.items()} == {
        "a": P(None, None, "data"),
        "odd": P(),
        "small": P(),
        "scalar": P(),
    }


def test_rows_of_one_process_are_the_whole() -> None:
    mesh = sharding.data_mesh()
    batch = Batch.of(np.arange(32.0).reshape(16, 2), np.arange(16))
    joined = sharding.from_processes(batch, mesh)
    assert all(field.sharding.spec == P("data") for field in joined)
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(joined), batch)
    with pytest.raises(ValueError, match=r"rows of a process must be a multiple of its 8 devices; got shape \(3,\)"):
        sharding.from_processes({"x": np.ones(3)}, mesh)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), multiple=st.integers(1, 9))
def test_padding_changes_no_weighted_sum(rows: int, multiple: int) -> None:
    rng = np.random.default_rng(rows)
    batch = Batch.of(rng.random((rows, 3)), rng.integers(0, 4, rows), rng.integers(0, 4, rows))
    padded = sharding.pad_batch(batch, multiple)
    size = padded.x.shape[0]
    assert size % multiple == 0
    assert rows <= size < rows + multiple
    for before, after in zip(batch, padded, strict=True):
        assert after.shape == (size, *before.shape[1:])
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after[:rows], before)
    assert padded.weight[rows:].tolist() == [0.0] * (size - rows)
    assert padded.index[rows:].tolist() == [-1] * (size - rows)
    np.testing.assert_array_equal(padded.x[rows:], np.broadcast_to(batch.x[-1], (size - rows, 3)))


def test_padding_errors() -> None:
    with pytest.raises(ValueError, match="multiple must be at least 1; got 0"):
        sharding.pad_batch(Batch.of(np.ones((1, 2)), [0]), 0)
    with pytest.raises(ValueError, match="batch must hold at least one instance; got none"):
        sharding.pad_batch(Batch.of(np.ones((0, 2)), []), 4)
