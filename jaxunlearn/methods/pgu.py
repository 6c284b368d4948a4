"""PGU: unlearn in the directions that the remaining training data do not read (Hoang et al. 2024).

Training time leaves for each linear layer and convolution ``M = sum x x^T``
over its inputs (`curvature.moments_artefact`). A request subtracts what D_f
gave, ``M_r = M - C_f``, and every update of that layer is projected on the
complement of the leading eigenvectors of M_r::

    W <- W - lr (G + wd W)(I - P),   P = U_k U_k^T,   W as (out, in)
    L = w1 mean[-log(1 - (p_y - o))] - w2 mean H(p)

(Flax kernels have their inputs first, so the product stands on their left.)
Biases, normalisation, running statistics and layers without moments stay as
they are. No retain data are seen.

Where we leave the published code: PGU-1, the rank counts the direction that
crosses gamma, too; PGU-2, PGU-3, one deterministic pass, no augmentation and no
dropout, for both sums; PGU-4, convolutions are summed with their true strides
(an option when the moments are made); PGU-5, an unknown setting is an error;
PGU-6, negative eigenvalues are 0. Ours, too: the network runs in eval mode
throughout (the published code keeps dropout on while it unlearns), and the run
stops when every forget instance has lost its label or accuracy on D_f has
fallen to a given reference, since validation data are not to be had.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, _repeat, _tree, curvature, losses
from jaxunlearn._config import BaseConfig, hparam
from jaxunlearn._types import Array, Batch, Draws, Info, MethodSpec, Model, Params, Phase, Problem

#: Eigenvalues further below zero, relative to the largest, are not rounding.
NEGATIVE = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Hyper-parameters of PGU."""

    gamma: float = hparam(
        0.95, "share of the roots of the eigenvalues that is protected; 1 freezes a layer", traced=True, low=0, high=1
    )
    learning_rate: float = hparam(0.05, "of the start", traced=True, low=1e-12)
    final_learning_rate: float = hparam(0.01, "of the last pass; exponential in between", traced=True, low=1e-12)
    offset: float = hparam(0.05, "o of the loss, which is at most -log(o)", traced=True, low=1e-6, high=1.0)
    forget_weight: float = hparam(1.0, "w1, of -log(1 - p_y + o)", traced=True, low=0.0)
    entropy_weight: float = hparam(0.2, "w2, of the entropy", traced=True, low=0.0)
    weight_decay: float = hparam(0.0, "of the projected weights, projected as the gradient is", traced=True, low=0.0)
    entropy: str = hparam(
        "spread",
        "spread: predictions are flattened; others: the other classes' are sharpened, as in the poison script",
        choices=("spread", "others"),
    )
    rank: str = hparam(
        "crossing",
        "crossing: protect the eigenvector that crosses gamma, too; below: stop before it",
        choices=("crossing", "below"),
        deviation="PGU-1",
    )
    negative: str = hparam(
        "zero",
        "negative eigenvalues: zero, or their absolute value",
        choices=("zero", "absolute"),
        deviation="PGU-6",
    )
    reference_accuracy: float = hparam(
        0.0,
        "stop once the accuracy on the forget set is below this, such as that on data never seen; 0: all forgotten",
        traced=True,
        low=0.0,
        high=1.0,
    )
    forget_batch: int = hparam(128, "forget instances a step", unit="instances", low=1)
    max_passes: int = hparam(100, "budget, over which the learning rate falls", unit="passes", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the settings of the published instance script (PGU-1, PGU-6)."""
        return cls(rank="below", negative="absolute")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """A run between two steps.

    Attributes:
      model: the current classifier.
      before: its weights after the pass before, and the accuracy on the forget set then.
      forget: the forget set.
      free: I - P of each layer that may move, (in, in), by the path of its kernel.
      moments: M_r of those layers, float64; instances: fingerprints of the images in it.
      ranks: k of each layer.
      stopped: the accuracy on the forget set has fallen below the reference.
      t: steps taken.
      key, hparams: of the order of batches; traced settings.
    """

    model: Model
    before: tuple[Params, Array]
    forget: Batch
    free: Mapping[str, Array]
    moments: Mapping[str, np.ndarray]
    instances: np.ndarray
    ranks: Mapping[str, np.ndarray]
    stopped: Array
    t: Array
    key: Array
    hparams: Mapping[str, Array]
    layers: tuple[tuple[str, curvature.Layer], ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class PGU:
    """The method bound to its static settings."""

    config: Config

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.step, self.draws, self.config.max_passes, check_every=0, jit=False),)

    def check(self, problem: Problem) -> None:
        """Raise unless the forget set is in the moments."""
        real = np.asarray(problem.forget.weight) > 0
        curvature.places(problem.artefacts["moments"], np.asarray(problem.forget.x)[real])

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> State:
        """Take D_f out of the moments and find each layer's free directions; in float64, on the host."""
        model, forget = problem.model, jax.tree.map(lambda leaf: leaf[problem.forget.weight > 0], problem.forget)
        rest = curvature.without(problem.artefacts["moments"], model, np.asarray(forget.x))
        layers, leaves = curvature.layers_of(rest), _tree.flatten_paths(model.params)
        _say_what_stays(leaves, layers)
        moments = {path: curvature.moment(rest, path) for path in layers}
        free, ranks = {}, {}
        for done, (path, matrix) in enumerate(moments.items()):
            _progress.report("protected directions", done, len(moments))
            basis, rank = protected(
                matrix, float(hparams["gamma"]), rank=self.config.rank, negative=self.config.negative, name=path
            )
            free[path] = jnp.asarray(basis[:, rank:] @ basis[:, rank:].T, leaves[path].dtype)
            ranks[path] = np.asarray(rank)
        accuracy = _repeat.call(_accuracy, (), model, forget)
        return State(
            model=model,
            before=(model.params, accuracy),
            forget=forget,
            free=free,
            moments=moments,
            instances=rest.arrays["instances"],
            ranks=ranks,
            stopped=accuracy < hparams["reference_accuracy"],
            t=jnp.zeros((), jnp.int32),
            key=key,
            hparams=hparams,
            layers=tuple(layers.items()),
        )

    def draws(self, state: State) -> Draws:
        """Deal the forget set in a new order each pass."""
        n = len(state.forget.y)
        size = min(self.config.forget_batch, n)
        steps = -(-n // size)

        def draw(state: State, t: Array, part: int) -> Batch:
            order = jax.random.permutation(jax.random.fold_in(state.key, t // steps), n)
            rows = order[(int(t) % steps) * size :][:size]
            return cast(Batch, jax.tree.map(lambda leaf: leaf[rows], state.forget))

        return Draws((0,), draw, steps)

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Info]:
        """Take one projected step; with the last of a pass, look at the reference."""
        steps = self.draws(state).steps_per_pass
        epoch = state.t // steps + 1
        fraction = epoch / np.float32(self.config.max_passes)
        model, info = _repeat.call(
            _update, (self.config.entropy,), state.model, state.free, batch, fraction, state.hparams
        )
        t = state.t + 1
        state = dataclasses.replace(state, model=model, t=t)
        return (self._looked(state) if int(t) % steps == 0 else state), info

    def finish(self, state: State) -> Model:
        return state.model

    def stopped(self, state: State) -> Array:
        """Return whether the accuracy on the forget set has fallen below the reference."""
        return state.stopped

    def extras(self, state: State) -> dict[str, Any]:
        """Return the moments of what remains, bound to the new model, and each layer's rank."""
        left = curvature.as_artefact(state.moments, dict(state.layers), state.instances, state.model)
        ranks = {path: [int(rank), len(state.moments[path])] for path, rank in state.ranks.items()}
        return {"artefacts": [left], "protected": ranks}

    def _looked(self, state: State) -> State:
        """Return the state after a pass: stopped, at the nearer of this and the pass before, or on the way."""
        accuracy = _repeat.call(_accuracy, (), state.model, state.forget)
        reference = state.hparams["reference_accuracy"]
        params, earlier = state.before
        model, stop = state.model, accuracy < reference
        if stop and abs(earlier - reference) < abs(accuracy - reference):
            model, accuracy = model.replace(params=params), earlier
        return dataclasses.replace(state, model=model, before=(model.params, accuracy), stopped=stop)


def protected(
    moments: np.ndarray, gamma: float, *, rank: str = "crossing", negative: str = "zero", name: str = "a layer"
) -> tuple[np.ndarray, int]:
    """Return eigenvectors by falling eigenvalue, and how many of them span what is protected (section 3).

    ``k = 1 + #{i : cumsum(S)_i / sum(S) <= gamma}``, S the roots of the eigenvalues.

    Args:
      moments: M_r, (in, in) float64; its symmetric part counts.
      gamma: in [0, 1].
      rank: "crossing", or "below" without the 1 (PGU-1).
      negative: "zero" or "absolute" (PGU-6).
      name: of the layer, for the warning where eigenvalues are negative beyond rounding.

    >>> protected(np.diag([4.0, 1.0, 0.0]), 0.5)[1]
    1
    """
    values, vectors = np.linalg.eigh((moments + moments.T) / 2)
    if values[0] < -NEGATIVE * abs(values[-1]):
        warnings.warn(
            f"the second moments of {name} have eigenvalues down to {values[0] / values[-1]:.1e} of the largest: they "
            f"are not those of this network any more, as after earlier requests; taken as {negative}",
            stacklevel=2,
        )
    roots = np.sqrt(np.maximum(values, 0) if negative == "zero" else np.abs(values))
    order = np.argsort(-roots, kind="stable")
    roots = roots[order]
    if not roots.any():
        return vectors[:, order], 0  # nothing is left that could be disturbed
    sums = np.cumsum(roots)  # over its own last entry: another sum of the same roots may round below an entry before
    k = int(np.sum(sums / sums[-1] <= gamma)) + (rank == "crossing")
    return vectors[:, order], min(k, len(roots))


def forget_loss(
    logits: Array,
    label: Array,
    *,
    offset: Array | float,
    weight: Array | float,
    entropy_weight: Array | float,
    entropy: str,
) -> Array:
    """Return ``w1 (-log(1 - p_y + o))`` with the entropy term of each instance, (batch,); see `Config`."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p_y = jnp.exp(-losses.cross_entropy(logits, label))
    away = -jnp.log(1 - p_y + offset)
    if entropy == "spread":
        return weight * away + entropy_weight * jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    own = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    log_q = jax.nn.log_softmax(jnp.where(own, -jnp.inf, logits), axis=-1)
    return weight * away - entropy_weight * jnp.sum(
        jnp.where(own, 0.0, jnp.exp(log_q) * jnp.where(own, 0.0, log_q)), axis=-1
    )


def _update(
    entropy: str, model: Model, free: Mapping[str, Array], batch: Batch, elapsed: Array, hparams: Mapping[str, Array]
) -> tuple[Model, Info]:
    """Take one step of the projected gradient; the rate is exponential in the share of the budget that has elapsed."""
    kernels = curvature.take(model.params, tuple(free))

    def objective(kernels: dict[str, Array]) -> Array:
        logits = model.replace(params=curvature.put(model.params, kernels))(batch.x)
        each = forget_loss(
            logits,
            batch.y,
            offset=hparams["offset"],
            weight=hparams["forget_weight"],
            entropy_weight=hparams["entropy_weight"],
            entropy=entropy,
        )
        return jnp.mean(each)

    loss, grads = jax.value_and_grad(objective)(kernels)
    first = hparams["learning_rate"]
    rate = first * (hparams["final_learning_rate"] / first) ** elapsed
    moved, squares = {}, jnp.zeros(())
    for path, kernel in kernels.items():
        matrix = (grads[path] + hparams["weight_decay"].astype(kernel.dtype) * kernel).reshape(-1, kernel.shape[-1])
        change = (free[path] @ matrix).reshape(kernel.shape)
        moved[path] = kernel - rate.astype(kernel.dtype) * change
        squares += jnp.sum(jnp.square(change)).astype(squares.dtype)
    grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(grad)) for grad in grads.values()))
    info = {"loss": loss, "grad_norm": grad_norm, "projected_norm": jnp.sqrt(squares), "learning_rate": rate}
    return model.replace(params=curvature.put(model.params, moved)), info


def _accuracy(model: Model, forget: Batch) -> Array:
    return jnp.mean((jnp.argmax(model(forget.x), axis=-1) == forget.y).astype(jnp.float32))


def _say_what_stays(leaves: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
    """Warn once of weights that nothing is known of and that therefore stay."""
    stay = [path for path, leaf in leaves.items() if leaf.ndim >= 2 and path not in layers]
    if stay:
        more = f" and {len(stay) - 3} more" if len(stay) > 3 else ""
        warnings.warn(
            f"pgu leaves {', '.join(stay[:3])}{more} as they are: there are no second moments of their inputs",
            stacklevel=2,
        )


def make(config: Config) -> PGU:
    """Bind PGU to its static settings."""
    return PGU(config)


SPEC = MethodSpec(
    name="pgu",
    make=make,
    Config=Config,
    summary="gradient steps in the directions that the remaining training data do not read",
    goals=("misclassify",),
    needs=("taps", "moments"),
    cost="an eigendecomposition a layer, then one forward and backward pass over the forget set a pass",
    paper="Hoang et al., WACV 2024, Learn to Unlearn for Deep Neural Networks",
    vmappable=False,
    strength="learning_rate",
)
