"""PRUNE: a patch network that changes the answer on regions around the instances, with a certificate (Li et al. 2025).

The network stays as it is; a small patch beside it (REASSURE, Fu & Li 2022)
gives every instance's region another label. In small piecewise-linear networks
the region is the exact linear piece around the instance; in deep ones a box in
front of the head, around the instance's features, cut to where the network gives
the forgotten label. For each group of instances one affine patch, the smallest
in the largest change of a logit, by a linear programme; rounds until all are forgotten.

What is promised is an answer, "another label on this region", not removal: the
weights are inside as before, and whoever takes the patch off has them. It is not
likeness to a retrained network, and logits without the patch still tell of membership.

Departures from the published code (RitaAnonymous/PRUNE2023, BU-DEPEND-Lab/REASSURE), ours being the default:

* PRUNE-1, PRUNE-2: regions and slopes come from Jacobians; there, from gradients that are never zeroed, so that
  its certificate holds at the point only. Not reproduced.
* PRUNE-3: one label a cluster, never the true label of a member; there, that of cluster 0 for all. Not reproduced.
* PRUNE-4: a patch holds on the regions of all members; there, on the representative's (``certify``).
* PRUNE-5: gamma 1000 in place of 0.1, which leaves next to nothing of the box unchanged.
* PRUNE-6: patches are part of the saved network.
* PRUNE-7, PRUNE-8: the interval rule shifts by ``alpha (lb + t)`` and completes P by its null space.
* Clusters here are of one label each: the region is cut to where the network says that label.

``Config.published()`` has the published gamma, margin, rounds, clusters, labels, rule and coverage.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _tree, inference, patches, wrappers
from jaxunlearn._config import BaseConfig, hparam
from jaxunlearn._types import Array, Batch, Draws, Info, MethodSpec, Model, Phase, Problem
from jaxunlearn.methods import _prune_choice as choice, _prune_groups as groups_, _prune_spaces as spaces
from jaxunlearn.methods._prune_groups import Frame, Group
from jaxunlearn.methods._prune_versions import Spread, spread
from jaxunlearn.proxies import DEPTHS
from jaxunlearn.wrappers import Patch

#: Instances of one label from which their region is one box by default, and what such a box is widened by.
CLASS, LEAST = 256, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Hyper-parameters of PRUNE; all chosen from the forget set."""

    space: str = hparam(
        "auto",
        "where regions lie: exact linear pieces of the input space, or boxes in front of the head; by size",
        choices=("auto", "input", "features"),
    )
    region: str = hparam(
        "auto",
        "in features: a box for each instance, or one around a whole cluster; by the number of a label's instances",
        choices=("auto", "instance", "cluster"),
    )
    clusters: int = hparam(
        0, "k-means clusters of each label a round; 0: one (features) or one an instance (input)", low=0
    )
    cover: float = hparam(
        0.9, "in features: share of random versions of an instance that its box holds", traced=True, low=0.0, high=1.0
    )
    apart: float = hparam(
        0.5,
        "in features: how far a box reaches at most, as a share of the way to the next other instance",
        traced=True,
        low=0.0,
        high=1.0,
    )
    versions: str = hparam(
        "crops", "in features: which versions", choices=tuple(name for name in DEPTHS if name != "none")
    )
    copies: int = hparam(32, "versions of an instance", unit="images", low=1)
    gamma: float = hparam(
        1000.0,
        "sharpness: the tube around a region is 1/gamma wide, in input units or spreads of versions",
        traced=True,
        low=1e-3,
        high=1e5,
        deviation="PRUNE-5",
    )
    margin: float = hparam(0.1, "how far the new label leads on the whole region", traced=True, unit="logits", low=0.0)
    label: str = hparam(
        "runner-up",
        "misclassify: the new label, the network's next choice or a random one",
        choices=("runner-up", "uniform"),
    )
    rule: str = hparam(
        "smallest",
        "the affine patch: the smallest, by a linear programme, or by intervals",
        choices=("smallest", "interval"),
    )
    certify: str = hparam(
        "every",
        "regions on which a patch must hold: every member's, or the representative's",
        choices=("every", "representative"),
        deviation="PRUNE-4",
    )
    rounds: int = hparam(4, "at most so many rounds", unit="rounds", low=1)

    @classmethod
    def published(cls) -> Config:
        """Return the settings of the published code (PRUNE-4, PRUNE-5)."""
        return cls(
            gamma=0.1, margin=0.0, rounds=2, clusters=2, label="uniform", rule="interval", certify="representative"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """A run between two rounds.

    Attributes:
      model: the network without a patch.
      own, facts: arrays of the patch and of its certificate, empty before there is one.
      instances: those to forget, then those of earlier requests, which must stay so.
      spread: where they lie in the features, or None in input space.
      hparams: traced settings.
      wrapper: the patch's shape, or None.
      earlier: how many of the instances are of earlier requests.
    """

    model: Model
    own: Mapping[str, Any]
    facts: Mapping[str, Any]
    instances: Batch
    spread: Spread | None
    hparams: Mapping[str, Array]
    wrapper: Patch | None = dataclasses.field(metadata={"static": True})
    earlier: int = dataclasses.field(metadata={"static": True})
    goal: str = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Prune:
    """The method bound to its static settings."""

    config: Config

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.step, self.draws, self.config.rounds, jit=False),)

    def check(self, problem: Problem) -> None:
        """Raise unless the network, or the patch that it has, is one for the space asked for."""
        self._opened(problem.model)

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> State:
        """Choose the space, take an earlier patch off to go on with it, and look at versions of the instances.

        Reads ``problem.artefacts["held"]``, a Batch forgotten earlier, to stay so.
        """
        model, wrapper, own, space = self._opened(problem.model)
        forget, held = _real(problem.forget), problem.artefacts.get("held")
        instances = forget if held is None else jax.tree.map(_both, forget, _real(held))
        where = None
        if space == "features":
            where = spread(
                key,
                model,
                np.asarray(instances.x),
                depth=self.config.versions,
                n=self.config.copies,
                cover=float(hparams["cover"]),
                apart=float(hparams["apart"]),
                frame=Frame(own["origin"], own["basis"]) if own else None,
            )
            spaces.check_head(model, np.asarray(instances.x))
        known = problem.artefacts.get("certificate")
        return State(
            model=model,
            own=own,
            facts={} if wrapper is None else spaces.facts(wrapper, own, model, known),
            instances=instances,
            spread=where,
            hparams=hparams,
            wrapper=wrapper,
            earlier=len(instances.y) - len(forget.y),
            goal=problem.goal,
        )

    def _opened(self, model: Model) -> tuple[Model, Patch | None, dict[str, np.ndarray], str]:
        """Return the network without its patch, the patch, and the space."""
        model, wrapper, own = spaces.without_patch(model)
        space = spaces.choose(model, self.config.space)
        if wrapper is not None and wrapper.space != space:
            raise ValueError(
                f"the network has a patch in space {wrapper.space!r} already: go on with that space, not {space!r}"
            )
        return model, wrapper, own, space

    def finish(self, state: State) -> Model:
        if state.wrapper is None:
            return state.model
        own = {name: jnp.asarray(value, jnp.float32) for name, value in state.own.items()}
        return wrappers.wrap(state.model, "patch", dataclasses.asdict(state.wrapper), own)

    def draws(self, state: State) -> Draws:
        """Give every round the whole forget set."""
        return Draws((0,), lambda state, t, part: state.instances, 1)

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Info]:
        """Patch the instances that are not forgotten yet; on the host, in float64."""
        x = np.asarray(batch.x)
        now = inference.logits(self.finish(state), x)
        left = np.flatnonzero(~choice.met(now, batch, state.goal, state.earlier))
        before = inference.logits(state.model, x) if len(left) else now
        made: list[Group] = []
        for mine, target in self._clusters(key, state, batch, left, before):
            made += self._patch(state, batch, mine, int(before[mine[0]].argmax()), target)
        if made:
            old = [] if state.wrapper is None else groups_.split(state.wrapper, state.own, state.facts)
            frame = None if state.spread is None else state.spread.frame
            gamma = np.asarray(state.hparams["gamma"], np.float32)
            every = [group._replace(own={**group.own, "sharpness": gamma}) for group in (*old, *made)]
            wrapper, own = groups_.join(every, state.model, frame)
            facts = groups_.facts(every)
            new = np.arange(sum(len(group.points) for group in old), len(facts["points"]))
            new = new[facts["certified"][new]]
            made_of = groups_.certificate(wrapper, own, facts, state.model)
            facts["certified"][new] = patches.confirmed(made_of, state.model, new)
            state = dataclasses.replace(state, wrapper=wrapper, own=own, facts=facts)
        regions = 0 if state.wrapper is None else sum(state.wrapper.members)
        info = {
            "remembered": len(left),
            "representatives": len(made),
            "regions": regions,
            "largest_change": max((group.tau for group in made), default=0.0),
            "patch_size": _tree.size(dict(state.own)),
        }
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in info.items()}

    def extras(self, state: State) -> dict[str, Any]:
        """Return the certificate, and for each instance what can be said of it."""
        k = len(state.instances.y) - state.earlier
        if state.wrapper is None:
            return {"artefacts": [], "status": ["forgotten without a patch"] * k, "patch_size": 0}
        facts = {name: np.asarray(value) for name, value in state.facts.items()}
        own = {name: np.asarray(value) for name, value in state.own.items()}
        found = groups_.certificate(state.wrapper, own, facts, state.model)
        forget = jax.tree.map(lambda leaf: leaf[:k], state.instances)
        x = np.asarray(forget.x)
        said = inference.logits(self.finish(state), x)
        promised = found.labels(state.model, x)
        never = choice.met(inference.logits(state.model, x), forget, state.goal, 0)
        met = choice.met(said, forget, state.goal, 0)
        status = np.where(promised == said.argmax(axis=1), "certified", "checked at the point only")
        status = np.where(met, np.where(never & (promised < 0), "forgotten without a patch", status), "remembered")
        recipe = state.model.spec.recipe
        about = {
            "recipe": None if recipe is None else json.loads(recipe.to_json()),
            "goal": state.goal,
            "config": dataclasses.asdict(self.config),
        }
        found = dataclasses.replace(found, about=about, model_digest=_tree.model_digest(state.model))
        return {
            "artefacts": [found.to_artefact()],
            "status": status.tolist(),
            "certified": int((status == "certified").sum()),
            "representatives": len(found.targets),
            "regions": len(found.points),
            "patch_size": _tree.size(dict(own)),
            "network_size": _tree.size(dict(state.model.params)),
            "changed_share": _changed_share(state.model, self.finish(state)),
        }

    def _clusters(
        self, key: Array, state: State, batch: Batch, left: np.ndarray, before: np.ndarray
    ) -> list[tuple[np.ndarray, int]]:
        """Return clusters of instances that are left, the representative first, each with its new label."""
        said, y, target = before.argmax(axis=1), np.asarray(batch.y), np.asarray(batch.target)
        wanted = np.where(choice.relabelled(batch, state.goal, state.earlier), target, -1)
        at = state.spread.at if state.spread is not None else np.asarray(batch.x, np.float64).reshape(len(y), -1)
        out: list[tuple[np.ndarray, int]] = []
        for pair in sorted({(int(said[i]), int(wanted[i])) for i in left}):
            mine = np.array([i for i in left if (said[i], wanted[i]) == pair])
            for cluster in choice.split(at, mine, self._parts(state, len(mine))):
                middle = at[cluster].mean(axis=0)
                order = cluster[np.linalg.norm(at[cluster] - middle, axis=1).argsort(kind="stable")]
                label = pair[1]
                if label < 0:
                    never = {pair[0], *(int(y[i]) for i in cluster)}
                    label = choice.other_label(
                        self.config.label, before[order[0]], never, jax.random.fold_in(key, len(out))
                    )
                out.append((order, label))
        return out

    def _parts(self, state: State, count: int) -> int:
        if self.config.clusters:
            return min(self.config.clusters, count)
        return 1 if state.spread is not None else count

    def _patch(self, state: State, batch: Batch, mine: np.ndarray, said: int, target: int) -> list[Group]:
        """Return the groups that give a cluster's instances their new label."""
        settings: dict[str, Any] = {
            "gamma": float(state.hparams["gamma"]),
            "margin": float(state.hparams["margin"]),
            "rule": self.config.rule,
            "representative_only": self.config.certify == "representative",
        }
        where = state.spread
        if where is None:
            points = np.asarray(batch.x, np.float64).reshape(len(batch.y), -1)[mine]
            return groups_.around_pieces(state.model, points, target, **settings)
        if self.config.region == "cluster" or (self.config.region == "auto" and len(mine) > CLASS):
            boxes = where.low[mine].min(axis=0)[None] - LEAST, where.high[mine].max(axis=0)[None] + LEAST
            chosen = mine[:1]
        else:
            chosen = choice.representatives(where, mine)
            radius = where.radius[chosen][:, None]
            boxes = where.at[chosen] - radius, where.at[chosen] + radius
        frame = Frame(*(np.asarray(part, np.float32) for part in where.frame))
        return [groups_.around_boxes(state.model, frame, boxes, where.at[chosen], said, target, **settings)]


