"""Meshes and placements: eight devices give what one gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, PartitionSpec as P

from jaxunlearn import losses, sharding
from jaxunlearn._types import Batch
from tests import tiny


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
