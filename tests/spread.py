"""The same work wherever its arrays lie; as a program, one of several processes that share it.

python -m tests.spread ADDRESS PROCESSES PROCESS DEVICES OUT
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import attacks, curvature, importance, inference, loop, methods, sharding
from jaxunlearn._types import Batch, Model, ModelSpec, Problem

K, CLASSES = 16, 4
PROGRAM = re.compile(r"^```python program\n(.*?)^```", re.DOTALL | re.MULTILINE)
ADV_IMP = dict(draws=2, attack_steps=3, epsilon=1.0, attack_step_size=0.3, forget_batch=8, companion_batch=16)


def network(params: Any, model_state: Any, x: Any, *, train: bool = False, rngs: Any = None) -> tuple[Any, Any]:
    """A convolution, BatchNorm, a classifier; every array has an axis that eight devices can split."""
    x = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean, var = model_state["mean"], model_state["var"]
    if train:
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        model_state = {"mean": 0.9 * model_state["mean"] + 0.1 * mean, "var": 0.9 * model_state["var"] + 0.1 * var}
    x = (x - mean[None, None, None]) * jax.lax.rsqrt(var + 1e-5)[None, None, None]
    x = jax.nn.relu(x * params["scale"][None, None, None])
    return jnp.mean(x, (1, 2)) @ params["dense"], model_state


def problem() -> Problem:
    """Return a request on that network, with the labels that it gives."""
    k = jax.random.split(jax.random.key(0), 3)
    params = {
        "conv": jax.random.normal(k[0], (3, 3, 2, 8)),
        "scale": jax.random.uniform(k[1], (8,), minval=0.5, maxval=1.5),
        "dense": jax.random.normal(k[2], (8, CLASSES)),
    }
    state = {"mean": jnp.linspace(-0.3, 0.3, 8), "var": jnp.linspace(0.5, 2.0, 8)}
    spec = ModelSpec(num_classes=CLASSES, input_shape=(6, 6, 2))
    model = Model(params=params, model_state=state, apply_fn=network, spec=spec)
    x = jax.random.uniform(jax.random.key(1), (K, 6, 6, 2))
    return Problem(model=model, forget=Batch.of(x, np.asarray(jnp.argmax(model(x), axis=1))))


def work(problem: Problem, batch_norm: tuple[str, ...] = ("frozen", "update")) -> dict[str, Any]:
    """Attack, measure importance and curvature, take steps of unlearning, evaluate; return it all as NumPy."""
    model, forget = problem.model, problem.forget
    weights = model.params, model.model_state
    found: dict[str, Any] = {"logits": inference.logits(model, forget.x, batch_size=2)}
    found["attack"] = attacks.adversarial_set(
        jax.random.key(2), model, forget, draws=2, epsilon=1.0, step_size=0.3, steps=3, microbatch_size=2
    )
    weight = forget.weight.at[3].set(0.0)  # padding
    found["mas"] = importance.mas(model.apply_fn, microbatch_size=2)(*weights, forget.x, weight=weight)
    found["mas, by batch"] = importance.mas(model.apply_fn, variant="batch_mean", batch_size=8)(*weights, forget.x)
    found["fisher"] = importance.fisher(model.apply_fn, microbatch_size=8)(*weights, forget.x, weight=weight)

    fn = curvature.LogitDirection(model.apply_fn)
    jacobian = curvature.Jacobian(fn, ("conv", "dense"), 2)
    there = (*weights, (forget.x, np.eye(CLASSES, dtype=np.float32)[np.arange(K) % CLASSES]))
    found["rows"] = jacobian.rows(*there, columns=slice(3, None))
    found["gram"] = curvature.gram(jacobian, curvature.Part(*there), max_bytes=4 * K * 100)
    found["J^T w"] = jacobian.transpose_times(*there, np.arange(K) / K)
    found["J d"] = jacobian.times(*there, {path: jnp.ones_like(model.params[path]) for path in jacobian.paths})

    for mode in batch_norm:
        config = methods.get("adv-imp").Config(batch_norm=mode, max_passes=2, learning_rate=0.02, **ADV_IMP)
        result = loop.run(problem, method="adv-imp", config=config, key=jax.random.key(3))
        found[mode] = result.model, result.forgotten, result.forgotten_at, dict(result.history)
    return dict(sharding.to_host(found))


def leaves(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return every array by its path."""
    flat = jax.tree_util.tree_flatten_with_path(found)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def main(address: str, processes: str, process: str, devices: str, out: str, page: str = "") -> None:
    """Load a share of the instances, join the others, work, keep what was found; or run the program of a page."""
    jax.config.update("jax_num_cpu_devices", int(devices))
    initialize = partial(jax.distributed.initialize, address, int(processes), int(process), initialization_timeout=60)
    if page:
        jax.distributed.initialize = initialize  # what a cluster tells it
        os.chdir(Path(out).parent)
        exec(compile(PROGRAM.findall(Path(page).read_text())[0], page, "exec", dont_inherit=True), {"__name__": "page"})
        return
    initialize()
    assert (jax.process_count(), len(jax.devices())) == (int(processes), int(processes) * int(devices))
    mesh, whole, each = sharding.data_mesh(), problem(), K // int(processes)
    own = jax.tree.map(lambda a: np.asarray(a)[int(process) * each :][:each], whole.forget)
    given = dataclasses.replace(
        whole, forget=sharding.from_processes(own, mesh), model=sharding.replicate(whole.model, mesh)
    )
    np.savez(out, **leaves(work(given, batch_norm=("frozen",))))


if __name__ == "__main__":
    main(*sys.argv[1:])
