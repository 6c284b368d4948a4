"""How much of a network changed (`jaxunlearn.audits.change`)."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import audits, models, wrappers
from jaxunlearn.testing import tiny_problem


def test_a_change_is_counted_and_measured():
    model = tiny_problem().model
    flat, rebuild = jax.flatten_util.ravel_pytree(model.params)
    nothing = {"parameters": flat.size, "changed": 0, "relative_l2": 0.0, "statistics": 0, "added": 0}
    assert audits.change(model, model) == nothing

    step = jnp.where(jax.random.bernoulli(jax.random.key(0), 0.3, flat.shape), 0.1, 0.0)
    found = audits.change(model.replace(params=rebuild(flat + step)), model)
    assert found["changed"] == int((step != 0).sum())
    before, after = np.asarray(flat, np.float64), np.asarray(flat + step, np.float64)
    np.testing.assert_allclose(
        found["relative_l2"], np.linalg.norm(after - before) / np.linalg.norm(before), rtol=1e-12
    )


def test_statistics_stand_apart_from_weights():
    model = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    state = jax.tree.map(lambda leaf: leaf.at[0].add(1), model.model_state)
    found = audits.change(model.replace(model_state=state), model)
    assert (found["statistics"], found["changed"]) == (len(jax.tree.leaves(state)), 0)


def test_what_wrappers_add_is_no_change_of_the_network_inside():
    model = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    arguments = {"dim": 32, "width": 5, "residual": True}
    own = {name: jnp.zeros(shape) for name, shape in wrappers.Projector(**arguments).shapes().items()}
    once = wrappers.wrap(model, "projector", arguments, own)
    twice = wrappers.wrap(once, "projector", arguments, own)
    size = sum(leaf.size for leaf in own.values())
    assert audits.change(once, model)["added"] == size
    assert audits.change(twice, model)["added"] == 2 * size
    # Going on from a wrapped network: what was there already is not added again.
    assert audits.change(twice, once)["added"] == size
    assert audits.change(twice, once)["changed"] == 0


def test_another_network_is_refused():
    model, other = tiny_problem().model, models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    with pytest.raises(ValueError, match="original must be the network inside model: shape of"):
        audits.change(model, other)
