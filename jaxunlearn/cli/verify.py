"""``jaxunlearn verify``: check what a patch promises, from the certificate and the weights alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxunlearn import artefacts, convert, patches, wrappers
from jaxunlearn._types import Model, Recipe
from jaxunlearn.cli import _device, _errors, _flags, _model, _output, _progress

EPILOG = """\
exit status: 0 everything holds; 3 something does not; 2 wrong input: a damaged or changed file, another network

example:
  jaxunlearn unlearn --method prune ... --out runs/a
  jaxunlearn verify runs/a/certificate.safetensors --weights cifar10_resnet20.th
  jaxunlearn verify runs/a/certificate.safetensors --weights runs/a
"""


def main(argv: Sequence[str]) -> int:
    """Check a certificate against the network it was made for, with the patch or without."""
    parser = _flags.Parser(
        prog="jaxunlearn verify",
        usage="jaxunlearn verify CERTIFICATE --weights FILE [--arch NAME] [options]",
        description="Check a patch's certificate: by exact inequalities, and by sampling the network as it is served.",
        epilog=EPILOG,
    )
    parser.add_argument("certificate", metavar="CERTIFICATE", help="file that a run of the method prune left behind")
    _flags.add_model_flags(parser)
    parser.add_argument(
        "--samples", type=_flags.whole(1), default=200, metavar="N", help="points sampled in each region; default: 200"
    )
    parser.add_argument("--seed", type=_flags.seed, default=0, metavar="N", help="of the sampling; default: 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    with _device.chosen(args) as device, _progress.shown(quiet=args.quiet), _errors.user_input():
        certificate = patches.Certificate.from_artefact(artefacts.load(args.certificate, kind="certificate"))
        inside = _inside(args, certificate)
        verdict = patches.verify(certificate, inside, samples=args.samples, seed=args.seed)
    if args.json:
        checks = [check._asdict() for check in verdict.checks]
        facts = {name: getattr(verdict, name) for name in ("holds", "certified", "points", "regions", "shared")}
        _output.machine(facts | {"checks": checks})
    else:
        _tell(args, certificate, inside, verdict, device)
    if verdict.holds:
        return _errors.OK
    wrong = ", ".join(check.name for check in verdict.checks if not check.holds)
    _errors.say(f"{args.certificate} does not hold: {wrong}")
    return _errors.NOT_FORGOTTEN


def _inside(args: argparse.Namespace, certificate: patches.Certificate) -> Model:
    """Return the network inside the patch: the weights given, or what is inside the patch there."""
    path = None if args.weights is None else Path(args.weights).expanduser()
    known = certificate.about.get("recipe")
    recipe = None if known is None else Recipe.from_json(json.dumps(known))
    if path is not None and not path.is_dir() and recipe is not None:
        if args.arch is None and ":" in recipe.arch:
            raise ValueError(f"the certificate is for a network of your own: name it with --model {recipe.arch}")
        if args.arch in (None, recipe.arch) and args.mean is None and args.std is None:
            return convert.load_weights(path, recipe, _model.builder(args))
    model = _model.load(args, None)
    _check_recipe(model, recipe)
    parts = wrappers.unwrap(model)
    if parts is None or parts.name != "patch":
        return model
    same = parts.wrapper == certificate.wrapper and all(
        np.array_equal(np.asarray(parts.own[name]), value) for name, value in certificate.own.items()
    )
    if not same:
        raise ValueError(f"{args.weights} has another patch than the certificate is for")
    return parts.model


def _check_recipe(model: Model, recipe: Recipe | None) -> None:
    """Raise a ValueError where the same weights are in another network; the digest is of the weights alone."""
    mine = model.spec.recipe
    for name in ("arch", "kwargs", "mean", "std") if mine is not None and recipe is not None else ():
        found, wanted = getattr(mine, name), getattr(recipe, name)
        if found != wanted:
            raise ValueError(f"the certificate is for a network with {name} {wanted}, this one's is {found}")


def _tell(
    args: argparse.Namespace, certificate: patches.Certificate, inside: Model, verdict: patches.Verdict, device: str
) -> None:
    where = {"input": "inputs", "features": "features in front of the head"}[certificate.wrapper.space]
    rest = verdict.regions - verdict.certified - verdict.points
    regions = f"{verdict.regions} in {len(certificate.targets)} groups, of {where}"
    promised = f"{verdict.certified} regions"
    promised += f"; of {verdict.points} more the label at one point only" if verdict.points else ""
    promised += f"; of {rest} more nothing, a later group lies over their points" if rest else ""
    width = 1 / float(certificate.own["sharpness"])
    given = certificate.targets[certificate.group[certificate.certified]]
    labels = ", ".join(f"{label} on {(given == label).sum()}" for label in np.unique(given)) or "none"
    _output.facts(
        [
            ("network", _model.describe(inside)),
            ("certificate", certificate.statement),
            ("regions", regions),
            ("promised", promised),
            ("labels", labels),
            (
                "tube",
                f"{width:.3g} wide around each region, where nothing is promised",
            ),
            ("not promised", f"{100 * verdict.shared:.2f} % of the points sampled there, in reach of a later group"),
            ("device", f"{device}; sampled in float32, {args.samples} points a region"),
        ]
    )
    print()
    rows = [(check.name, "yes" if check.holds else "NO", check.detail) for check in verdict.checks]
    _output.table([("check", "holds", "found"), *rows], left=(0, 1, 2))
