"""Mnemonic code without codes: the same one-shot edit, for a network that was trained without them (ours).

Forget images stand in the place of the codes of what is forgotten; the user's
images, images made from the network or else cut-and-paste images of the forget
set, with the network's own answers as labels, in the place of the rest. So
single images can be asked for. How strong an edit has to be depends on the
network, so values of lambda1 are tried, and judged as the paper judges the two
signs: by the answers on both kinds of stand-in. Not a method of the paper: an additive relative
of selective synaptic dampening (Foster et al. 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn import inference, proxies
from jaxunlearn._config import hparam
from jaxunlearn._types import Array, MethodSpec, Model, Phase, Problem
from jaxunlearn.methods import _mnemonic as engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(engine.EditConfig):
    """Hyper-parameters of the code-free edit."""

    proxies: int = hparam(500, "images in the place of the rest, at most", unit="images", low=1)
    tries: int = hparam(
        12, "values of lambda1, each three times the last, the given one first; the best score is kept", low=1
    )


@dataclasses.dataclass(frozen=True)
class MnemonicFree:
    """The method bound to its static settings."""

    config: Config

    @property
    def phases(self) -> tuple[Phase, ...]:
        return ()

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> engine.State:
        """Choose what stands for the rest, and edit the network."""
        real = np.asarray(problem.forget.weight) > 0
        forget = engine.Examples(np.asarray(problem.forget.x)[real], np.asarray(problem.forget.y)[real])
        x = self._rest(key, problem, forget.x)
        answers = inference.logits(problem.model, x, label="proxies").argmax(axis=1)
        rest, tries = engine.Examples(x, answers.astype(np.int32)), self.config.tries
        return engine.edit(problem.model, forget, rest, hparams, label="importance", tries=tries)

    def finish(self, state: engine.State) -> Model:
        return state.model

    def extras(self, state: engine.State) -> dict[str, Any]:
        """Return both signs' scores, and the lambda1 that was chosen."""
        plus, minus = np.asarray(state.scores).tolist()
        return {"scores": {"plus": plus, "minus": minus}, "lambda1": float(state.lambda1)}

    def _rest(self, key: Array, problem: Problem, forget: np.ndarray) -> np.ndarray:
        kept = problem.artefacts.get("proxies")
        if problem.public is None and kept is None:
            return proxies.cutmix(key, forget, self.config.proxies)
        images = np.asarray(problem.public if problem.public is not None else kept.arrays["x"])  # type: ignore[union-attr]
        rows = np.asarray(jax.random.permutation(key, len(images)))[: self.config.proxies]
        return images[np.sort(rows)]


def make(config: Config) -> MnemonicFree:
    """Bind the code-free edit to its static settings."""
    return MnemonicFree(config)


SPEC = MethodSpec(
    name="mnemonic-free",
    make=make,
    Config=Config,
    summary="the mnemonic code's edit without codes: forget images against stand-ins for the rest",
    goals=("misclassify",),
    uses=("public", "proxies"),
    cost="one forward and backward pass over forget images and proxies",
    paper="this project, after Yamashita et al. 2024",
    vmappable=False,
    strength="lambda1",
)
