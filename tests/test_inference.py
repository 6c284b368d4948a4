"""Logits in batches of one size: any number of rows, from arrays or from sources that are read piecewise."""

from __future__ import annotations

import weakref

import jax
import numpy as np
import pytest

from jaxunlearn import _ahead, _progress, inference
from jaxunlearn._types import Model, ModelSpec
from tests.tiny import Counting, linear, linear_params


class Lazy:
    """Images on a disk, as it were: only slices become arrays."""

    def __init__(self, x):
        self.x, self.reads = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.reads.append((rows.start, min(rows.stop, len(self.x))))
        return self.x[rows]


def model_of(apply_fn=linear):
    spec = ModelSpec(num_classes=3, input_shape=(2, 2, 1))
    return Model(params=linear_params(jax.random.key(0), 4, 3), model_state={}, apply_fn=apply_fn, spec=spec)


def images(n):
    return np.random.default_rng(n).uniform(size=(n, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [None, 1, 4, 8])
@pytest.mark.parametrize("n", [1, 3, 4, 8, 30])
def test_logits_of_a_lazy_source(n, batch_size):
    model, source = model_of(), Lazy(images(n))
    logits = inference.logits(model, source, batch_size=batch_size)
    expected = source.x.reshape(n, -1) @ np.asarray(model.params["w"]) + np.asarray(model.params["b"])
    assert isinstance(logits, np.ndarray)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    size = batch_size or (25 if jax.default_backend() == "cpu" else 250)
    assert source.reads == [(start, min(start + size, n)) for start in range(0, n, size)]  # each row once, in order


@pytest.mark.parametrize("n", [0, 1, 30])
def test_predictions_are_the_largest_logits(n):
    model, source = model_of(), Lazy(images(n))
    if n:
        source.x[0] = np.nan
    given = inference.predictions(model, source, batch_size=4)
    logits = inference.logits(model, source.x, batch_size=4)
    np.testing.assert_array_equal(given, np.where(np.arange(n) > 0, logits.argmax(axis=1), -1))
    assert given.dtype == np.int32


@pytest.mark.parametrize(("measure", "ndim"), [(inference.logits, 2), (inference.predictions, 1)])
def test_answers_of_a_batch_are_let_go_before_the_next_but_one(measure, ndim, monkeypatch):
    answers, left = [], []

    def watched(fn, items):
        for answer in _ahead.ahead(fn, items):
            answers.append(weakref.ref(answer))
            left.append(sum(ref() is not None for ref in answers))
            assert answer.ndim == ndim
            yield answer

    monkeypatch.setattr(inference, "ahead", watched)
    assert len(measure(model_of(), images(40), batch_size=4)) == 40
    assert left == [1] + [2] * 9  # this one, and the one whose name in the caller is not yet of this one


def test_logits_of_nothing():
    seen = []
    with _progress.listening(lambda *told: seen.append(told)):
        logits = inference.logits(model_of(), Lazy(images(0)))
    assert logits.shape == (0, 3)
    assert logits.dtype == np.float32
    assert seen == []


def test_logits_report_rows_and_compile_once_for_any_number():
    counting, seen = Counting(linear), []
    with _progress.listening(lambda *told: seen.append(told)):
        for n in (10, 4, 11):
            inference.logits(model_of(counting), images(n), batch_size=4, label="images")
    assert [done for _, done, _ in seen] == [4, 8, 10, 4, 4, 8, 11]
    assert seen[2] == ("images", 10, 10)
    assert counting.traces == 1
