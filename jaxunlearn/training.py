"""Functional training: oracles, shadow models and demo networks, many at once where that pays.

An instance of weight 0 is *not in the training set*: it is never drawn, so it
touches neither a gradient nor a BatchNorm statistic. One array of inputs and a
matrix of weights therefore trains a whole family of leave-out models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _journal, _progress, _validate, losses
from jaxunlearn._types import ApplyFn, Array, Model, Params, PyTree

Augment = Callable[[Array, Array], Array]
Loop = Literal["auto", "device", "host"]
#: ``callback(epochs)``: the history of each epoch so far, by name, (steps of an epoch,).
Callback = Callable[[Sequence[Mapping[str, np.ndarray]]], None]


class TrainResult(NamedTuple):
    """What training returns.

    Attributes:
      model: the trained classifier; from `train_many` every array has a leading lane axis.
      history: ``loss``, ``accuracy`` (of the step's own batch, in train mode) and
        ``learning_rate`` per step, (steps,) or (lanes, steps), NumPy.
    """

    model: Model
    history: Mapping[str, np.ndarray]


class _Plan(NamedTuple):
    """What selects compiled code; equal plans share one compilation."""

    apply_fn: ApplyFn
    batch_size: int
    steps_per_epoch: int
    epochs: int
    schedule: str
    augment: Augment | None
    vmapped: bool


class _State(NamedTuple):
    params: Params
    model_state: Params
    opt_state: PyTree


_Stepped = tuple[_State, dict[str, Array]]


class _Codes(NamedTuple):
    """A code for each class, (C, *input_shape), and how often it takes the place of an image."""

    images: Array
    mix: Array


class _Sgd(NamedTuple):
    """Traced, so that a sweep over them compiles once."""

    learning_rate: Array
    momentum: Array
    weight_decay: Array

    def transformation(self) -> optax.GradientTransformation:
        """SGD as PyTorch defines it: weight decay before momentum; the rate is applied by the step."""
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.trace(self.momentum))


class _Given(NamedTuple):
    """What every step reads."""

    x: Array
    y: Array
    weight: Array
    sgd: _Sgd
    codes: _Codes | None


def train(
    model: Model,
    key: Array,
    x: Any,
    y: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    sample_weight: Any = None,
    augment: Augment | None = None,
    codes: Any = None,
    mix: float | None = None,
    loop: Loop = "auto",
    callback: Callback = lambda epochs: None,
) -> TrainResult:
    """Train a classifier with SGD on cross-entropy, from the weights it has.

    Each epoch walks one random order of the members (weight above 0); the last
    batch is filled up from the start of that order, so every batch is full and
    BatchNorm, in train mode, sees members only. Deterministic in the key.

    Args:
      model: where to start; see `initialise` for fresh weights.
      key: typed key of the order, of augmentation and of dropout.
      x: (n, *input_shape), inside the model's box.
      y: (n,) int labels.
      epochs: passes over the members.
      batch_size: rows a step; cut to the number of members.
      learning_rate: of the first step.
      momentum: in [0, 1).
      weight_decay: L2 coefficient on every parameter, before momentum (as in PyTorch).
      schedule: "cosine" to 0 over all steps, or "constant".
      sample_weight: (n,) at least 0; 0 leaves the instance out, other values weigh its loss.
      augment: ``augment(key, x_batch) -> x_batch``, pure.
      codes: an image for each class, (C, *input_shape), see `jaxunlearn.proxies.draw_codes`.
      mix: how often the code of its class takes the place of an image, whole and after augmentation, in
        [0, 1]; drawn by epoch and instance, see `replaced` (Yamashita et al. 2024).
      loop: "host" steps from the host, "device" scans an epoch at a time; "auto" picks
        host on CPU, where convolutions inside a device loop are several times slower.
      callback: called after each epoch, and first where training goes on from a kept state, with the history so
        far, one item an epoch.

    Raises:
      ValueError, TypeError: for an argument out of range, before any work.
      FloatingPointError: when the loss becomes NaN or infinite; names the step.

    >>> def linear(params, state, x, *, train=False, rngs=None):
    ...     return x @ params["w"], state
    >>> from jaxunlearn._types import ModelSpec
    >>> start = Model(params={"w": jnp.zeros((2, 2))}, model_state={}, apply_fn=linear,
    ...               spec=ModelSpec(num_classes=2, input_shape=(2,)))
    >>> x, y = jnp.eye(2), jnp.array([0, 1])
    >>> done = train(start, jax.random.key(0), x, y, epochs=20, batch_size=2, learning_rate=1.0)
    >>> jnp.argmax(done.model(x), axis=1).tolist(), done.history["loss"].shape
    ([0, 1], (20,))
    """
    x, y, weight = _checked_data(model, x, y, sample_weight, lanes=None)
    sgd = _checked_sgd(learning_rate, momentum, weight_decay)
    plan = _plan(model, weight[None], epochs, batch_size, schedule, augment, False)
    given = _Given(x, y, jnp.asarray(weight), sgd, _checked_codes(model, codes, mix))
    return _run(plan, model, key, given, loop, callback)


def train_many(
    model: Model,
    keys: Array,
    x: Any,
    y: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    sample_weight: Any = None,
    augment: Augment | None = None,
    fresh: bool = True,
    vmapped: bool | None = None,
    loop: Loop = "auto",
) -> TrainResult:
    """Train one classifier per key on the same inputs, each with its own sample weights.

    Lane i is what `train` gives for ``keys[i]`` and row i of the weights, up to
    rounding (and, where the rows leave different numbers of members, with the
    steps per epoch of the largest).

    Args:
      keys: (lanes,) typed keys.
      sample_weight: (lanes, n), or (n,) for all lanes, or None for ones.
      fresh: start lane i from ``model.spec.init_fn``; False: from the model's weights.
      vmapped: run lanes side by side; None does so except on CPU, where the
        grouped convolutions of a vmapped backward pass are slower than taking turns.

    The other arguments, and what is raised, are `train`'s.
    """
    if jnp.ndim(keys) != 1 or keys.shape[0] == 0:
        raise ValueError(f"keys must be a (lanes,) array of typed keys; got shape {jnp.shape(keys)}")
    lanes = keys.shape[0]
    x, y, weight = _checked_data(model, x, y, sample_weight, lanes=lanes)
    sgd = _checked_sgd(learning_rate, momentum, weight_decay)
    if vmapped is None:
        vmapped = jax.default_backend() != "cpu"
    plan = _plan(model, weight, epochs, batch_size, schedule, augment, vmapped)
    starts = [initialise(model, k) if fresh else model for k in keys]
    if vmapped:
        start = jax.tree.map(lambda *a: jnp.stack(a), *starts)
        return _run(plan, start, keys, _Given(x, y, jnp.asarray(weight), sgd, None), loop)
    lanes_of = zip(starts, keys, weight, strict=True)
    runs = [_run(plan, m, k, _Given(x, y, jnp.asarray(w), sgd, None), loop) for m, k, w in lanes_of]
    history = {name: np.stack([r.history[name] for r in runs]) for name in runs[0].history}
    return TrainResult(jax.tree.map(lambda *a: jnp.stack(a), *(r.model for r in runs)), history)


def initialise(model: Model, key: Array) -> Model:
    """Return the model with fresh weights from its ``spec.init_fn``; ValueError where it has none."""
    if model.spec.init_fn is None:
        raise ValueError("model.spec.init_fn is None: fresh weights need a model that knows how to initialise itself")
    params, model_state = model.spec.init_fn(jax.random.fold_in(key, 0))
    return model.replace(params=params, model_state=model_state)


def epoch_order(key: Array, epoch: Array | int, weight: Array) -> Array:
    """Return the order in which an epoch walks the instances: members first, shuffled.

    Args:
      key: the run's key.
      epoch: from 0.
      weight: (n,); instances of weight 0 come last and are never reached.
    """
    draw = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), weight.shape)
    return jnp.argsort(jnp.where(weight > 0, draw, 2.0))


def replaced(key: Array, epoch: Array | int, rows: Array, mix: Array | float) -> Array:
    """Return whether the code of its class takes an instance's place in an epoch, (len(rows),) bool.

    Args:
      key: the run's key.
      epoch: from 0.
      rows: (m,) instances; the draw of each depends on its row, not on the batch.
      mix: how often.

    >>> bool(replaced(jax.random.key(0), 3, jnp.arange(5), 1.0).all())
    True
    """
    of_epoch = jax.random.fold_in(jax.random.fold_in(key, 3), epoch)
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(of_epoch, row)))(rows) < mix


def _step(plan: _Plan, state: _State, key: Array, order: Array, i: Array, given: _Given) -> _Stepped:
    """Take step i (from 0, over all epochs) on its slice of the epoch's order."""
    x, y, weight, sgd, codes = given
    members = jnp.sum(weight > 0, dtype=jnp.int32)
    position = (i % plan.steps_per_epoch) * plan.batch_size + jnp.arange(plan.batch_size)
    rows = order[position % members]
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 2), i))
    inputs = x[rows] if plan.augment is None else plan.augment(augment_key, x[rows])
    label, w = y[rows], weight[rows]
    if codes is not None:
        coded = replaced(key, i // plan.steps_per_epoch, rows, codes.mix).reshape(-1, *(1,) * (x.ndim - 1))
        inputs = jnp.where(coded, codes.images[label].astype(inputs.dtype), inputs)

    def loss_fn(params: Params) -> tuple[Array, tuple[Array, Params]]:
        logits, new = plan.apply_fn(params, state.model_state, inputs, train=True, rngs={"dropout": dropout_key})
        return jnp.sum(w * losses.cross_entropy(logits, label)) / jnp.sum(w), (logits, new)

    (loss, (logits, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    rate = sgd.learning_rate
    if plan.schedule == "cosine":
        rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * i / (plan.steps_per_epoch * plan.epochs)))
    updates, opt_state = sgd.transformation().update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), state.params, updates)
    right = jnp.mean((jnp.argmax(logits, axis=-1) == label).astype(jnp.float32))
    return _State(params, model_state, opt_state), {"loss": loss, "accuracy": right, "learning_rate": rate}


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _host_step(plan: _Plan, state: _State, key: Array, order: Array, i: Array, given: _Given) -> _Stepped:
    return _laned(plan, partial(_step, plan))(state, key, order, i, given)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _device_epoch(plan: _Plan, state: _State, key: Array, order: Array, first: Array, given: _Given) -> _Stepped:
    step = _laned(plan, partial(_step, plan))
    steps = first + jnp.arange(plan.steps_per_epoch)
    return jax.lax.scan(lambda state, i: step(state, key, order, i, given), state, steps)