def _real(batch: Batch) -> Batch:
    keep = np.asarray(batch.weight) > 0
    return jax.tree.map(lambda leaf: np.asarray(leaf)[keep], batch)


def _both(first: Any, second: Any) -> np.ndarray:
    return np.concatenate([first, second])


def _changed_share(before: Model, after: Model, n: int = 1000) -> float:
    """Return the share of uniformly random inputs whose label a patch changes (PRUNE-5)."""
    x = np.random.RandomState(0).uniform(*before.spec.box, (n, *before.spec.input_shape)).astype(np.float32)
    labels = [inference.logits(model, x).argmax(axis=1) for model in (before, after)]
    return float((labels[0] != labels[1]).mean())


def make(config: Config) -> Prune:
    """Bind PRUNE to its static settings."""
    return Prune(config)


SPEC = MethodSpec(
    name="prune",
    make=make,
    Config=Config,
    summary="a patch network that gives regions around the instances another label, with a certificate",
    goals=("misclassify", "relabel"),
    uses=("held", "certificate"),
    cost="a forward pass over versions of the instances (features) or a Jacobian an instance, and linear programmes",
    paper="Li et al., Neural Networks 2026, PRUNE; Fu & Li, ICLR 2022, REASSURE",
    vmappable=False,
    strength="apart",
)
