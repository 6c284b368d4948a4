"""The one-shot edit of the mnemonic code: sensitive parameters move, all one way (Yamashita et al. 2024).

With g the gradient of the cross-entropy of one example, squares by element::

    F_f = (1e-16 + sum over what is forgotten of g^2) / its number,   F_r the same of the rest
    rho = F_f / F_r,   delta = min(lambda1, lambda2 / max rho) * rho           for each tensor
    theta0 + delta or theta0 - delta, whichever forgets more and keeps more

rho spans dozens of decades, so it is made in float64 on the host, from logarithms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, _repeat, _tree, curvature, inference, losses
from jaxunlearn._ahead import ahead
from jaxunlearn._config import BaseConfig, hparam
from jaxunlearn._types import ApplyFn, Array, Model, Params, PyTree
from jaxunlearn.curvature.jacobian import microbatches

#: Floor of the sums of squares (published).
FLOOR = 1e-16
#: Between two values of lambda1 that are tried.
RATIO = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditConfig(BaseConfig):
    """Hyper-parameters of the edit."""

    lambda1: float = hparam(
        1e-5, "change of a parameter that matters as much to both sides", traced=True, unit="weights", low=0.0
    )
    lambda2: float = hparam(1e4, "largest change of any parameter", traced=True, unit="weights", low=0.0)


class Examples(NamedTuple):
    """Images and labels, (n, *input_shape) and (n,)."""

    x: np.ndarray
    y: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What the edit gives.

    Attributes:
      model: the edited network.
      scores: ``(1 - accuracy on what is forgotten) + accuracy on the rest`` of plus and of minus.
      lambda1: what the edit was made with.
    """

    model: Model
    scores: np.ndarray
    lambda1: float


def edit(
    model: Model, forget: Examples, rest: Examples, hparams: Mapping[str, Array], *, label: str, tries: int = 1
) -> State:
    """Return the network after the edit; running statistics stay.

    Args:
      model: before.
      forget, rest: what stands for what is forgotten and for what is kept.
      hparams: lambda1, lambda2.
      label: what progress is reported as.
      tries: values of lambda1, each `RATIO` times the last, the given one first; of the best score the smallest.
    """
    sums = [squared_gradients(model, examples, label=label) for examples in (forget, rest)]
    numbers = len(forget.y), len(rest.y)
    leaves = curvature.take(model.params, tuple(sums[0]))
    best: State | None = None
    for n in range(tries):
        lambdas = float(hparams["lambda1"]) * RATIO**n, float(hparams["lambda2"])
        deltas = {path: perturbation(sums[0][path], sums[1][path], numbers, *lambdas) for path in sums[0]}
        chosen, scores = model, []
        for sign in (1, -1):
            moved = {path: _moved(leaves[path], sign * deltas[path]) for path in deltas}
            edited = model.replace(params=curvature.put(model.params, moved))
            answers = [inference.logits(edited, x, label=label) for x, _ in (forget, rest)]
            right = [np.mean(of.argmax(axis=1) == y) for of, (_, y) in zip(answers, (forget, rest), strict=True)]
            usable = all(np.isfinite(of).all() for of in answers)  # else no answer would count as forgotten
            scores.append((1 - right[0]) + right[1] if usable else 0.0)
            if sign == 1 or scores[1] >= scores[0]:  # a tie goes to minus
                chosen = edited
        if best is None or max(scores) > best.scores.max():
            best = State(model=chosen, scores=np.array(scores), lambda1=lambdas[0])
    assert best is not None
    return best


def perturbation(
    forget: np.ndarray, rest: np.ndarray, numbers: tuple[int, int], lambda1: float, lambda2: float
) -> np.ndarray:
    """Return delta of one tensor, at least 0 and at most lambda2, float64.

    Args:
      forget, rest: sums of squared gradients.
      numbers: how many gradients were summed.
      lambda1: delta where rho is 1, unless lambda2 binds.
      lambda2: at most.

    >>> perturbation(np.array([4.0, 0.0]), np.array([1.0, 0.0]), (1, 9), 1e-2, 1.0).round(4).tolist()
    [0.36, 0.09]
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        r = np.log((FLOOR + forget) / numbers[0]) - np.log((FLOOR + rest) / numbers[1])
    r = np.where(np.isnan(r), 0.0, r)
    finite = r[np.isfinite(r)]
    r = np.where(np.isposinf(r), finite.max() if finite.size else 0.0, r)  # minus infinity stays: rho is 0 there
    largest = r.max(initial=-np.inf)
    if lambda1 == 0 or lambda2 == 0 or largest == -np.inf:
        return np.zeros_like(r)
    return np.exp(min(np.log(lambda1), np.log(lambda2) - largest) + r)


def squared_gradients(model: Model, examples: Examples, *, label: str) -> dict[str, np.ndarray]:
    """Return the sum over examples of the squared gradient of the cross-entropy, float64 by path of every parameter.

    Memory: the gradients of a microbatch (on CPU of a few), and two numbers a parameter on the host.
    """
    leaves = _tree.flatten_paths(model.params)
    paths = tuple(path for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating))
    total = {path: np.zeros(leaves[path].shape) for path in paths}
    size = 4 if jax.default_backend() == "cpu" else 16

    def of(chunk: tuple[int, int, PyTree]) -> tuple[int, dict[str, np.ndarray]]:
        start, stop, rows = chunk
        grads = _repeat.call(_gradients, (model.apply_fn, paths), model.params, model.model_state, rows)
        squares = (np.square(np.asarray(grad[: stop - start], np.float64)) for grad in grads.values())
        return stop, {path: square.sum(axis=0) for path, square in zip(grads, squares, strict=True)}

    for stop, sums in ahead(of, microbatches(tuple(examples), size)):
        for path, value in sums.items():
            total[path] += value
        _progress.report(label, stop, len(examples.y))
    return total


def _gradients(
    apply_fn: ApplyFn, paths: tuple[str, ...], params: Params, model_state: Params, chunk: PyTree
) -> dict[str, Array]:
    def fn(params: Params, model_state: Params, example: tuple[Array, Array]) -> Array:
        x, y = example
        logits = apply_fn(params, model_state, x[None], train=False)[0]
        return losses.cross_entropy(logits, y[None])[0]

    return curvature.per_example_grad(fn, paths)(params, model_state, chunk)


def _moved(leaf: Array, delta: np.ndarray) -> Array:
    with np.errstate(over="ignore"):  # such an edit is not taken, see `edit`
        return jnp.asarray((np.asarray(leaf, np.float64) + delta).astype(leaf.dtype))