@partial(jax.jit, static_argnums=0)
def _order(plan: _Plan, key: Array, epoch: Array, weight: Array) -> Array:
    return (jax.vmap(epoch_order, (0, None, 0)) if plan.vmapped else epoch_order)(key, epoch, weight)


def _laned(plan: _Plan, step: Callable[..., Any]) -> Callable[..., Any]:
    given: Any = _Given(*cast(Any, (None, None, 0, None, None)))  # each lane has its own sample weights
    return jax.vmap(step, (0, 0, 0, None, given)) if plan.vmapped else step


def _run(
    plan: _Plan, model: Model, key: Array, given: _Given, loop: Loop, tell: Callback = lambda epochs: None
) -> TrainResult:
    _validate.one_of("loop", loop, ("auto", "device", "host"))
    host = loop == "host" or (loop == "auto" and jax.default_backend() == "cpu")
    init = given.sgd.transformation().init
    # Steps donate their state, so it must not be the caller's buffers; a stated dtype is never weak, which
    # would retrace the second step.
    params, model_state = jax.tree.map(
        lambda a: jnp.array(a, dtype=jnp.result_type(a), copy=True), (model.params, model.model_state)
    )
    state = _State(params, model_state, (jax.vmap(init) if plan.vmapped else init)(params))
    steps = plan.steps_per_epoch * plan.epochs
    with _journal.work("training") as work:
        done, state, infos = work.resume(state)
        if infos:
            tell(infos)
        for epoch in range(done, plan.epochs):
            order, first = _order(plan, key, epoch, given.weight), epoch * plan.steps_per_epoch
            if host:
                state, stacked = _host_epoch(plan, state, key, order, first, given)
            else:
                state, info = _device_epoch(plan, state, key, order, first, given)
                stacked = {name: np.asarray(value) for name, value in info.items()}
                _progress.report("training", first + plan.steps_per_epoch, steps)
            _require_finite(stacked["loss"], first, steps, float(given.sgd.learning_rate))
            infos.append(stacked)
            tell(infos)
            work.keep(epoch + 1, state, infos)
    # Lanes lead: (steps, lanes) -> (lanes, steps).
    history = {name: np.concatenate([info[name] for info in infos]).T for name in infos[0]}
    return TrainResult(model.replace(params=state.params, model_state=state.model_state), history)


