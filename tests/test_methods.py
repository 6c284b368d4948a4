"""The contract of `jaxunlearn.testing`, over every method of the registry."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import jax
import numpy as np
import pytest

from jaxunlearn import curvature, loop, methods, proxies, testing


@functools.cache  # one network for all checks of a method: the same programs serve them
def problem_maker(name):
    return testing.problem_maker(methods.get(name))


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", methods.names())
def test_contract(name, check):
    check(methods.get(name), problem_maker(name))


def test_unknown_method_names_close_ones():
    with pytest.raises(ValueError, match="unknown method 'adv-impp'; did you mean 'adv-imp'"):
        methods.get("adv-impp")


def test_check_method_names_the_check_that_failed():
    broken = dataclasses.replace(methods.get("neggrad"), summary="")
    with pytest.raises(AssertionError, match="neggrad: declares_itself"):
        testing.check_method(broken)


def moments(problem):
    return {"moments": curvature.moments_artefact(problem.model, problem.retain.x)}


def codes(problem):
    made = proxies.draw_codes(jax.random.key(0), problem.model)
    labels = np.repeat(np.arange(problem.model.spec.num_classes), 99)
    return {"codes": proxies.codes_artefact(problem.model, made, labels, mix=0.2)}


def anchors(problem):
    return {"anchors": np.ones((problem.model.spec.num_classes - 1, 3))}


@pytest.mark.parametrize(
    ("name", "settings", "given", "head", "message"),
    [
        ("mnemonic", {}, codes, ("head",), r"holds \d of the 99 training instances of class"),
        ("pgu", {}, moments, ("head",), "image 0 is not among the 16 images"),
        ("minimal-edit", {"layers": "nope*"}, None, ("head",), r"no parameter matches 'nope\*'"),
        ("prune", {"space": "features"}, None, None, "'features' needs a network that names its head"),
        ("structguard", {}, anchors, ("head",), "one row for each of the 5 classes"),
        ("boundary-expand", {}, None, None, "needs to know which layer is the classifier"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_the_work(name, settings, given, head, message):
    problem, spec = testing.tiny_problem(), methods.get(name)
    model = problem.model.replace(spec=dataclasses.replace(problem.model.spec, head=head))
    problem = dataclasses.replace(problem, model=model, artefacts={} if given is None else given(problem))
    with pytest.raises(ValueError, match=message):
        loop.check(spec, problem, spec.Config(**settings))


#: Where a method and its published code differ, by the ids of the specifications; the L2UL methods are in test_parity.
DEPARTURES = {
    "boundary-expand": ("BASE-5",),
    "boundary-shrink": (),
    "delete": (),
    "jit": tuple(f"JIT-{n}" for n in range(1, 6)),
    "mnemonic": tuple(f"MNEM-{n}" for n in range(1, 7)),
    "mu-mis": (),
    "pbu": tuple(f"PBU-{n}" for n in range(1, 7)),
    "pgu": tuple(f"PGU-{n}" for n in range(1, 7)),
    "prune": tuple(f"PRUNE-{n}" for n in range(1, 9)),
    "random-label": ("BASE-2",),
    "structguard": tuple(f"SG-{n}" for n in range(1, 5)),
}
#: An option whose default is the published behaviour.
AS_PUBLISHED = {("pbu", "forget_loss")}


@pytest.mark.parametrize("name", DEPARTURES)
def test_departures_are_in_the_docstring_and_published_takes_them_back(name):
    spec = methods.get(name)
    text = inspect.getdoc(inspect.getmodule(spec.make))
    ours, published = spec.Config(), spec.Config.published()
    fields = [field for field in dataclasses.fields(spec.Config) if field.metadata["deviation"]]
    for departure in {*DEPARTURES[name], *(field.metadata["deviation"] for field in fields)}:
        assert departure in text
    for field in fields:
        same = getattr(ours, field.name) == getattr(published, field.name)
        assert same == ((name, field.name) in AS_PUBLISHED), field.name
