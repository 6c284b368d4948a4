"""Projected gradient descent on the input (Madry et al. 2018), as the code of L2UL runs it."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _repeat, _validate, losses
from jaxunlearn._types import ApplyFn, Array, Params

Norm: TypeAlias = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")
Scalar: TypeAlias = Array | float
Box: TypeAlias = tuple[Scalar, Scalar]


class Limits(NamedTuple):
    """The traced scalars of an attack, in units of x; made by `PGD.limits`.

    Attributes:
      epsilon: radius of the ball around the instance.
      step_size: length of a step.
      low, high: range of every input value.
    """

    epsilon: Array
    step_size: Array
    low: Array
    high: Array


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
          ValueError, TypeError: for a label that is no scalar, integer x, a
            negative or non-finite radius or step, an empty box.
        """
        x, label = jnp.asarray(x), jnp.asarray(label)
        if label.shape != ():
            raise ValueError(f"label must be a scalar, the attack is on one instance; got shape {label.shape}: vmap it")
        limits = self.limits(x, epsilon=epsilon, step_size=step_size, box=box)
        d = _repeat.call(PGD.start, (self,), key, x, limits)
        consts = (params, model_state, x, label, limits)
        d = _repeat.repeat(_step, self.steps, d, *consts, statics=(self,), loop=self.loop)
        return _repeat.call(PGD.finish, (self,), x, d, limits)

    def limits(self, x: Array, *, epsilon: Scalar, step_size: Scalar | None = None, box: Box = (0.0, 1.0)) -> Limits:
        """Check the scalars of a call, as ``__call__`` says, and return them in the dtype of x."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must be floating point; got {x.dtype}")
        if step_size is None:
            if self.steps > 1:
                raise ValueError(f"step_size may be left out only for one step; this attack takes {self.steps}")
            step_size = epsilon
        _validate.in_range("epsilon", epsilon, 0.0)
        _validate.in_range("step_size", step_size, 0.0)
        low, high = box
        if not _repeat.is_traced(low, high) and not (np.isfinite(np.asarray([low, high])).all() and low < high):
            raise ValueError(f"box must be finite (low, high) with low < high; got ({low}, {high})")
        for name, value in {"epsilon": epsilon, "step_size": step_size, "box[0]": low, "box[1]": high}.items():
            if jnp.shape(value) != ():
                raise ValueError(f"{name} must be a scalar; got shape {jnp.shape(value)}: vmap the attack over it")
        return Limits(*(jnp.asarray(value, x.dtype) for value in (epsilon, step_size, low, high)))

    def start(self, key: Array, x: Array, limits: Limits) -> Array:
        """Return the starting perturbation d of one instance, shape of x.

        L2: from a uniform point of the box, drawn back radially into the ball.
        Linf: uniform in the ball. Then into the box. (Published code:
        advertorch.) Zero without a random start.
        """
        if not self.random_start:
            return jnp.zeros_like(x)
        if self.norm == "linf":
            unit = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
            return _into_box(x, limits.epsilon * unit, limits)
        u = limits.low + (limits.high - limits.low) * jax.random.uniform(key, x.shape, x.dtype)
        return _into_box(x, self._into_ball(u - x, limits), limits)

    def step(self, params: Params, model_state: Params, x: Array, label: Array, d: Array, limits: Limits) -> Array:
        """Take one step on one instance and return the new perturbation.

        Ascends minus the cross-entropy of the target (targeted) or the
        cross-entropy of the label. L2: along the gradient over its norm, then
        into the box, then into the ball. Linf: along its sign, then ball, then
        box. The network is in eval mode; only the input is differentiated.
        """

        def objective(d: Array) -> Array:
            logits, _ = self.apply_fn(params, model_state, (x + d)[None], train=False)
            loss = losses.cross_entropy(logits, label[None])[0]
            return -loss if self.targeted else loss

        g = jax.grad(objective)(d)
        if self.norm == "linf":
            return _into_box(x, self._into_ball(d + limits.step_size * jnp.sign(g), limits), limits)
        d = d + limits.step_size * g / jnp.maximum(_length(g), 1e-6)  # the guard of the published code
        return self._into_ball(_into_box(x, d, limits), limits)

    def finish(self, x: Array, d: Array, limits: Limits) -> Array:
        """Return the perturbed input, clipped to the box."""
        return jnp.clip(x + d, limits.low, limits.high)

    def _into_ball(self, d: Array, limits: Limits) -> Array:
        if self.norm == "linf":
            return jnp.clip(d, -limits.epsilon, limits.epsilon)
        length = _length(d)
        return d * jnp.minimum(limits.epsilon / jnp.where(length > 0, length, 1.0), 1.0)  # epsilon = d = 0


def _step(
    attack: PGD, i: Array, d: Array, params: Params, model_state: Params, x: Array, label: Array, limits: Limits
) -> Array:
    return attack.step(params, model_state, x, label, d, limits)


def _length(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(v * v))


def _into_box(x: Array, d: Array, limits: Limits) -> Array:
    return jnp.clip(x + d, limits.low, limits.high) - x


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
      random_start: whether to start from a random point (see `PGD.start`) or from x.
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
