"""The contract every method keeps, as checks that any author can run on their own method.

>>> from jaxunlearn import methods, testing
>>> testing.check_method(methods.get("neggrad"))
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _config, _tree, curvature, loop, proxies
from jaxunlearn._types import Array, Artefact, Batch, MethodSpec, Model, ModelSpec, Params, Problem, Unlearner

#: Settings that make any method small; a method takes those it has.
SMALL: dict[str, Any] = dict(
    draws=2,
    attack_steps=3,
    max_passes=4,
    forget_batch=4,
    companion_batch=8,
    learning_rate=0.05,
    proxies=64,
    whole_class=True,
)


@dataclasses.dataclass
class TinyNet:
    """A two-layer network with batch statistics, in plain JAX; counts how often it is traced."""

    num_classes: int = 5
    traces: int = 0

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(
        self, params: Params, model_state: Params, x: Array, *, train: bool = False, rngs: Any = None
    ) -> tuple[Array, Params]:
        layers, model_state = self._layers(params, model_state, x, train)
        return layers["head"], model_state

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """Its size and parts; one object, so that what is compiled for a network serves all its weights."""
        return ModelSpec(
            num_classes=self.num_classes,
            input_shape=(3, 3, 1),
            head=("head",),
            taps_fn=self.taps,
            init_fn=lambda key: self.init(key, 9),
        )

    def taps(self, params: Params, model_state: Params, x: Array) -> dict[str, Array]:
        """Return what its two linear layers get and give in eval mode."""
        return self._layers(params, model_state, x, False)[0]

    def _layers(self, params: Params, model_state: Params, x: Array, train: bool) -> tuple[dict[str, Array], Params]:
        self.traces += 1
        first, norm, head = params["first"], params["norm"], params["head"]
        x = x.reshape(x.shape[0], -1)
        h = out = x @ first["kernel"] + first["bias"][None]
        mean, var = model_state["norm"]["mean"], model_state["norm"]["var"]
        if train:
            batch_mean, batch_var = jnp.mean(h, axis=0), jnp.var(h, axis=0)
            moved = {"mean": 0.9 * mean + 0.1 * batch_mean, "var": 0.9 * var + 0.1 * batch_var}
            model_state = {"norm": moved}
            mean, var = batch_mean, batch_var
        h = (h - mean[None]) * jax.lax.rsqrt(var[None] + 1e-5) * norm["scale"][None] + norm["bias"][None]
        features = jax.nn.relu(h)
        logits = features @ head["kernel"] + head["bias"][None]
        return {"first:in": x, "first": out, "head:in": features, "head": logits}, model_state

    def init(self, key: Array, features: int, width: int = 16) -> tuple[Params, Params]:
        """Draw fresh weights."""
        keys = jax.random.split(key, 2)
        params = {
            "first": {"kernel": jax.random.normal(keys[0], (features, width)), "bias": jnp.zeros(width)},
            "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
            "head": {
                "kernel": jax.random.normal(keys[1], (width, self.num_classes)),
                "bias": jnp.zeros(self.num_classes),
            },
        }
        return params, {"norm": {"mean": jnp.zeros(width), "var": jnp.full(width, 5.0)}}


def tiny_problem(
    seed: int = 0,
    *,
    k: int = 8,
    goal: str = "misclassify",
    net: TinyNet | None = None,
    needs: Collection[str] = (),
) -> Problem:
    """Make a small problem whose forget set the network gets right, so that there is something to forget.

    Args:
      seed: of weights and images.
      k: forget instances.
      goal: "misclassify" or "relabel".
      net: whose weights are drawn, or None for another one.
      needs: kinds of artefacts to make, see `MethodSpec`.
    """
    net = TinyNet() if net is None else net
    keys = jax.random.split(jax.random.key(seed), 3)
    params, model_state = net.init(keys[0], 9)
    model = Model(params=params, model_state=model_state, apply_fn=net, spec=net.spec)
    shape = net.spec.input_shape
    x = jax.random.uniform(keys[1], (k + 16, *shape))
    y = np.asarray(jnp.argmax(model(x), axis=-1))
    target = (y + 1) % net.num_classes if goal == "relabel" else None
    return Problem(
        model=model,
        forget=Batch.of(x[:k], y[:k], None if target is None else target[:k]),
        retain=Batch.of(x[k:], y[k:]),
        public=jax.random.uniform(keys[2], (16, *shape)),
        artefacts={kind: make(model, np.asarray(x), y) for kind, make in ARTEFACTS.items() if kind in needs},
        goal=goal,  # type: ignore[arg-type]
    )


#: Kind -> ``make(model, x, y)``, from all images of a problem.
ARTEFACTS: dict[str, Callable[[Model, np.ndarray, np.ndarray], Artefact]] = {
    "codes": lambda model, x, y: proxies.codes_artefact(  # of all classes, also where no image here has one
        model, proxies.draw_codes(jax.random.key(0), model), [*y, *range(model.spec.num_classes)], mix=0.1
    ),
    "moments": lambda model, x, y: curvature.moments_artefact(model, x),
}


def small_config(spec: MethodSpec, **changes: Any) -> Any:
    """Return the method's default config made small."""
    have = {f.name for f in dataclasses.fields(spec.Config)}
    return _config.from_mapping(spec.Config, {k: v for k, v in SMALL.items() if k in have} | changes)


