"""``jaxunlearn methods``: what there is to choose from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxunlearn.cli import _flags, _output

#: Optional inputs, in words.
USES = {
    "proxies": "images from inversion",
    "held": "instances forgotten earlier",
    "original": "the first network",
    "public": "public images",
    "anchors": "embeddings of the classes",
}


def main(argv: Sequence[str]) -> int:
    """List the methods of the registry, third parties' included."""
    parser = _flags.Parser(prog="jaxunlearn methods", description="List the unlearning methods.")
    parser.add_argument("--json", action="store_true", help="print one JSON list, hyper-parameters included")
    args = parser.parse_args(argv)

    from jaxunlearn import methods

    specs = methods.all_specs().values()
    if args.json:
        _output.machine([_plain(spec) for spec in specs], indent=1)
        return 0
    for spec in specs:
        print(spec.name)
        needs = ", ".join(("the model", "the forget set", *spec.needs))
        if spec.uses:
            needs += f"; uses where given: {', '.join(USES.get(name, name) for name in spec.uses)}"
        _output.facts(
            [
                ("does", spec.summary),
                ("goals", ", ".join(spec.goals)),
                ("needs", needs),
                ("cost", spec.cost),
                ("source", spec.paper),
            ],
            indent="  ",
        )
        print()
    print("`jaxunlearn unlearn --method NAME --help` shows a method's hyper-parameters.")
    return 0


def _plain(spec: object) -> dict[str, object]:
    from jaxunlearn._types import MethodSpec

    assert isinstance(spec, MethodSpec)
    published = spec.Config.published()  # type: ignore[attr-defined]
    hyper = {
        field.name: {
            "flag": _flags.flag(field.name),
            "default": field.default,
            "published": getattr(published, field.name),
            **{name: value for name, value in field.metadata.items() if value not in (None, "")},
        }
        for field in dataclasses.fields(spec.Config)
    }
    return {
        "name": spec.name,
        "summary": spec.summary,
        "goals": spec.goals,
        "needs": spec.needs,
        "uses": spec.uses,
        "cost": spec.cost,
        "paper": spec.paper,
        "hyper_parameters": hyper,
    }
