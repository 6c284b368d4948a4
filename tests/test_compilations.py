"""What compiles anew and what does not, counted in programs that XLA is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import attacks, importance, inference, loop, methods, sharding
from jaxunlearn._types import Batch, Problem
from tests import spread
from tests.tiny import Counting

#: Told for each program, also for one that lies compiled on disk.
COMPILED = "/jax/core/compile/backend_compile_duration"
ADV_IMP = methods.get("adv-imp")
PADDED = 16
COUNT = {"programs": 0}


def _count(event: str, duration: float, **kwargs: Any) -> None:
    COUNT["programs"] += event == COMPILED


jax.monitoring.register_event_duration_secs_listener(_count)


@contextmanager
def programs() -> Iterator[list[int]]:
    """Count the programs that are compiled in the block: the list has their number at its end."""
    found, before = [], COUNT["programs"]
    yield found
    found.append(COUNT["programs"] - before)


def request(k: int, *, padded: bool = True, apply_fn: Any = None) -> Problem:
    """Return a request of k instances, padded to 16 where it is asked for."""
    whole = spread.problem()
    forget = Batch(*(jnp.asarray(np.asarray(field)[:k]) for field in whole.forget))
    forget = sharding.pad_batch(forget, PADDED) if padded else forget
    model = whole.model if apply_fn is None else dataclasses.replace(whole.model, apply_fn=apply_fn)
    return dataclasses.replace(whole, model=model, forget=forget)


def attack(problem: Problem, *, seed: int = 0, epsilon: float = 1.0, step_size: float = 0.3, **kwargs: Any) -> Any:
    limits = dict(epsilon=epsilon, step_size=step_size)
    return attacks.adversarial_set(
        jax.random.key(seed), problem.model, problem.forget, draws=1, steps=2, **limits, **kwargs
    ).x


def mas(problem: Problem, **kwargs: Any) -> Any:
    model, forget = problem.model, problem.forget
    run = importance.mas(model.apply_fn, **kwargs)
    return run(model.params, model.model_state, forget.x, weight=forget.weight)


def fisher(problem: Problem, **kwargs: Any) -> Any:
    model, forget = problem.model, problem.forget
    run = importance.fisher(model.apply_fn, **kwargs)
    return run(model.params, model.model_state, forget.x, weight=forget.weight)


def evaluate(problem: Problem) -> Any:
    return inference.logits(problem.model, problem.forget.x)


def unlearn(problem: Problem, *, seed: int = 0, where: Any = "auto", **changes: Any) -> Any:
    config = ADV_IMP.Config(**{**spread.ADV_IMP, "max_passes": 1, **changes})
    return loop.run(problem, method="adv-imp", config=config, key=jax.random.key(seed), loop=where)


PARTS = {
    "attack": attack,
    "importance": mas,
    "importance by batch": lambda problem: mas(problem, variant="batch_mean"),
    "importance on the device": lambda problem: mas(problem, loop="device"),
    "Fisher information": fisher,
    "evaluation": evaluate,
    "job, with its steps": unlearn,
}


def test_the_count_sees_a_program() -> None:
    with programs() as found:
        jax.block_until_ready(jax.jit(lambda x: x * 3 + len(found))(jnp.ones(7)))
    assert found[-1] >= 1


@pytest.mark.parametrize("part", PARTS)
def test_another_k_within_a_padded_size_compiles_nothing(part: str) -> None:
    few, more = request(9), request(13)
    before = PARTS[part](few)
    with programs() as found:
        after = PARTS[part](more)
    assert found == [0]
    arrays = [jax.tree.leaves(r.model.params if hasattr(r, "model") else r) for r in (before, after)]
    assert not all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True)), "the same work was done twice"


@pytest.mark.parametrize("part", ["attack", "importance", "evaluation"])
def test_another_k_without_padding_compiles_no_network(part: str) -> None:
    network = Counting(spread.network)
    PARTS[part](request(16, padded=False, apply_fn=network))
    network.traces = 0
    for k in (9, 13):
        PARTS[part](request(k, padded=False, apply_fn=network))
    assert network.traces == 0


@pytest.mark.parametrize("where", ["host", "device"])
def test_other_radii_strengths_rates_and_seeds_compile_nothing(where: Any) -> None:
    problem = request(13)
    unlearn(problem, where=where)
    with programs() as found:
        for changes in (
            dict(epsilon=0.7),
            dict(attack_step_size=0.1),
            dict(learning_rate=0.003),
            dict(momentum=0.5),
            dict(weight_decay=0.01),
            dict(slack=0.1),
            dict(**{ADV_IMP.strength: 0.3}),
            dict(seed=8),
        ):
            unlearn(problem, where=where, **changes)
    assert found == [0]


def test_another_radius_step_or_seed_of_the_attack_compiles_nothing() -> None:
    problem = request(13)
    attack(problem)
    with programs() as found:
        attack(problem, epsilon=0.2)
        attack(problem, step_size=0.02)
        attack(problem, seed=5)
    assert found == [0]


def test_other_weights_of_the_network_compile_nothing() -> None:
    problem = request(13)
    other = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) * np.float32(0.9)), problem.model.params)
    for part in PARTS.values():
        part(problem)
        with programs() as found:
            part(dataclasses.replace(problem, model=problem.model.replace(params=other)))
        assert found == [0]


def test_batch_norm_in_train_mode_compiles_for_another_k_and_for_no_other_value() -> None:
    changes = dict(batch_norm="update")  # exact shapes: padding would enter the batch statistics
    unlearn(request(13, padded=False), **changes)
    with programs() as found:
        unlearn(request(13, padded=False), learning_rate=0.02, seed=3, **changes)
    assert found == [0]
    with programs() as found:
        unlearn(request(12, padded=False), **changes)
    assert found[0] > 0
