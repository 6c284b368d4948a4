"""The contracts every part of the library is built on.

One seam joins networks to everything else::

    apply_fn(params, model_state, x, *, train=False, rngs=None) -> (logits, model_state)

``params`` and ``model_state`` (BatchNorm statistics; ``{}`` where there are
none) are nested dicts with string keys, ``x`` lies in the box of the
`ModelSpec`, and normalisation by mean and standard deviation happens inside.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]
Goal: TypeAlias = Literal["misclassify", "relabel"]
GOALS: tuple[Goal, ...] = ("misclassify", "relabel")
#: Pixels of a side that pictures are resized to at most: more would fill the memory with one picture.
_SIDE = 2**13
Info: TypeAlias = dict[str, Array]
StopReason: TypeAlias = Literal["forgotten", "max_steps", "diverged", "completed", "interrupted"]


@runtime_checkable
class ApplyFn(Protocol):
    """A network as a pure function; equal networks should compare and hash equal."""

    def __call__(
        self,
        params: Params,
        model_state: Params,
        x: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Params]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture of any size becomes an input of a network: it is resized, then its middle is cut out.

    Attributes:
      resize: of the shorter side in pixels, or (height, width) of the whole picture.
      crop: (height, width) of the network's input.
      resample: "nearest", "bilinear", "bicubic" or "lanczos", as Pillow has them (antialiased).

    >>> Preprocess.from_dict({"resize": 256, "crop": [224, 224]})
    Preprocess(resize=256, crop=(224, 224), resample='bilinear')
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        """Raise a ValueError for sizes that no picture can be given, as a stranger's file may ask for."""
        sides = (*self.crop, *(self.resize if isinstance(self.resize, tuple) else (self.resize,)))
        if not all(1 <= side <= _SIDE for side in sides):
            raise ValueError(f"pictures can be resized and cut to 1 to {_SIDE} pixels a side; got {self}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocess:
        """Rebuild from what `dataclasses.asdict` and JSON made of it."""
        resize, crop = fields["resize"], fields["crop"]
        resize = int(resize) if isinstance(resize, int) else (int(resize[0]), int(resize[1]))
        return cls(resize=resize, crop=(int(crop[0]), int(crop[1])), resample=str(fields.get("resample", "bilinear")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to rebuild a network without its weights; plain JSON, hashable.

    Attributes:
      arch: name in `jaxunlearn.models`, or ``package.module:factory``.
      kwargs: arguments of the architecture as sorted ``(name, scalar)`` pairs.
      mean, std: per-channel normalisation inside the network, or None.
      wrappers: what is around it (`jaxunlearn.wrappers`), innermost first: ``(name, ((argument, value), ...))``.
      preprocess: how pictures of other sizes are made to fit, or None; no part of the network.

    >>> r = Recipe(arch="cifar_resnet20", kwargs=(("num_classes", 10),), mean=(0.5,), std=(0.2,))
    >>> Recipe.from_json(r.to_json()) == r
    True
    """

    arch: str
    kwargs: tuple[tuple[str, Any], ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    wrappers: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    preprocess: Preprocess | None = None

    def to_json(self) -> str:
        """Return the recipe as one JSON object."""
        wrappers = [[name, dict(arguments)] for name, arguments in self.wrappers]
        fields = dataclasses.asdict(self) | {"kwargs": dict(self.kwargs), "wrappers": wrappers}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Rebuild a recipe from `to_json`; raise ValueError on anything else."""

        def hashable(value: Any) -> Any:
            return tuple(map(hashable, value)) if isinstance(value, list) else value

        def pairs(arguments: Any) -> tuple[tuple[str, Any], ...]:
            return tuple(sorted((k, hashable(v)) for k, v in arguments.items()))

        try:
            fields = {name: hashable(value) for name, value in json.loads(text).items()}
            fields["kwargs"] = pairs(fields["kwargs"])
            fields["wrappers"] = tuple((str(name), pairs(values)) for name, values in fields.get("wrappers", ()))
            if fields.get("preprocess") is not None:
                fields["preprocess"] = Preprocess.from_dict(fields["preprocess"])
            if not isinstance(fields["arch"], str):
                raise ValueError(f"arch must be a name; got {fields['arch']!r}")
            for name in ("mean", "std"):
                values = fields.get(name)
                if not (values is None or (values and all(type(value) in (int, float) for value in values))):
                    raise ValueError(f"{name} must be numbers; got {values!r}")
            return cls(**fields)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"not a network recipe: {text[:80]!r} ({error})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known of a network beyond its logits.

    Attributes:
      num_classes: C, the length of the logits.
      input_shape: shape of one input, without the batch axis.
      box: (low, high), the range of every input value at the seam.
      head: path of the classifier layer in ``params``, or None.
      taps_fn: ``taps_fn(params, model_state, x) -> dict`` of inner activations, or None.
      init_fn: ``init_fn(key) -> (params, model_state)``, fresh weights, or None.
      recipe: how a checkpoint rebuilds the network, or None.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    box: tuple[float, float] = (0.0, 1.0)
    head: tuple[str, ...] | None = None
    taps_fn: Callable[..., Any] | None = None
    init_fn: Callable[..., Any] | None = None
    recipe: Recipe | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A classifier: weights as a pytree, everything else static. Goes into and comes out of all."""

    params: Params
    model_state: Params
    apply_fn: ApplyFn = dataclasses.field(metadata={"static": True})
    spec: ModelSpec = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        """Return eval-mode logits, shape (batch, C)."""
        return self.apply_fn(self.params, self.model_state, x, train=False)[0]

    def replace(self, **changes: Any) -> Model:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


class Batch(NamedTuple):
    """Instances side by side; every field has the batch as its leading axis.

    Attributes:
      x: inputs, (batch, *input_shape), float, inside the model's box.
      y: true labels, (batch,), int32.
      target: labels to give instead (relabel), or -1, (batch,), int32.
      weight: 1 for a real instance, 0 for padding, (batch,), float32.
      index: position of the instance in its set, (batch,), int32.
    """

    x: Array
    y: Array
    target: Array
    weight: Array
    index: Array  # type: ignore[assignment]  # the field's name in the contract; shadows tuple.index

    @classmethod
    def of(cls, x: Any, y: Any, target: Any = None) -> Batch:
        """Make a batch of real instances from arrays.

        >>> Batch.of(np.zeros((3, 2)), [0, 1, 2]).weight.tolist()
        [1.0, 1.0, 1.0]
        """
        x = jax.numpy.asarray(x)
        y = jax.numpy.asarray(np.asarray(y), dtype=np.int32)
        n = x.shape[0]
        if target is None:
            target = np.full(n, -1)
        target = jax.numpy.asarray(np.asarray(target), dtype=np.int32)
        ones = jax.numpy.ones(n, jax.numpy.float32)
        return cls(x, y, target, ones, jax.numpy.arange(n, dtype=jax.numpy.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One request. It has no test set, so none can leak into a method.

    Attributes:
      model: the classifier that must forget.
      forget: the forget set D_f.
      retain: the retain set D_r, only for methods that declare the need.
      public: unlabelled images the user offers as proxies, (n, *input_shape), or None.
      artefacts: what training time left behind, by kind.
      goal: what forgetting means for this request.
    """

    model: Model
    forget: Batch
    retain: Batch | None = None
    public: Array | None = None
    artefacts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    goal: Goal = dataclasses.field(default="misclassify", metadata={"static": True})


class Draws(NamedTuple):
    """Which batch each step of a phase sees.

    Attributes:
      period: ids of the batch shapes of one period of steps; step t (from 0)
        has the shape ``period[t % len(period)]``. Padded batches have one shape.
      draw: ``draw(state, t, part) -> batch``, pure; t may be traced, part is static.
      steps_per_pass: steps that make one pass (epoch) over the phase's data.
    """

    period: tuple[int, ...]
    draw: Callable[[PyTree, Any, int], Any]
    steps_per_pass: int


class Phase(NamedTuple):
    """A stretch of steps that ends when every instance is forgotten or the budget is spent.

    Attributes:
      step: ``step(key, state, batch) -> (state, info)``, pure; info holds one step's scalars.
      draws: ``draws(state) -> Draws``, from the shapes in the state alone.
      max_passes: budget in passes over the phase's data.
      min_steps: steps taken whatever the stopping rule says (a path that must be walked to its end).
      check_every: steps between two looks at the stopping rule; 0 is once a pass.
      jit: False where a step must run on the host (a solver in float64).
      spread: whether a batch may be split over the devices that the forget set is split over; not where a step takes
        gradients of single instances itself.
    """

    step: Callable[[Array, PyTree, Any], tuple[PyTree, Info]]
    draws: Callable[[PyTree], Draws]
    max_passes: int
    check_every: int = 1
    jit: bool = True
    min_steps: int = 0
    spread: bool = False


class Work(NamedTuple):
    """What a run takes at most: images in forward passes, per-example gradients, bytes of rows held at a time."""

    forward: int
    gradients: int
    row_bytes: int


@runtime_checkable
class Unlearner(Protocol):
    """A method bound to its static settings; equal settings compare and hash equal.

    A method whose state is not known from shapes may have ``work(problem) -> Work``, for estimates; one with a
    stopping rule of its own ``stopped(state) -> bool``, besides that of the loop (every instance is forgotten); one
    that cannot meet every request ``check(problem)``, which raises ValueError for it before any work.
    """

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stretches of work in order; empty for a one-shot edit."""
        ...

    def prepare(self, key: Array, problem: Problem, hparams: Mapping[str, Array]) -> PyTree:
        """Make the starting state: attack images, importance, teacher, optimiser."""
        ...

    def finish(self, state: PyTree) -> Model:
        """Return the unlearned model held by a state (any state, not only the last)."""
        ...

    def extras(self, state: PyTree) -> dict[str, Any]:
        """Return what a report may show beside the model (adversarial examples, ...)."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What the registry, the command line and the docs know of a method.

    Attributes:
      name: as on the command line.
      make: ``make(config) -> Unlearner``; reads the static fields of the config only.
      Config: frozen dataclass of hyper-parameters (``jaxunlearn._config``).
      summary: one line.
      goals: the goals it can pursue.
      needs: of "retain", "public", "taps", "init", artefact kinds; empty: model and forget set only.
      uses: of the same and "held", "original" (earlier requests): what it takes where it is given.
      cost: what dominates its time, in words.
      paper: author, year, where.
      vmappable: whether requests, seeds and strengths run under `jax.vmap`.
      strength: the traced hyper-parameter that trades forgetting for keeping, which comparisons tune; "" for none.
    """

    name: str
    make: Callable[[Any], Unlearner]
    Config: type
    summary: str
    goals: tuple[Goal, ...]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    cost: str
    paper: str
    vmappable: bool = True
    strength: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a run did. Never reports an instance as forgotten that is not.

    Attributes:
      model: the unlearned classifier.
      forgotten: (k,) bool, by a forward pass of the returned model.
      forgotten_at: (k,) int, the step from which the instance stayed forgotten
        to the end (0: from the start), else -1.
      stop_reason: why the run ended.
      steps: optimisation steps taken.
      history: per-step scalars by name, NumPy arrays of length ``steps``.
      seconds: wall-clock by phase of work.
      extras: what the method offers to a report.
      state: the loop's state, to go on from; None where a method has no phase.
    """

    model: Model
    forgotten: np.ndarray
    forgotten_at: np.ndarray
    stop_reason: StopReason
    steps: int
    history: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state: PyTree = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artefact:
    """What training time leaves behind, or a certificate; bound to one model by its digest.

    Attributes:
      kind: such as "codes", "moments", "proxies".
      version: of the layout of ``arrays``.
      arrays: named arrays.
      meta: JSON-able facts.
      model_digest: ``jaxunlearn._tree.digest`` of the model it was made from.
    """

    kind: str
    version: int
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    model_digest: str
