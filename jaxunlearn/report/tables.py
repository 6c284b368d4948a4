"""Rows of text shared by the command line's table and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxunlearn.report.schema import SETS

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

HEADER = ("", "D_f %", "D_r %", "D_test %", "forgotten", "steps", "seconds", "stopped because")
REASONS = {
    "forgotten": "every instance is forgotten",
    "max_steps": "step budget is spent",
    "diverged": "a step was not finite",
    "completed": "the method is done",
    "interrupted": "interrupted",
}


def summary_table(records: Sequence[RunRecord | Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table of one or several runs, the header first.

    Runs that began at the same accuracies share one row "before"; else each
    run has its own. Accuracies are in percent, "-" where not measured;
    seconds are those of the unlearning itself, compilation included.

    Args:
      records: records, or contents of ``results.json``.
    """
    runs: list[Any] = [r if isinstance(r, Mapping) else r.results for r in records]
    shared = len({tuple(run["before"].values()) for run in runs}) == 1
    rows: list[tuple[str, ...]] = [HEADER]
    for number, run in enumerate(runs):
        if number == 0 or not shared:
            name = "before" if shared else f"before {run['method']}"
            rows.append((name, *_accuracies(run["before"]), "", "", "", ""))
        rows.append(
            (
                run["method"],
                *_accuracies(run["after"]),
                f"{run['forgotten']} of {len(run['instances'])}",
                str(run["steps"]),
                f"{unlearning_seconds(run):.1f}",
                REASONS[run["stop_reason"]],
            )
        )
    return rows


def unlearning_seconds(results: Mapping[str, Any]) -> float:
    """Return the seconds of the unlearning itself: preparing, stepping, verifying; no loading, no evaluation.

    Of a run that was resumed, those of the processes before count, too, as far as their state was gone on from.

    >>> unlearning_seconds({"seconds": {"load": 9.0, "earlier processes": 4.0, "prepare": 1.0, "unlearn": 2.0}})
    7.0
    """
    phases = ("earlier processes", "prepare", "unlearn", "verify")
    return float(sum(results["seconds"].get(phase, 0.0) for phase in phases))


def percent(fraction: float | None) -> str:
    """Return a fraction in percent with two decimals, "-" for None.

    >>> percent(0.5), percent(None)
    ('50.00', '-')
    """
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _accuracies(accuracies: Mapping[str, float | None]) -> list[str]:
    return [percent(accuracies[name]) for name in SETS]
