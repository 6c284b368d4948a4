"""Projected gradient descent on the input (Madry et al. 2018), as the code of L2UL runs it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxunlearn import _progress, _repeat, _validate, losses
from jaxunlearn._types import ApplyFn, Array, Params

Norm: TypeAlias = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")
Scalar: TypeAlias = Array | float
Box: TypeAlias = tuple[Scalar, Scalar]


def pgd_start(norm: Norm, key: Array, x: Array, epsilon: Scalar, box: Box) -> Array:
    """Draw the starting perturbation of one instance.

    L2: a uniform point of the box, drawn back radially into the ball. Linf:
    uniform in the ball. Then the box. (advertorch, ``rand_init_delta``.)

    Args:
      norm: "l2" or "linf".
      key: one typed key.
      x: the instance, any shape, inside the box.
      epsilon: radius of the ball, in units of x.
      box: (low, high) of every input value.

    Returns:
      The perturbation d, shape of x.

    >>> float(jnp.linalg.norm(pgd_start("l2", jax.random.key(0), jnp.full(3, 0.5), 0.1, (0.0, 1.0)))) <= 0.1001
    True
    """
    low, high = box
    if norm == "linf":
        unit = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
        return _into_box(x, epsilon * unit, box)
    u = low + (high - low) * jax.random.uniform(key, x.shape, x.dtype)
    return _into_box(x, _into_ball(norm, u - x, epsilon), box)


def pgd_step(
    apply_fn: ApplyFn,
    norm: Norm,
    targeted: bool,
    params: Params,
    model_state: Params,
    x: Array,
    label: Array,
    d: Array,
    epsilon: Scalar,
    step_size: Scalar,
    box: Box,
) -> Array:
    """Take one step on one instance and return the new perturbation.

    Ascends minus the cross-entropy of the target (targeted) or the
    cross-entropy of the label. L2: along the gradient over its norm, then into
    the box, then into the ball. Linf: along its sign, then ball, then box.
    The network runs in eval mode; only the input is differentiated.

    Args:
      apply_fn: the seam.
      norm: "l2" or "linf".
      targeted: whether ``label`` is the class to reach, or to leave.
      params, model_state: of the network.
      x: one instance, without batch axis.
      label: int scalar.
      d: the present perturbation, shape of x.
      epsilon, step_size: in units of x.
      box: (low, high).
    """

    def objective(d: Array) -> Array:
        logits, _ = apply_fn(params, model_state, (x + d)[None], train=False)
        loss = losses.cross_entropy(logits, label[None])[0]
        return -loss if targeted else loss

    g = jax.grad(objective)(d)
    if norm == "linf":
        return _into_box(x, _into_ball(norm, d + step_size * jnp.sign(g), epsilon), box)
    d = d + step_size * g / jnp.maximum(_length(g), 1e-6)  # the guard of the published code
    return _into_ball(norm, _into_box(x, d, box), epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD:
    """An attack on one instance; pure, and equal settings compare and hash equal. See `pgd`."""

    apply_fn: ApplyFn
    norm: Norm = "l2"
    steps: int = 100
    targeted: bool = True
    random_start: bool = True
    loop: _repeat.Loop = "auto"

    def __post_init__(self) -> None:
        _validate.one_of("norm", self.norm, NORMS)
        _validate.positive_int("steps", self.steps)
        _validate.one_of("loop", self.loop, _repeat.LOOPS)

    def __call__(
        self,
        key: Array,
        params: Params,
        model_state: Params,
        x: Array,
        label: Array,
        *,
        epsilon: Scalar,
        step_size: Scalar | None = None,
        box: Box = (0.0, 1.0),
    ) -> Array:
        """Return the adversarial example of one instance.

        Args:
          key: one typed key, of the random start.
          params, model_state: of the network.
          x: one instance, without batch axis, float, inside the box.
          label: the target (targeted) or the true label, int scalar.
          epsilon: radius of the ball, at least 0, in units of x.
          step_size: length of a step, at least 0; may be left out, for
            epsilon, where there is one step.
          box: (low, high) of every input value.

        Returns:
          The last iterate, shape of x, whether or not it fools the network.

        Raises:
          ValueError, TypeError: for a label that is no scalar, a negative or
            non-finite radius or step, a box without inside.
        """
        x, label = jnp.asarray(x), jnp.asarray(label)
        if label.shape != ():
            raise ValueError(f"label must be a scalar, the attack is on one instance; got shape {label.shape}: vmap it")
        numbers = _numbers(self, x, epsilon, step_size, box)
        d = _repeat.call(_start, (self,), key, x, *numbers)
        consts = (params, model_state, x, label, *numbers)
        d = _repeat.repeat(_step, self.steps, d, *consts, statics=(self,), loop=self.loop)
        return _repeat.call(_finish, (), x, d, numbers[2])


def pgd(
    apply_fn: ApplyFn,
    *,
    norm: Norm = "l2",
    steps: int = 100,
    targeted: bool = True,
    random_start: bool = True,
    loop: _repeat.Loop = "auto",
) -> PGD:
    """Make a projected-gradient attack on one instance (Madry et al. 2018; L2UL's published code).

    The attack is to be vmapped: over keys, instances and labels, over
    epsilons, over models. Arguments here are static, those of the call are
    traced: one compilation serves any radius, step size, box and key.

    Args:
      apply_fn: the seam.
      norm: "l2" (normalised-gradient steps) or "linf" (sign steps).
      steps: number of steps, at least 1.
      targeted: whether the label is the class to reach, or to leave.
      random_start: whether to start from a random point (see `pgd_start`) or from x.
      loop: "auto", "host" or "device"; does not change the result.

    Raises:
      ValueError, TypeError: for an unknown norm or loop, or steps below 1.

    >>> linear = lambda params, state, x, *, train=False, rngs=None: (x @ params["w"], state)
    >>> attack = pgd(linear, steps=5)
    >>> params, x = {"w": jnp.eye(2)}, jnp.array([0.9, 0.1])
    >>> x_adv = attack(jax.random.key(0), params, {}, x, 1, epsilon=1.0, step_size=0.5)
    >>> bool(x_adv[1] > x_adv[0])
    True
    """
    return PGD(apply_fn=apply_fn, norm=norm, steps=steps, targeted=targeted, random_start=random_start, loop=loop)


def fgsm(apply_fn: ApplyFn, *, norm: Norm = "linf", targeted: bool = False) -> PGD:
    """Make the fast gradient sign method (Goodfellow et al. 2015): one step of length epsilon from x.

    >>> linear = lambda params, state, x, *, train=False, rngs=None: (x @ params["w"], state)
    >>> params, x = {"w": jnp.eye(2)}, jnp.array([0.75, 0.25])
    >>> fgsm(linear)(jax.random.key(0), params, {}, x, 0, epsilon=0.125).tolist()
    [0.625, 0.375]
    """
    return PGD(apply_fn=apply_fn, norm=norm, steps=1, targeted=targeted, random_start=False)


def attack_batch(
    attack: PGD,
    keys: Array,
    params: Params,
    model_state: Params,
    x: Array,
    label: Array,
    *,
    epsilon: Scalar,
    step_size: Scalar | None = None,
    box: Box = (0.0, 1.0),
    microbatch_size: int = 64,
    loop: _repeat.Loop | None = None,
    progress: str | None = None,
) -> Array:
    """Attack many instances, in microbatches; equal to the vmapped attack.

    Args:
      attack: from `pgd` or `fgsm`.
      keys: (n,) typed keys, one an instance.
      params, model_state: of the network, shared.
      x: (n, *input_shape), inside the box.
      label: (n,), int.
      epsilon, step_size, box: shared scalars, as in `PGD`.
      microbatch_size: instances at a time; does not change the result.
      loop: None is the attack's own.
      progress: what progress is reported as, in steps, if at all.

    Returns:
      Adversarial examples, (n, *input_shape).

    Raises:
      ValueError, TypeError: for arrays of different lengths or none, and as `PGD`.
    """
    x, label = jnp.asarray(x), jnp.asarray(label)
    _validate.same_length("the attack's arguments", {"keys": keys, "x": x, "label": label})
    numbers = _numbers(attack, x, epsilon, step_size, box)
    xs = (keys, x, label)
    traced = _repeat.is_traced(xs, params, model_state, numbers)
    on_host = _repeat.on_host(xs, params, model_state, numbers, loop=attack.loop if loop is None else loop)
    n = _repeat.rows(xs)
    chunks = _repeat.split(xs, _repeat.chunk_size(n, microbatch_size))
    if traced:
        return _repeat.join(
            jax.lax.map(lambda chunk: _on_device(attack, chunk, params, model_state, *numbers), chunks), n
        )
    count, out = chunks[1].shape[0], []
    for c in range(count):  # stepped from the host around device loops too: progress and Ctrl-C
        chunk, done, total = _repeat.pick(chunks, c), c * attack.steps, count * attack.steps
        if on_host:
            d = _repeat.call(_start_many, (attack,), chunk[0], chunk[1], *numbers)
            consts = (params, model_state, *chunk[1:], *numbers)
            statics, told = (attack,), {"label": progress, "done": done, "total": total}
            d = _repeat.repeat(_step_many, attack.steps, d, *consts, statics=statics, loop="host", **told)
            out.append(_repeat.call(_finish, (), chunk[1], d, numbers[2]))
        else:
            out.append(_repeat.call(_on_device, (attack,), chunk, params, model_state, *numbers))
            if progress is not None:
                jax.block_until_ready(out[-1])
                _progress.report(progress, done + attack.steps, total)
    return _repeat.join(jnp.stack(out), n)


def _numbers(
    attack: PGD, x: Array, epsilon: Scalar, step_size: Scalar | None, box: Box
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Check the scalars of a call and return them in the dtype of x."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating point; got {x.dtype}")
    if step_size is None:
        if attack.steps > 1:
            raise ValueError(f"step_size may be left out only for one step; this attack takes {attack.steps}")
        step_size = epsilon
    _validate.in_range("epsilon", epsilon, 0.0)
    _validate.in_range("step_size", step_size, 0.0)
    low, high = box
    _validate.in_range("box[0]", low)
    _validate.in_range("box[1]", high)
    if not _repeat.is_traced(low, high) and not low < high:
        raise ValueError(f"box must be (low, high) with low < high; got ({low}, {high})")
    for name, value in {"epsilon": epsilon, "step_size": step_size, "box[0]": low, "box[1]": high}.items():
        if jnp.shape(value) != ():
            raise ValueError(f"{name} must be a scalar; got shape {jnp.shape(value)}: vmap the attack over it")
    return jnp.asarray(epsilon, x.dtype), jnp.asarray(step_size, x.dtype), tuple(jnp.asarray(b, x.dtype) for b in box)  # type: ignore[return-value]


def _start(attack: PGD, key: Array, x: Array, epsilon: Array, step_size: Array, box: Box) -> Array:
    return pgd_start(attack.norm, key, x, epsilon, box) if attack.random_start else jnp.zeros_like(x)


def _step(
    attack: PGD,
    i: Array,
    d: Array,
    params: Params,
    model_state: Params,
    x: Array,
    label: Array,
    epsilon: Array,
    step_size: Array,
    box: Box,
) -> Array:
    return pgd_step(
        attack.apply_fn, attack.norm, attack.targeted, params, model_state, x, label, d, epsilon, step_size, box
    )


def _finish(x: Array, d: Array, box: Box) -> Array:
    return jnp.clip(x + d, box[0], box[1])


def _start_many(attack: PGD, keys: Array, x: Array, *numbers: Any) -> Array:
    return jax.vmap(lambda key, x: _start(attack, key, x, *numbers))(keys, x)


def _step_many(
    attack: PGD, i: Array, d: Array, params: Params, model_state: Params, x: Array, label: Array, *numbers: Any
) -> Array:
    def one(d: Array, x: Array, label: Array) -> Array:
        return _step(attack, i, d, params, model_state, x, label, *numbers)

    return jax.vmap(one)(d, x, label)


def _on_device(
    attack: PGD, chunk: tuple[Array, Array, Array], params: Params, model_state: Params, *numbers: Any
) -> Array:
    keys, x, label = chunk
    d = _start_many(attack, keys, x, *numbers)
    consts = (params, model_state, x, label, *numbers)
    d = _repeat.repeat(_step_many, attack.steps, d, *consts, statics=(attack,), loop="device")
    return _finish(x, d, numbers[2])


def _length(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(v * v))


def _into_ball(norm: Norm, d: Array, epsilon: Scalar) -> Array:
    if norm == "linf":
        return jnp.clip(d, -epsilon, epsilon)
    length = _length(d)
    return d * jnp.minimum(epsilon / jnp.where(length > 0, length, 1.0), 1.0)  # 0 / 0 at epsilon = d = 0


def _into_box(x: Array, d: Array, box: Box) -> Array:
    return jnp.clip(x + d, box[0], box[1]) - x
