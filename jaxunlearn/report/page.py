"""The Markdown report: plain words first, then numbers, pictures and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxunlearn.report import words
from jaxunlearn.report.tables import summary_table

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

MAX_ROWS = 256


def markdown(record: RunRecord, pictures: Mapping[str, str]) -> str:
    """Return ``report.md``.

    Args:
      record: the run.
      pictures: caption by file name, beside the report.
    """
    parts = [f"# {words.title(record)}", *(f"**{lead}.** {text}" for lead, text in words.summary(record))]
    parts += ["## What this shows, and what it does not", table(words.claims(record))]
    parts += ["## Numbers", table(summary_table([record]), right=range(1, 7)), words.numbers(record)]
    if pictures:
        parts += ["## Pictures", *(f"{caption}.\n\n![{caption}]({name})" for name, caption in pictures.items())]
    rows, more = words.instances(record, MAX_ROWS)
    parts += ["## Instances", table(rows), more]
    rows, sentences = words.depth(record)
    parts += ["## Depth", table(rows, right=(1,)), *sentences] if rows else []
    earlier = words.earlier(record)
    parts += ["## Earlier requests, measured again", earlier] if earlier else []
    return "\n\n".join(part for part in [*parts, *_again(record)] if part) + "\n"


def _again(record: RunRecord) -> list[str]:
    parts = ["## How to do it again"]
    parts += [f"```\n{record.command}\n```"] if record.command else []
    parts += [f"Settings: `{words.settings(record)}`"]
    parts += [table([("what", "version"), *record.results["versions"].items()])]
    if record.digests:
        parts += [table([("SHA-256 of", ""), *((name, f"`{digest}`") for name, digest in record.digests.items())])]
        parts += [words.digests(record)]
    return [*parts, words.kept(record)]


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a Markdown table, the header first.

    >>> print(table([("a", "b"), ("1", "x|y")], right=(0,)))
    | a | b |
    | ---: | --- |
    | 1 | x\\|y |
    """
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [escaped[0], rule, *escaped[1:]])
