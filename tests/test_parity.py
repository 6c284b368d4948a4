"""The library against the published procedure in eager PyTorch: real weights, real images, the same random numbers.

Two float32 implementations of one attack part ways: the input gradient of a ReLU
network jumps where a unit switches, and near a reached target the factor
``p_t - 1`` of the cross-entropy's gradient has no digits left (PyTorch in float32
against PyTorch in float64 is just as far off). So the published attack is compared
in float64, and in float32 with small steps from far away. Parameters part likewise
where a unit switches (a percent of the way moved), so float64 holds them tightly.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import _config, attacks, convert, importance, methods
from jaxunlearn._types import Batch, Model, Problem

torch = pytest.importorskip("torch", reason="parity needs PyTorch")
pytest.importorskip("tensorflow_datasets", reason="parity needs the real images")

from experiments import real  # noqa: E402
from experiments.benchmarks import torch_l2ul  # noqa: E402
from experiments.benchmarks.compare_torch import nchw, same_draws  # noqa: E402

K, DRAWS = 6, 2


class Case(NamedTuple):
    """The same network and the same forget set on both sides."""

    ours: Model
    forget: Batch
    theirs: Any
    x: Any
    y: Any


@pytest.fixture(scope="module")
def networks(shared: Any) -> Iterator[tuple[Model, Any, np.ndarray, np.ndarray]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several spin while they wait for each other: ruinous where cores are shared
    source = real.cifar10()
    rows = source.splits["train"][:K]
    theirs = torch_l2ul.load(real.weights("cifar_resnet20"))
    yield real.network("cifar_resnet20"), theirs, source.images(rows), source.labels[rows]
    torch.set_num_threads(threads)


def case(networks: tuple[Model, Any, np.ndarray, np.ndarray], dtype: Any = np.float32, k: int = K) -> Case:
    ours, theirs, x, y = networks
    forget = Batch.of(x[:k].astype(dtype), y[:k])
    theirs = copy.deepcopy(theirs).to(torch.float64 if dtype == np.float64 else torch.float32)
    ours = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), ours)
    return Case(ours, forget, theirs, nchw(forget.x), torch.tensor(y[:k]).long())


def attacks_of(case: Case, *, step: float, **theirs: Any) -> tuple[Batch, np.ndarray]:
    """Return our and their adversarial images of 10 steps from the same starts and targets; groups of 3."""
    key = jax.random.key(0)
    settings = dict(epsilon=4.0, step_size=step, steps=10, targets="published", group=3)
    ours = attacks.adversarial_set(key, case.ours, case.forget, draws=DRAWS, **settings)
    targets, starts = same_draws(key, case.forget, DRAWS, case.ours.spec.num_classes)
    images, labels = torch_l2ul.attack(
        case.theirs, case.x, targets, starts, step=step, iterations=10, forget_batch=3, **theirs
    )
    np.testing.assert_array_equal(labels.numpy(), ours.target)  # also the order: groups, draws, rows
    return ours, np.moveaxis(images.numpy(), 1, -1)


def test_perturbations_agree_in_float64(networks: Any) -> None:
    with jax.enable_x64(True):
        both = case(networks, np.float64, k=4)
        for step in (0.1, 1.0):  # published; so large that the order of box and ball counts
            ours, theirs = attacks_of(both, step=step)
            assert ours.x.dtype == np.float64
            np.testing.assert_allclose(np.asarray(ours.x), theirs, atol=1e-6, rtol=0)


def test_perturbations_agree_in_float32_until_a_unit_switches(networks: Any) -> None:
    ours, theirs = attacks_of(case(networks, k=4), step=0.01)
    off = np.abs(np.asarray(ours.x) - theirs).max(axis=(1, 2, 3))
    assert np.median(off) < 1e-6
    assert np.mean(off < 1e-4) >= 0.75


def test_the_tuned_attack_is_the_published_one(networks: Any) -> None:
    with jax.enable_x64(True):
        theirs = case(networks, np.float64, k=4)
    generator = torch.Generator().manual_seed(0)
    targets = torch_l2ul.draw_targets(theirs.y, DRAWS, 10, generator)
    starts = torch.rand((DRAWS, *theirs.x.shape), generator=generator, dtype=torch.float64)
    plain, tuned = (
        torch_l2ul.attack(theirs.theirs, theirs.x, targets, starts, iterations=5, forget_batch=3, **how)
        for how in ({}, {"tuned": True, "tuned_batch": 5})
    )
    assert torch.equal(plain[1], tuned[1])
    np.testing.assert_allclose(tuned[0], plain[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("variant", ["published", "default"])
def test_importance_agrees(networks: Any, variant: str) -> None:
    both = case(networks)
    if variant == "published":  # two batches: released code never zeroes its gradients in between
        how = dict(variant="batch_mean", train=True, batch_size=3, accumulate="released")
        theirs = torch_l2ul.importance(both.theirs, both.x, batch=3)
    else:
        how = {}
        theirs = torch_l2ul.importance_per_example(both.theirs, both.x)
    omega = importance.mas(both.ours.apply_fn, **how)(both.ours.params, both.ours.model_state, both.forget.x)
    for mine, yours in ((omega, theirs), (importance.holding_weight(omega), torch_l2ul.holding_weights(theirs))):
        named = convert.to_torch(both.ours.replace(params=mine))
        for name, value in yours.items():
            scale = float(value.max())
            np.testing.assert_allclose(named[name], value.numpy(), atol=1e-4 * scale, rtol=0, err_msg=name)


# One shape of batch for each method, since every shape compiles. With three forget batches
# beside two adversarial ones, it counts that the cycle over D_f keeps its phase between passes.
BATCHES = {
    "neggrad": dict(forget_batch=K),
    "adv": dict(forget_batch=2, companion_batch=6, draws=DRAWS, attack_steps=1),
    "adv-imp": dict(forget_batch=2, companion_batch=6, draws=DRAWS, attack_steps=1),
}


@pytest.mark.parametrize("method", ["neggrad", "adv", pytest.param("adv-imp", marks=pytest.mark.slow)])
def test_parameters_and_statistics_agree_after_three_published_steps(networks: Any, method: str) -> None:
    check_three_steps(case(networks), method, moved=5e-2)


def test_three_steps_of_the_full_method_agree_in_float64(networks: Any) -> None:
    with jax.enable_x64(True):
        check_three_steps(case(networks, np.float64), "adv-imp", moved=1e-6)


def check_three_steps(both: Case, method: str, *, moved: float) -> None:
    """Hold parameters and statistics together, to 1e-4 and to a share of how far the tensor moved in three steps."""
    spec = methods.get(method)
    config = dataclasses.replace(spec.Config.published(), **BATCHES[method])
    unlearner = spec.make(_config.static(config))
    key, problem = jax.random.key(0), Problem(model=both.ours, forget=both.forget)
    state = unlearner.prepare(key, problem, _config.traced(config))
    draws, step = unlearner.phases[0].draws(state), jax.jit(unlearner.phases[0].step)
    for t in range(3):
        batch = draws.draw(state, t, draws.period[t % len(draws.period)])
        state, _ = step(key, state, batch)

    adversarial = unlearner.extras(state).get("adversarial")
    if adversarial is not None:
        adversarial = nchw(adversarial.x), torch.tensor(np.asarray(adversarial.target)).long()
    weights = None
    if method == "adv-imp":
        weights = torch_l2ul.holding_weights(torch_l2ul.importance(both.theirs, both.x, batch=config.forget_batch))
    before = {name: value.clone() for name, value in both.theirs.state_dict().items()}
    outcome = torch_l2ul.unlearn(
        both.theirs,
        both.x,
        both.y,
        adversarial,
        weights,
        forget_batch=config.forget_batch,
        adversarial_batch=getattr(config, "companion_batch", 256),
        max_steps=3,
    )
    assert outcome.steps == 3
    after = both.theirs.state_dict()
    for name, value in convert.to_torch(unlearner.finish(state)).items():
        distance = float((after[name] - before[name]).abs().max())
        assert distance > 0, name
        # At a rate of 1e-3 a tensor hardly moves: 1e-4 alone would hold little.
        tolerance = min(1e-4, moved * distance)
        np.testing.assert_allclose(value, after[name].numpy(), atol=tolerance, rtol=0, err_msg=name)


def test_the_tuned_steps_are_the_published_ones(networks: Any) -> None:
    with jax.enable_x64(True):
        both = case(networks, np.float64)
    adversarial = both.x.flip(3).repeat(2, 1, 1, 1), (both.y + 1).repeat(2) % 10
    weights = torch_l2ul.holding_weights(torch_l2ul.importance(both.theirs, both.x))
    after = []
    for tuned in (False, True):
        model = copy.deepcopy(both.theirs)
        torch_l2ul.unlearn(
            model, both.x, both.y, adversarial, weights, adversarial_batch=3, strength=100.0, max_steps=4, tuned=tuned
        )
        after.append(model.state_dict())
    for name, value in after[0].items():
        np.testing.assert_allclose(after[1][name], value, atol=1e-9, rtol=0, err_msg=name)
