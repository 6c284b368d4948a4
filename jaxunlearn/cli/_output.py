"""Tables and text on standard output."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.cli import _errors

if TYPE_CHECKING:
    from jaxunlearn.report import RunRecord

#: Why a run stopped, in a table's cell.
BRIEF = {
    "forgotten": "all forgotten",
    "max_steps": "step budget spent",
    "diverged": "not finite",
    "completed": "done",
    "interrupted": "interrupted",
}


def table(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), whole: Sequence[int] = ()) -> None:
    """Print rows as a table, the first being the header.

    Args:
      rows: cells of text.
      left: columns aligned to the left; numbers stand on the right.
      whole: columns whose cells are not broken over lines where the terminal is narrow, such as names to copy.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(rows[0]):
        grid.add_column(name, justify="left" if number in left else "right", overflow="fold", no_wrap=number in whole)
    for row in rows[1:]:
        grid.add_row(*(Text(_errors.visible(cell)) for cell in row))
    Console(width=width(), highlight=False, markup=False).print(grid)


def summary(records: Sequence[RunRecord]) -> None:
    """Print accuracies before and after, steps, seconds and why each run stopped, in 80 columns."""
    from jaxunlearn.report.tables import REASONS, summary_table

    brief = {REASONS[reason]: words for reason, words in BRIEF.items()}
    header, *rows = summary_table(records)
    table([(*header[:-1], "stopped"), *((*row[:-1], brief.get(row[-1], row[-1])) for row in rows)], left=(0, 7))


def depth(record: RunRecord) -> None:
    """Print, where it was measured, how much of what looks like the forgotten images is still given the old label."""
    from jaxunlearn.report.tables import percent

    found = record.depth or {}
    shares = {name: share for name, share in found.get("recognised", {}).items() if name != "exact"}
    if not shares:
        return
    print()
    table([("", *(f"{name} %" for name in shares)), ("still given the old label", *map(percent, shares.values()))])


def outcome(path: Path, results: Mapping[str, Any], status: int) -> None:
    """Print what came of a run as one JSON object, for machines."""
    machine({"path": str(path), "exit_status": status, **found(results)})


def found(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told to machines of the results of a run."""
    from jaxunlearn.report.tables import unlearning_seconds

    return {
        **{name: results[name] for name in ("method", "goal", "goal_met", "forgotten")},
        "of": len(results["instances"]),
        "not_forgotten": [str(item["id"]) for item in results["instances"] if not item["forgotten"]],
        "remembered_again": [str(item["id"]) for item in results.get("earlier", ()) if not item["forgotten"]],
        **{name: results[name] for name in ("before", "after", "stop_reason", "steps")},
        "seconds": unlearning_seconds(results),
        "recognised": (results.get("depth") or {}).get("recognised"),
    }


def machine(value: Any, *, indent: int | None = None) -> None:
    """Print strict JSON; what is no finite number is null."""
    print(json.dumps(_strict(value), allow_nan=False, indent=indent))


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(text: str) -> None:
    """Print a line; what a path in it has of controls is written out."""
    print(_errors.visible(text))


def facts(pairs: Sequence[tuple[str, str]], *, indent: str = "") -> None:
    """Print names and values, one a line, values aligned and wrapped; at once, since a log is to begin with a plan."""
    name_width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        first = f"{indent}{name:<{name_width}}"
        print(
            textwrap.fill(
                _errors.visible(value),
                width(),
                initial_indent=first,
                subsequent_indent=" " * len(first),
                break_on_hyphens=False,
            )
            or first
        )
    sys.stdout.flush()


def width() -> int:
    """Return the columns there are; into a pipe or file there is no edge to wrap at, unless COLUMNS sets one."""
    return shutil.get_terminal_size((110, 24)).columns
