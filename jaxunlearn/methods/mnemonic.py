"""Mnemonic code: forget classes in one shot, from one random image a class (Yamashita et al. 2024).

The network was trained with the codes mixed in (`training.train(codes=...)`);
at request time they stand for the classes, so no image is needed and nothing is
trained: one forward and backward pass a class, and the edit of ``_mnemonic``.
The forget set only says which classes: those of its labels.

Where we leave the published code: MNEM-1, no noise in the edit (as version 2);
MNEM-2, which image a code replaces is drawn by key, epoch and instance; MNEM-3,
how often has no default; MNEM-4, ``jaxunlearn train`` makes a head of C outputs,
the published code keeps one of 1,000: give such a network and it is trained and
edited as there, outputs that no training image has are in the softmax and have
no code; MNEM-5, an infinitely insensitive parameter stays in place of moving
most; MNEM-6, codes are counted by the classes of the training set. Ours: after
a request the codes of the classes that are left go on, bound to the new network,
so that a later request holds on to those only.

A parameter that no code is sensitive to still moves, by ``s (C - |F|) / |F|``.
The scale is by tensor: layers whose weights are stacked are edited as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn import _tree
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, Artefact, MethodSpec, Model, Phase, Problem
from jaxunlearn.methods import _mnemonic as engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(engine.EditConfig):
    """Hyper-parameters of the mnemonic code; the paper's for CIFAR-10."""

    whole_class: bool = hparam(False, "forget the whole class although the request holds only a part of it")


@dataclasses.dataclass(frozen=True)
class Mnemonic:
    """The method bound to its static settings."""

    config: Config

    @property
    def phases(self) -> tuple[Phase, ...]:
        return ()

    def check(self, problem: Problem) -> None:
        """Raise unless the request is one for classes that have codes."""
        self._classes(problem, problem.artefacts["codes"])

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> tuple[engine.State, Any]:
        """Edit the network; nothing here is random."""
        del key
        codes = problem.artefacts["codes"]
        gone = self._classes(problem, codes)
        forgotten = np.isin(codes.arrays["classes"], gone)
        forget, rest = (
            engine.Examples(codes.arrays["codes"][rows], codes.arrays["classes"][rows])
            for rows in (forgotten, ~forgotten)
        )
        state = engine.edit(problem.model, forget, rest, hparams, label="codes")
        return state, {name: array[~forgotten] for name, array in codes.arrays.items()}

    def finish(self, state: tuple[engine.State, Any]) -> Model:
        return state[0].model

    def extras(self, state: tuple[engine.State, Any]) -> dict[str, Any]:
        """Return both signs' scores, and the codes that are left, bound to the new model."""
        edited, left = state
        artefact = Artefact(
            kind="codes",
            version=1,
            arrays={name: np.asarray(array) for name, array in left.items()},
            meta={},
            model_digest=_tree.model_digest(edited.model),
        )
        plus, minus = edited.scores.tolist()
        return {"artefacts": [artefact], "scores": {"plus": plus, "minus": minus}}

    def _classes(self, problem: Problem, codes: Artefact) -> np.ndarray:
        """Return the labels to forget; raise where the request is not one for classes that have codes."""
        labels = np.asarray(problem.forget.y)[np.asarray(problem.forget.weight) > 0]
        gone, asked = np.unique(labels, return_counts=True)
        there = dict(zip(codes.arrays["classes"].tolist(), codes.arrays["instances"].tolist(), strict=True))
        for label, count in zip(gone.tolist(), asked.tolist(), strict=True):
            if label not in there:
                raise ValueError(
                    f"there is no code of class {label}: no training image had it, or it was forgotten before"
                )
            if count < there[label] and not self.config.whole_class:
                raise ValueError(
                    f"mnemonic forgets classes, but the request holds {count} of the {there[label]} training instances "
                    f"of class {label}: ask for all of them (class:{label}), or set whole_class"
                )
        if len(gone) == len(there):
            raise ValueError(f"the request forgets all {len(there)} classes that have codes: none is left to keep")
        return gone


def make(config: Config) -> Mnemonic:
    """Bind the mnemonic code to its static settings."""
    return Mnemonic(config)


SPEC = MethodSpec(
    name="mnemonic",
    make=make,
    Config=Config,
    summary="forget classes in one edit, from random images that training mixed in",
    goals=("misclassify",),
    needs=("codes",),
    cost="one forward and backward pass a class",
    paper="Yamashita et al., ACML 2024, One-Shot Machine Unlearning with Mnemonic Code",
    vmappable=False,
    strength="lambda1",
)
