"""Meshes and placements: components take no mesh, their work follows the arguments' sharding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from jaxunlearn import _devices, _validate
from jaxunlearn._types import Batch, PyTree

#: Name of the mesh axis along which batches are split.
DATA_AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one automatic axis, ``"data"``, over some devices (default: all).

    The axis is `jax.sharding.AxisType.Auto`: under explicit axes per-example gradients, ``x[index]``
    and ``top_k`` raise.

    Raises:
      ValueError: no devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must name at least one device; got none")
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Split every array of a tree along its first axis over the mesh.

    Args:
      tree: a `Batch`, an array, or any tree of arrays with a leading batch axis.
      mesh: of `data_mesh`.

    Raises:
      ValueError: a leading axis is not a multiple of the number of devices (`pad_batch`).
    """
    size = mesh.shape[DATA_AXIS]
    for leaf in jax.tree.leaves(tree):
        shape = np.shape(leaf)
        if not shape or shape[0] % size:
            raise ValueError(f"the batch axis must be a multiple of the {size} devices; got shape {shape}")
    return jax.device_put(tree, NamedSharding(mesh, P(DATA_AXIS)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy every array of a tree, such as a model's weights, to each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_params(tree: PyTree, mesh: Mesh, *, smallest: int = 1 << 16) -> PyTree:
    """Split every large array of a tree, such as a large net's weights, along its longest axis over the mesh.

    The longest axis that is a multiple of the number of devices is split; an
    array without one, or with few entries, is copied to each device. Optimiser
    states and importances made from such weights lie as they do.

    Args:
      tree: of arrays.
      mesh: of `data_mesh`; batches may be split over the same devices.
      smallest: entries below which an array is copied.

    >>> mesh = data_mesh(jax.devices()[:1])
    >>> tuple(shard_params({"w": jnp.ones((3, 4))}, mesh, smallest=1)["w"].sharding.spec)
    (None, 'data')
    """
    size = mesh.shape[DATA_AXIS]

    def leaf(a: Any) -> Any:
        shape = np.shape(a)
        fitting = [axis for axis, length in enumerate(shape) if length and length % size == 0]
        if not fitting or np.size(a) < smallest:
            return jax.device_put(a, NamedSharding(mesh, P()))
        longest = max(fitting, key=lambda axis: shape[axis])
        return jax.device_put(a, NamedSharding(mesh, P(*(None,) * longest, DATA_AXIS)))

    return jax.tree.map(leaf, tree)


def from_processes(tree: PyTree, mesh: Mesh) -> PyTree:
    """Join the rows that each process loaded to arrays that are split over the devices of all processes.

    Process i's rows come before those of process i + 1. With one process this is `shard_batch`.

    Args:
      tree: a `Batch` or any tree of arrays, this process's own rows; as many on every process.
      mesh: of `data_mesh`, over the devices of all processes, in their order (`jax.devices()`).

    Raises:
      ValueError: the number of rows is not a multiple of this process's devices in the mesh.
    """
    own = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
    for leaf in jax.tree.leaves(tree):
        if not np.ndim(leaf) or np.shape(leaf)[0] % own:
            raise ValueError(
                f"the rows of a process must be a multiple of its {own} devices; got shape {np.shape(leaf)}"
            )
    split = NamedSharding(mesh, P(DATA_AXIS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), tree)


def to_host(tree: PyTree) -> PyTree:
    """Return the arrays of a tree as NumPy, whole on every process; all processes must call it.

    >>> to_host({"a": jnp.arange(2)})["a"].tolist()
    [0, 1]
    """
    return jax.tree.map(_devices.host, tree)


def pad_batch(batch: Batch, multiple: int) -> Batch:
    """Pad a batch with instances of weight 0 to a multiple of some number of rows.

    Padding repeats the last instance, so that every row is a valid input with a
    valid label; its ``index`` is -1. Weight 0 takes it out of every loss.

    Args:
      batch: at least one instance.
      multiple: such as the number of devices, at least 1.

    Raises:
      ValueError: an empty batch, or a multiple below 1.

    >>> pad_batch(Batch.of(np.zeros((3, 2)), [0, 1, 2]), 4).weight.tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    _validate.positive_int("multiple", multiple)
    rows = batch.x.shape[0]
    if rows == 0:
        raise ValueError("batch must hold at least one instance; got none")
    missing = -rows % multiple
    if not missing:
        return batch
    padded = [jnp.concatenate([field, jnp.repeat(field[-1:], missing, axis=0)]) for field in batch]
    real = jnp.arange(rows + missing) < rows
    whole = Batch(*padded)
    return whole._replace(weight=jnp.where(real, whole.weight, 0), index=jnp.where(real, whole.index, -1))
