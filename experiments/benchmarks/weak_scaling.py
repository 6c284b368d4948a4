"""Measure weak scaling: instances per device fixed, on one device, on two, and so on to all.

    python -m experiments.benchmarks.weak_scaling                         # all devices of this host
    python -m experiments.benchmarks.weak_scaling --network resnet18_cifar --each 256
    python -m experiments.benchmarks.weak_scaling --distributed           # on every host, started at the same time
    python -m experiments.benchmarks.weak_scaling --fake 4 --quick        # smoke test: its figures mean nothing
    python -m experiments.benchmarks.weak_scaling --from RESULT.json      # print an earlier table

Attack (L2-PGD), importance (MAS, one gradient an instance) and one step of
ADV+IMP (BatchNorm frozen, all instances and as many adversarial images in one
batch). Fresh weights and random images: neither changes the arithmetic. Weights
are copied to each device, instances are split. The numbers of devices take
turns, the order rotates by repeat; what is measured was compiled before.
Efficiency is the time on one device over the time on n in the same repeat: 1 is
perfect. With several hosts a number of devices is spread evenly over them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.machine import keep, positive, spread

WORK = ("attack", "importance", "step")
MEANINGLESS = "Fake devices share the cores of one machine: these figures show that it runs, and mean nothing else."


def counts(most: int) -> list[int]:
    """Return 1, 2, 4, ... and the largest number itself.

    >>> counts(6)
    [1, 2, 4, 6]
    """
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]


def chosen(each_host: int) -> list[Any]:
    """Return so many devices of every host, in the order of `jax.devices()`."""
    import jax

    taken: dict[int, int] = {}
    devices = []
    for device in jax.devices():
        taken[device.process_index] = taken.get(device.process_index, 0) + 1
        if taken[device.process_index] <= each_host:
            devices.append(device)
    return devices


def prepared(network: str, devices: list[Any], each: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Return one call for each kind of work on ``each`` instances a device."""
    import jax

    from jaxunlearn import attacks, importance, loop, methods, models, sharding
    from jaxunlearn._config import static, traced
    from jaxunlearn._types import Batch, Problem

    mesh = sharding.data_mesh(devices)
    model = sharding.replicate(models.from_recipe(models.recipe(network), key=jax.random.key(0)), mesh)
    n, own = each * len(devices), each * sum(d.process_index == jax.process_index() for d in devices)
    first = own * jax.process_index()
    rng = np.random.default_rng(jax.process_index())
    loaded = Batch.of(
        rng.uniform(*model.spec.box, size=(own, *model.spec.input_shape)).astype(np.float32),
        rng.integers(0, model.spec.num_classes, own),
    )._replace(index=np.arange(first, first + own, dtype=np.int32))
    forget = sharding.from_processes(loaded, mesh)

    spec = methods.get("adv-imp")
    config = spec.Config(draws=1, attack_steps=1, forget_batch=n, companion_batch=n)
    state = loop.start(
        spec.make(static(config)), jax.random.key(0), Problem(model=model, forget=forget), traced(config)
    )
    advance = jax.jit(loop.advance, static_argnums=0, static_argnames=("phase", "part", "split"))
    mas = importance.mas(model.apply_fn, microbatch_size=min(each, 64), loop="device")

    def attack() -> Any:
        return attacks.adversarial_set(
            jax.random.key(1),
            model,
            forget,
            draws=1,
            epsilon=4.0,
            step_size=0.1,
            steps=steps,
            microbatch_size=min(each, 256),
        ).x

    return {
        "attack": attack,
        "importance": lambda: mas(model.params, model.model_state, forget.x),
        "step": lambda: advance(spec.make(static(config)), state, phase=0, part=0, split=forget.x.sharding)[0].step,
    }


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds of a call; hosts begin together."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("weak_scaling")
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def measure(network: str, each: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row a repeat, kind of work and number of devices."""
    import jax

    hosts = jax.process_count()
    sets = [chosen(host) for host in counts(jax.local_device_count())]
    runs = {len(devices): prepared(network, devices, each, steps) for devices in sets}
    for n, run in runs.items():
        for what in WORK:
            timed(run[what])
        print(f"{n} devices are warm", file=sys.stderr)
    rows = []
    for repeat in range(repeats):
        turn = repeat % len(runs)
        for what in WORK:
            for n in [*runs][turn:] + [*runs][:turn]:
                rows.append({"what": what, "devices": n, "repeat": repeat, "seconds": timed(runs[n][what])})
    return [row | {"hosts": hosts} for row in rows]


def table(kept: dict[str, Any]) -> str:
    """Return efficiency by number of devices, median and range over repeats, as Markdown."""
    lines = ["| work | devices | instances | s, median (range) | efficiency, median (range) |", "|---|---|---|---|---|"]
    least = min(row["devices"] for row in kept["rows"])
    for what in WORK:
        rows = [row for row in kept["rows"] if row["what"] == what]
        alone = {row["repeat"]: row["seconds"] for row in rows if row["devices"] == least}
        for n in sorted({row["devices"] for row in rows}):
            seconds = {row["repeat"]: row["seconds"] for row in rows if row["devices"] == n}
            shares = [alone[repeat] / s for repeat, s in seconds.items()]
            cells = (what, str(n), f"{n * kept['each']:,}", spread(list(seconds.values()), 3), spread(shares, 2))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", MEANINGLESS] if kept["fake"] else lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar_resnet20")
    parser.add_argument("--each", type=positive, default=256, help="instances a device")
    parser.add_argument("--steps", type=positive, default=10, help="of the attack")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--quick", action="store_true", help="8 instances a device, 2 steps, 2 repeats, a tiny network")
    parser.add_argument("--distributed", action="store_true", help="several hosts, see docs/devices.md")
    parser.add_argument("--fake", type=int, default=0, metavar="N", help="N fake devices of the CPU")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--from", dest="source", type=Path, help="print an earlier result, run nothing")
    args = parser.parse_args(argv)
    if args.source is not None:
        print(table(json.loads(args.source.read_text())))
        return
    if args.quick:
        args.network, args.each, args.steps, args.repeats = "digits_cnn", 8, 2, 2

    import jax

    if args.fake:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.fake)
    if args.distributed:
        jax.distributed.initialize()
    now, device = datetime.datetime.now(datetime.UTC), jax.devices()[0]
    flags = "".join(f" --{name} {getattr(args, name)}" for name in ("network", "each", "steps", "repeats"))
    kept = {
        "command": f"python -m experiments.benchmarks.weak_scaling{flags}",
        "date": now.isoformat(timespec="seconds"),
        "hardware": {
            "devices": len(jax.devices()),
            "hosts": jax.process_count(),
            "kind": device.device_kind,
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        },
        # More devices than one of a CPU are its cores dealt out.
        "fake": device.platform == "cpu" and jax.local_device_count() > 1,
        "each": args.each,
        "rows": measure(args.network, args.each, args.steps, args.repeats),
    }
    if jax.process_index():
        return
    keep(kept, args.out, "weak_scaling", now)
    print(table(kept))


if __name__ == "__main__":
    main()