def problem_maker(spec: MethodSpec) -> Callable[..., Problem]:
    """Return `tiny_problem` with the artefacts that a method needs, and one network for all that it makes."""
    return partial(tiny_problem, needs=spec.needs, net=TinyNet())


def check_method(spec: MethodSpec, make_problem: Callable[..., Problem] | None = None) -> None:
    """Run every check of the contract on a method.

    Args:
      spec: the method.
      make_problem: ``make_problem(seed, goal=...)``, for a method that needs more than `problem_maker` gives.

    Raises:
      AssertionError: naming the check that failed.
    """
    make_problem = problem_maker(spec) if make_problem is None else make_problem
    for check in CHECKS:
        try:
            check(spec, make_problem)
        except AssertionError as error:
            raise AssertionError(f"{spec.name}: {check.__name__}: {error}") from error


def declares_itself(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """The spec and its Config say what the command line and the docs need; ``published()`` exists."""
    assert all((spec.summary, spec.cost, spec.paper, spec.goals)), "summary, cost, paper and goals must be said"
    assert isinstance(spec.Config.published(), spec.Config), "published() must return the method's own Config"  # type: ignore[attr-defined]
    for field in dataclasses.fields(spec.Config):
        assert field.metadata.get("help"), f"{field.name} has no help"
        assert not field.metadata["traced"] or isinstance(field.default, float), f"{field.name} is traced, not a float"
    fields = {field.name: field for field in dataclasses.fields(spec.Config)}
    tuned = not spec.strength or (spec.strength in fields and fields[spec.strength].metadata["traced"])
    assert tuned, f"strength must name a traced field; got {spec.strength!r}"
    untuned = "learning_rate" in fields and not spec.strength
    assert not untuned, "a method with a learning rate must name its strength, or comparisons would not tune it"
    json.dumps(dataclasses.asdict(spec.Config()))
    config = spec.Config()
    assert spec.make(_config.static(config)) == spec.make(_config.static(config)), "equal configs, equal unlearners"
    hash(spec.make(_config.static(config)))


def reports_honestly(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """For every goal the result's claims hold on the returned model, and the input model is untouched."""
    for goal in spec.goals:
        problem = make_problem(0, goal=goal)
        before = _tree.digest(problem.model.params)
        result = loop.run(problem, method=spec, config=small_config(spec), key=jax.random.key(0))
        predicted = np.asarray(jnp.argmax(result.model(problem.forget.x), axis=-1))
        met = predicted != problem.forget.y if goal == "misclassify" else predicted == problem.forget.target
        assert (result.forgotten == met).all(), f"forgotten differs from the model's own answers ({goal})"
        assert ((result.forgotten_at >= 0) <= result.forgotten).all(), "forgotten_at of an instance not forgotten"
        assert (result.stop_reason == "forgotten") <= bool(result.forgotten.all()), "stopped as forgotten, but is not"
        assert all(len(column) == result.steps for column in result.history.values()), "history and steps differ"
        assert _tree.digest(problem.model.params) == before, "the input model was changed"


def is_deterministic(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """The same key gives the same weights, bit for bit."""
    problem, config = make_problem(1, goal=spec.goals[0]), small_config(spec)
    runs = [loop.run(problem, method=spec, config=config, key=jax.random.key(3)) for _ in range(2)]
    assert _tree.digest(runs[0].model.params) == _tree.digest(runs[1].model.params), "two runs of one key differ"


def traces_once(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """Another key, other traced values and other weights compile nothing anew."""
    net = TinyNet()
    config = small_config(spec)
    make = partial(make_problem, goal=spec.goals[0], net=net)
    again = make(1)
    for problem in (make(0), again):
        loop.run(problem, method=spec, config=config, key=jax.random.key(0))
    net.traces = 0
    changes = {f.name: getattr(config, f.name) * 0.5 for f in dataclasses.fields(config) if f.metadata["traced"]}
    loop.run(again, method=spec, config=dataclasses.replace(config, **changes), key=jax.random.key(9))
    assert net.traces == 0, f"the network was traced {net.traces} times again for other traced values"


def device_loop_equals_host_loop(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """Both drivers take the same steps and end at the same weights."""
    problem, config = make_problem(2, goal=spec.goals[0]), small_config(spec)
    host, device = (
        loop.run(problem, method=spec, config=config, key=jax.random.key(1), loop=where)  # type: ignore[arg-type]
        for where in ("host", "device")
    )
    assert host.steps == device.steps, f"{host.steps} steps on the host, {device.steps} on the device"
    _close(host.model.params, device.model.params, "host and device loop")


def lanes_equal_single_runs(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """Vmapped over keys, requests and models, every lane equals its own run."""
    if not spec.vmappable:
        return
    net = TinyNet()
    problems = [make_problem(seed, goal=spec.goals[0], net=net) for seed in range(2)]
    config = small_config(spec)
    unlearner: Unlearner = spec.make(_config.static(config))
    keys = jax.random.split(jax.random.key(5), 2)
    hparams = _config.traced(config)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    lanes = jax.vmap(partial(loop.solve, unlearner), in_axes=(0, 0, None))(keys, stacked, hparams)
    for lane, problem in enumerate(problems):
        alone = loop.run(problem, method=spec, config=config, key=keys[lane])
        mine = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes)
        assert int(mine.step) == alone.steps, f"lane {lane} took {int(mine.step)} steps, alone {alone.steps}"
        _close(unlearner.finish(mine.inner).params, alone.model.params, f"lane {lane} and its single run")


def sharded_equals_single(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """With the forget set spread over all devices the weights are the same."""
    devices = jax.devices()
    if len(devices) < 2:
        return
    from jaxunlearn import sharding

    problem, config = make_problem(3, goal=spec.goals[0]), small_config(spec)
    mesh = sharding.data_mesh(devices[: problem.forget.x.shape[0]])
    spread = dataclasses.replace(
        problem,
        forget=sharding.shard_batch(problem.forget, mesh),
        model=sharding.replicate(problem.model, mesh),
        retain=sharding.replicate(problem.retain, mesh),
        public=sharding.replicate(problem.public, mesh),
    )
    one, many = (loop.run(p, method=spec, config=config, key=jax.random.key(2)) for p in (problem, spread))
    assert one.steps == many.steps, f"{one.steps} steps on one device, {many.steps} on {len(devices)}"
    _close(one.model.params, many.model.params, "one device and many")


def goes_on_from_a_saved_state(spec: MethodSpec, make_problem: Callable[..., Problem]) -> None:
    """Stopped after two steps, saved, loaded and resumed, a run ends where an unbroken one does."""
    from jaxunlearn import checkpoint

    problem, config = make_problem(4, goal=spec.goals[0]), small_config(spec)
    whole = loop.run(problem, method=spec, config=config, key=jax.random.key(7))

    def stop_at_two(event: loop.Event) -> None:
        if event.steps >= 2:
            raise KeyboardInterrupt

    part = loop.run(problem, method=spec, config=config, key=jax.random.key(7), callback=stop_at_two)
    if part.state is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_state(Path(folder) / "state", part.state)
        state = checkpoint.load_state(Path(folder) / "state", like=part.state)
    rest = loop.run(problem, method=spec, config=config, key=jax.random.key(7), resume=state)
    assert rest.steps == whole.steps, f"{rest.steps} steps when resumed, {whole.steps} unbroken"
    assert _tree.digest(rest.model.params) == _tree.digest(whole.model.params), "resumed weights differ"


CHECKS = (
    declares_itself,
    reports_honestly,
    is_deterministic,
    traces_once,
    device_loop_equals_host_loop,
    lanes_equal_single_runs,
    sharded_equals_single,
    goes_on_from_a_saved_state,
)


def _close(a: Any, b: Any, what: str) -> None:
    for (path, x), y in zip(_tree.flatten_paths(a).items(), _tree.flatten_paths(b).values(), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-4, atol=1e-5, err_msg=f"{what}: {path}")
