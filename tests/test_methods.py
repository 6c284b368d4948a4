"""The contract of `jaxunlearn.testing`, over every method of the registry."""

from __future__ import annotations

import dataclasses

import pytest

from jaxunlearn import methods, testing


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", methods.names())
def test_contract(name, check):
    spec = methods.get(name)
    check(spec, testing.problem_maker(spec))


def test_unknown_method_names_close_ones():
    with pytest.raises(ValueError, match="unknown method 'adv-impp'; did you mean 'adv-imp'"):
        methods.get("adv-impp")


def test_check_method_names_the_check_that_failed():
    broken = dataclasses.replace(methods.get("neggrad"), summary="")
    with pytest.raises(AssertionError, match="neggrad: declares_itself"):
        testing.check_method(broken)