def _host_epoch(plan: _Plan, state: _State, key: Array, order: Array, first: int, given: _Given) -> tuple[_State, Any]:
    with _journal.work("epoch") as work:
        done, state, each = work.resume(state)
        for i in range(first + done, first + plan.steps_per_epoch):
            state, info = _host_step(plan, state, key, order, i, given)
            each.append(info)
            _progress.report("training", i + 1, plan.steps_per_epoch * plan.epochs)
            work.keep(i + 1 - first, state, each)
    return state, {name: np.stack([np.asarray(info[name]) for info in each]) for name in each[0]}


def _require_finite(loss: np.ndarray, first: int, steps: int, learning_rate: float) -> None:
    bad = ~np.isfinite(loss)
    if not bad.any():
        return
    step = int(bad.reshape(len(loss), -1).any(axis=1).argmax())
    lanes = "" if loss.ndim == 1 else f" in lane {int(bad[step].argmax())}"
    raise FloatingPointError(
        f"training diverged{lanes}: the loss is {loss[bad].flat[0]} at step {first + step + 1} of {steps};"
        f" lower learning_rate (it is {learning_rate:g})"
    )


def _plan(
    model: Model, weight: np.ndarray, epochs: int, size: int, schedule: str, augment: Augment | None, vmapped: bool
) -> _Plan:
    _validate.positive_int("epochs", epochs)
    _validate.positive_int("batch_size", size)
    _validate.one_of("schedule", schedule, ("cosine", "constant"))
    members = int((weight > 0).sum(axis=1).max())
    batch_size = min(size, members)
    return _Plan(model.apply_fn, batch_size, -(-members // batch_size), epochs, schedule, augment, vmapped)


def _checked_sgd(learning_rate: float, momentum: float, weight_decay: float) -> _Sgd:
    _validate.in_range("learning_rate", learning_rate, 0.0)
    _validate.in_range("momentum", momentum, 0.0, 1.0)
    _validate.in_range("weight_decay", weight_decay, 0.0)
    return _Sgd(*(jnp.asarray(v, jnp.float32) for v in (learning_rate, momentum, weight_decay)))


def _checked_data(
    model: Model, x: Any, y: Any, sample_weight: Any, lanes: int | None
) -> tuple[Array, Array, np.ndarray]:
    _validate.inputs("x", x, model.spec)
    _validate.labels("y", y, model.spec.num_classes)
    _validate.same_length("training data", {"x": x, "y": y})
    n = np.shape(x)[0]
    if n == 0:
        raise ValueError("x is empty: there is nothing to train on")
    shape = (n,) if lanes is None else (lanes, n)
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight)
    if weight.shape not in (shape, (n,)):
        raise ValueError(f"sample_weight must have shape {shape}; got {weight.shape}")
    _validate.in_range("sample_weight", weight, 0.0)
    weight = np.broadcast_to(weight, shape).astype(np.float32)
    empty = ~(weight > 0).reshape(-1, n).any(axis=1)
    if empty.any():
        row = "" if lanes is None else f" in lane {int(empty.argmax())}"
        raise ValueError(f"sample_weight is 0 for every instance{row}: there is nothing to train on")
    return jnp.asarray(x), jnp.asarray(np.asarray(y), dtype=jnp.int32), weight


def _checked_codes(model: Model, codes: Any, mix: float | None) -> _Codes | None:
    if codes is None and mix is None:
        return None
    if codes is None or mix is None:
        raise ValueError(f"codes and mix go together; got {'no codes' if codes is None else 'no mix'}")
    _validate.inputs("codes", codes, model.spec)
    if len(codes) != model.spec.num_classes:
        raise ValueError(f"codes must be one a class, {model.spec.num_classes}; got {len(codes)}")
    _validate.in_range("mix", mix, 0.0, 1.0)
    return _Codes(jnp.asarray(codes), jnp.asarray(mix, jnp.float32))
