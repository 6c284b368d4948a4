"""Minimal edit: the smallest change of the function under a margin constraint for each instance.

Among all changes of chosen weights, take the one that changes the network
least on proxies, subject to a linearised margin constraint for every forget
instance; re-linearise and repeat. A Gauss-Newton step with constraints, solved
in its dual. Nothing but the model and the forget set is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import curvature, inference
from jaxunlearn._config import BaseConfig, hparam
from jaxunlearn._types import Array, Batch, Draws, Info, MethodSpec, Model, Phase, Problem, Work
from jaxunlearn.methods import (
    _minimal_edit_constraints as constraints,
    _minimal_edit_depth as deep,
    _minimal_edit_pool as pools,
)
from jaxunlearn.proxies import DEPTHS

#: A step falls short if this share of what it promised is missing; then the damping grows by the factor below.
SHORTFALL, RAISE = 0.3, 10.0
#: With depth, so many finishing steps are taken even when the images are met: copies go on appearing after that.
DEPTH_FINISHING = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Hyper-parameters of the minimal edit; chosen without retain or test data."""

    margin: float = hparam(
        0.5, "how far past the boundary every instance must lie", traced=True, unit="logits", low=0.0
    )
    fraction: float = hparam(
        0.6, "share of the way to that margin that a step before the finishing ones asks for", traced=True, low=0.0
    )
    damping: float = hparam(
        1e-2, "weight of the size of the edit, relative to the mean squared proxy row", traced=True, low=1e-12
    )
    steps: int = hparam(4, "steps before the finishing ones", unit="steps", low=0)
    finishing_steps: int = hparam(
        6, "at most so many finishing steps; the first that succeeds (with depth: the third) ends the run", low=1
    )
    refresh_every: int = hparam(2, "steps between fresh proxies, with their Jacobian at the current weights", low=1)
    proxies: int = hparam(0, "proxy images; 0: by the number of constraints", unit="images", low=0)
    towards: str = hparam(
        "runner-up",
        "misclassify: towards the strongest other class, or away from the label whatever comes",
        choices=("runner-up", "any"),
    )
    depth: str = hparam(
        "none",
        "what else is forgotten: the mirror image; random crops and shifts; noisy, rotated, compressed versions, too",
        choices=tuple(DEPTHS),
    )
    copies: int = hparam(32, "versions of an instance that become constraints, at most", unit="images", low=1)
    depth_margin: float = hparam(
        0.0,
        "how far past the boundary such a version must lie; 0: by the number of instances, 3 up to 32, else 1",
        traced=True,
        unit="logits",
        low=0.0,
    )
    metric: str = hparam(
        "kronecker",
        "how large an edit is where proxies do not see it: by the second moments of their gradients, or Euclidean",
        choices=("kronecker", "euclidean"),
    )
    layers: str = hparam("", "globs of the tensors to edit, joined by commas (layer3*/kernel); empty: every kernel")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """A run between two steps; all arrays, the rows of the proxies are not among them.

    Attributes:
      model: the current classifier.
      original: the one whose answers on proxies are held.
      forget: instances to forget; held: instances forgotten earlier, or None.
      copies: versions of them that are constraints, too, or None.
      images: images of the user's or from inversion to draw proxies from, or None.
      pool: current proxies.
      anchor: edited tensors at which the proxies were linearised.
      t: steps taken.
      boost: factor on the damping, raised while steps fall short of what they promise.
      promise: largest margin before the last step, and what that step was to make of it, (2,).
      hparams: traced settings.
    """

    model: Model
    original: Model
    forget: Batch
    held: Batch | None
    copies: deep.Copies | None
    images: Array | None
    pool: pools.Pool
    anchor: Mapping[str, Array]
    t: Array
    boost: Array
    promise: Array
    hparams: Mapping[str, Array]
    goal: str = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class MinimalEdit:
    """The method bound to its static settings.

    Attributes:
      config: static settings.
      microbatch_size: examples differentiated at a time; 0: by device.
      row_bytes: memory for Jacobian rows; where a pool needs more they are
        never stored, with the same result but for rounding. 0: see
        `curvature.memory_for_rows`.
    """

    config: Config
    microbatch_size: int = 0
    row_bytes: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        steps = self.config.steps
        most = steps + self.config.finishing_steps
        least = steps + 1 if self.config.depth == "none" else min(steps + DEPTH_FINISHING, most)
        return (Phase(self.step, self.draws, most, jit=False, min_steps=least),)

    def check(self, problem: Problem) -> None:
        """Raise unless the tensors to edit are there."""
        self._paths(problem.model)

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> State:
        """Check the instances against each other; the proxies are drawn by the first step.

        Reads ``problem.artefacts``: "held" (a Batch forgotten earlier, to stay
        so), "original" (the Model before the first of several requests) and
        "proxies" (images from inversion), and ``problem.public``.
        """
        del key
        model = problem.model
        paths = self._paths(model)
        forget = constraints.real(problem.forget)
        held = problem.artefacts.get("held")
        held = None if held is None else constraints.real(held)
        constraints.check(forget, problem.goal)
        n = self._pool_size(problem)
        return State(
            model=model,
            original=problem.artefacts.get("original", model),
            forget=forget,
            held=held,
            copies=None if self.config.depth == "none" else deep.none_yet(forget, self._copies),
            images=pools.images(problem),
            pool=pools.empty(model, n),
            anchor=curvature.take(model.params, paths),
            t=jnp.zeros((), jnp.int32),
            boost=jnp.ones(()),
            promise=jnp.full(2, jnp.inf),
            hparams=hparams,
            goal=problem.goal,
        )

    def work(self, problem: Problem) -> Work:
        """Return what a run takes at most."""
        n, rows = self._pool_size(problem), self._constraints(problem)
        steps = self.config.steps + self.config.finishing_steps
        pools_drawn = -(-steps // self.config.refresh_every)
        measured = n // 4 if self.config.metric == "kronecker" else 0
        looked_at = 0
        if self.config.depth != "none":  # fresh versions and those that are constraints already, to find the worst
            fresh = 1 if self.config.depth == "mirror" else deep.CANDIDATES
            looked_at = len(problem.forget.y) * (fresh + self._copies)
        row_bytes = 4 * (n + rows) * curvature.width(problem.model.params, self._paths(problem.model))
        return Work(
            forward=pools_drawn * n + steps * (n + rows + looked_at),
            gradients=pools_drawn * (n + measured) + steps * rows,
            row_bytes=min(row_bytes, self.row_bytes or curvature.memory_for_rows()),
        )

    def _pool_size(self, problem: Problem) -> int:
        return self.config.proxies or pools.default_size(self._constraints(problem))

    def _constraints(self, problem: Problem) -> int:
        """Return how many images there are constraints on, at most."""
        held = problem.artefacts.get("held")
        versions = 1 if self.config.depth == "none" else 1 + self._copies
        return versions * len(problem.forget.y) + (0 if held is None else len(held.y))

    def finish(self, state: State) -> Model:
        return state.model

    def extras(self, state: State) -> dict[str, Any]:
        pools.drop_rows()
        n = len(state.pool.x)  # of every kind: cut-and-paste images come first
        return {"proxies": np.asarray(state.pool.x)[np.linspace(0, n - 1, min(n, 16)).astype(int)]}

    def draws(self, state: State) -> Draws:
        """Give every step the whole forget set."""
        return Draws((0,), lambda state, t, part: state.forget, 1)

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Info]:
        """Solve one linearised programme and move the weights; on the host, in float64 where it matters."""
        t = int(state.t)
        if t % self.config.refresh_every == 0:
            anchor = curvature.take(state.model.params, tuple(state.anchor))
            state = dataclasses.replace(state, pool=pools.draw(key, state), anchor=anchor)
        margins = {name: float(state.hparams[name]) for name in ("margin", "depth_margin")}
        margins["depth_margin"] = margins["depth_margin"] or deep.default_margin(len(state.forget.y))
        if state.copies is not None:
            copies = deep.grow(
                jax.random.fold_in(key, 1),
                state,
                depth=self.config.depth,
                at_most=-(-self._copies // max(self.config.steps, 1)),
                margin=margins["depth_margin"],
            )
            state = dataclasses.replace(state, copies=copies)
        instances = constraints.join(batch, state.held, state.copies, state.goal, **margins)
        n = len(state.pool.x)
        logits = self._logits(state, instances.x)
        share = float(state.hparams["fraction"]) if t < self.config.steps else 1.0
        rows = constraints.linearise(logits[n:], instances, towards=self.config.towards, share=share)
        drift = state.pool.drift(logits[:n])
        state = dataclasses.replace(state, boost=self._boost(state, rows.margin.max()))
        try:
            move, change = self._solve(state, rows, drift)
        except curvature.InfeasibleError as error:
            raise constraints.contradiction(error, rows, instances, n) from None
        model = state.model
        moved = {path: leaf + move[path] for path, leaf in curvature.take(model.params, tuple(move)).items()}
        model = model.replace(params=curvature.put(model.params, moved))
        size = np.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in move.values()))
        info = {
            "largest_margin": rows.margin.max(),
            "predicted_margin": (rows.margin + change).max(),
            "drift": np.sqrt(np.sum(drift**2)),
            "edit_norm": size,
            "boost": state.boost,
        }
        promise = jnp.array([info["largest_margin"], info["predicted_margin"]], jnp.float32)
        state = dataclasses.replace(state, model=model, t=state.t + 1, promise=promise)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in info.items()}

    def _logits(self, state: State, x: np.ndarray) -> np.ndarray:
        """Return the current logits of the proxies, then of some instances."""
        if state.model is state.original:  # nothing has moved yet
            return np.concatenate([state.pool.logits, inference.logits(state.model, x)])
        return inference.logits(state.model, np.concatenate([state.pool.x, x]), label="proxies")

    @property
    def _copies(self) -> int:
        return 1 if self.config.depth == "mirror" else self.config.copies

    def _paths(self, model: Model) -> tuple[str, ...]:
        patterns = [pattern.strip() for pattern in self.config.layers.split(",") if pattern.strip()]
        return curvature.select_paths(model.params, patterns)

    def _boost(self, state: State, largest: float) -> Array:
        """Return the factor on the damping: larger while the linearisation does not reach as far as the steps go."""
        before, promised = np.asarray(state.promise, np.float64)
        if not np.isfinite(before):
            return state.boost
        short = largest - promised > SHORTFALL * max(before - promised, float(state.hparams["margin"]))
        return jnp.asarray(state.boost * RAISE if short else jnp.maximum(state.boost / 2, 1.0), jnp.float32)

    def _solve(self, state: State, rows: constraints.Rows, drift: np.ndarray) -> tuple[Mapping[str, Array], np.ndarray]:
        """Return the edit and the predicted change of the constrained margins."""
        model, paths = state.model, tuple(state.anchor)
        direction, anchored = curvature.LogitDirection(model.apply_fn), curvature.put(model.params, state.anchor)
        jacobian = curvature.Jacobian(direction, paths, self.microbatch_size)
        there = curvature.Part(anchored, model.model_state, (state.pool.x, state.pool.direction))
        here = curvature.Part(model.params, model.model_state, rows.examples)
        metric = None
        if self.config.metric == "kronecker":
            metric = pools.metric(jacobian, state.pool, anchored, model.model_state)
            jacobian = curvature.Jacobian(curvature.Whitened(direction), paths, self.microbatch_size)
            there, here = (
                curvature.Part(curvature.origin(at, paths), (at, context, metric), examples)
                for at, context, examples in (there, here)
            )
        n = len(state.pool.x)
        row_bytes = self.row_bytes or curvature.memory_for_rows()
        if 4 * n * curvature.width(model.params, paths) <= row_bytes:
            proxy_rows, proxy_gram = pools.stored(jacobian, state.pool, there)
            constraint_rows = jacobian.rows(*here)
            cross = curvature.inner_products(proxy_rows, constraint_rows)
            step = self._programme(proxy_gram, cross, curvature.inner_products(constraint_rows), drift, rows, state)
            vector = -curvature.combine(step.constraint_weight, constraint_rows)
            vector -= curvature.combine(step.proxy_weight, proxy_rows)
            move = curvature.unravel(vector.astype(constraint_rows.dtype), model.params, paths)
        else:
            gram = curvature.gram(jacobian, there, here, max_bytes=row_bytes, label="curvature")
            step = self._programme(gram[:n, :n], gram[:n, n:], gram[n:, n:], drift, rows, state)
            held = jacobian.transpose_times(*there, -step.proxy_weight)
            pushed = jacobian.transpose_times(*here, -step.constraint_weight)
            move = jax.tree.map(jnp.add, held, pushed)
        return move if metric is None else curvature.scale(metric, move), step.change

    def _programme(
        self,
        proxy_gram: np.ndarray,
        cross: np.ndarray,
        constraint_gram: np.ndarray,
        drift: np.ndarray,
        rows: constraints.Rows,
        state: State,
    ) -> curvature.MarginStep:
        damping = float(state.boost) * float(state.hparams["damping"]) * float(np.mean(np.diag(proxy_gram)))
        return curvature.solve_margin_qp(proxy_gram, cross, constraint_gram, drift, rows.required, damping=damping)


def make(config: Config) -> MinimalEdit:
    """Bind the minimal edit to its static settings."""
    return MinimalEdit(config)


SPEC = MethodSpec(
    name="minimal-edit",
    make=make,
    Config=Config,
    summary="the smallest change of the function under a margin constraint for each instance",
    goals=("misclassify", "relabel"),
    uses=("public", "proxies", "held", "original"),
    cost="one Jacobian row for each proxy and their Gram matrix, every other step",
    paper="this project; constrained Gauss-Newton, relatives: repair by quadratic programming, ROME, MEMIT",
    vmappable=False,
    strength="damping",
)
