"""The HTML report: one file that needs nothing else, on a screen, a phone or paper, light or dark."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxunlearn
from jaxunlearn.report import words
from jaxunlearn.report.tables import summary_table

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

#: Rows of the table of instances, and of those how many have a picture.
MAX_ROWS, MAX_THUMBS = 5000, 1000
#: Longest side of a picture in that table, in pixels.
SIDE = 96


def html(record: RunRecord, pictures: Mapping[str, str], folder: Path) -> str:
    """Return ``report.html``: no script, style or picture is fetched from anywhere.

    Whatever comes from the outside (ids, class names, the command) is escaped.

    Args:
      record: the run.
      pictures: caption by file name, in ``folder``; they become part of the page.
    """
    rows, more = words.instances(record, MAX_ROWS)
    depth, deep = words.depth(record)
    shown = len(rows) - 1
    template: Any = _environment().get_template("report.html")
    return str(
        template.render(
            version=jaxunlearn.__version__,
            title=words.title(record),
            asked=len(record.ids),
            done=int(record.forgotten.sum()),
            summary=words.summary(record),
            pictures=[(caption, _data(folder / name)) for name, caption in pictures.items()],
            claims=words.claims(record),
            numbers=summary_table([record]),
            note=words.numbers(record),
            depth=depth,
            deep=deep,
            earlier=words.earlier(record),
            instances=rows,
            ids=[str(name) for name in record.ids[:shown]],
            forgotten=record.forgotten[:shown].tolist(),
            thumbs=[*_thumbs(record, min(shown, MAX_THUMBS)), *[""] * max(shown - MAX_THUMBS, 0)]
            if record.images
            else [],
            images=record.images,
            small=max(np.shape(record.forget.x)[1:3], default=0) < SIDE,
            more=more,
            command=record.command,
            settings=words.settings(record),
            kept=words.kept(record),
            versions=record.results["versions"],
            digests=record.digests,
            computed=words.digests(record),
        )
    )


@functools.cache
def _environment() -> Any:
    import jinja2
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    # No HTML: whatever else there is, is text.
    marks = MarkdownIt("zero").enable(["backticks", "emphasis", "escape", "link"])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxunlearn.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["inline"] = lambda text: Markup(marks.renderInline(text))
    return environment


def _thumbs(record: RunRecord, count: int) -> list[str]:
    """Return the first images as data addresses; of inputs that are no images, none."""
    from PIL import Image

    x = np.asarray(record.forget.x[:count])
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4):
        return [""] * count
    low, high = record.box
    pixels = np.round(255 * np.clip((x - low) / (high - low), 0, 1)).astype(np.uint8)
    found = []
    for image in pixels:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "png", optimize=True)
        found.append(_address(file.getvalue()))
    return found


def _data(path: Path) -> str:
    return _address(path.read_bytes())


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
