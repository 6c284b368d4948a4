"""The pictures of a run. Object-oriented matplotlib: no global state, no display."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxunlearn import _files
from jaxunlearn._types import Batch

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d8dee4"
GOOD, BAD, BLUE, ORANGE = "#1a7f37", "#cf222e", "#0969da", "#bc4c00"
SETS = {"forget": (BAD, "forget set $D_f$"), "retain": (BLUE, "retain set $D_r$"), "test": (GOOD, "test set")}
MAX_IMAGES, MAX_CLASSES, DPI = 48, 20, 120
#: What a method may say of margins -> the step its first value belongs to, colour, line, words.
MARGINS = {
    "largest_margin": (0, INK, "-", "measured"),
    "predicted_margin": (1, ORANGE, "--", "as the step before predicted"),
}
#: Up to so many steps each is a point; more make a staircase.
FEW_STEPS = 30
#: Names come from outside: a dollar in them begins no formula.
AS_IT_IS: dict[str, Any] = {"parse_math": False}
#: Asked, as far as they are installed, for letters that matplotlib's own font lacks.
ALPHABETS = (
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Malgun Gothic",
    "PingFang SC",
    "Arial Unicode MS",
)


def draw(folder: Path, record: RunRecord) -> dict[str, str]:
    """Write every picture that a record has the data for and may show, and return what each shows by file name."""
    pictures = {}
    for name, (figure, caption) in made(record).items():
        save(folder / f"{name}.png", figure)
        pictures[f"{name}.png"] = caption
    return pictures


def save(path: Path, figure: Any) -> None:
    """Write a figure as PNG; letters that no font has are boxes there, and text in reports."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=DPI, facecolor="white")


def made(record: RunRecord) -> dict[str, tuple[Any, str]]:
    """Return every figure that a record has the data for and may show, and what it shows, by name."""
    makers: dict[str, tuple[Callable[[RunRecord], Any], str]] = {
        "forgotten": (forgotten, "The forgotten images: true label, old and new prediction with confidence"),
        "curves": (curves, "Accuracy, forgotten instances, and loss or margin over the steps"),
        "transitions": (transitions, "Where the forgotten instances went: true class to new class"),
        "adversarial": (adversarial, "Adversarial examples of the forget set beside their originals"),
        "proxies": (proxies, "Some of the images that stood in for data: on them the old answers were held"),
    }
    import matplotlib

    shown = makers if record.images else {name: makers[name] for name in ("curves", "transitions")}
    with matplotlib.rc_context({"font.family": _fonts()}):
        drawn = {name: (make(record), caption) for name, (make, caption) in shown.items()}
    return {name: (figure, caption) for name, (figure, caption) in drawn.items() if figure is not None}


def forgotten(record: RunRecord) -> Any:
    """Draw the forget set in a grid; of a large one those not forgotten first, and says how many are left out."""
    order = np.argsort(record.forgotten, kind="stable")[:MAX_IMAGES]
    columns = min(len(order), 8)
    rows = -(-len(order) // columns)
    head = 0.7
    figure = new_figure(max(1.5 * columns + 0.3, 6.2), 2.2 * rows + head)
    k, done = len(record.ids), int(record.forgotten.sum())
    title = (
        f"{done} of {k} images {'misclassified' if record.goal == 'misclassify' else 'relabelled'} by {record.method}"
    )
    note = "was, now: the network's answer and its confidence; green: forgotten, red: not"
    if len(order) < k:
        note = f"{len(order)} of {k} shown, those not forgotten first; {note}"
    heading(figure, title, note)
    width, height = figure.get_size_inches()
    margin = (width - 1.5 * columns) / 2
    instances = record.results["instances"]
    for place, i in enumerate(order):
        row, column = divmod(place, columns)
        left, top = margin + 1.5 * column, height - head - 2.2 * row
        axes = figure.add_axes((left / width + 0.1 / width, (top - 1.5) / height, 1.3 / width, 1.3 / height))
        colour = GOOD if record.forgotten[i] else BAD
        _image(axes, record.forget.x[i], record.box, colour)
        item = instances[i]
        axes.set_title(_id(item["id"]), fontsize=8.5, color=INK, pad=3, **AS_IT_IS)
        lines = (
            ("true", _name(record, item["label"]), "", INK),
            ("was", _name(record, item["before"]), _share(item["confidence_before"]), MUTED),
            ("now", _name(record, item["after"]), _share(item["confidence_after"]), colour),
        )
        for n, (word, name, share, ink) in enumerate(lines):
            y = -0.14 - 0.125 * n
            text = f"{_short(name, 16 - len(share))}, {share}" if share else _short(name, 17)
            axes.text(0, y, word, transform=axes.transAxes, fontsize=7.5, color=MUTED)
            axes.text(0.23, y, text, transform=axes.transAxes, fontsize=7.5, color=ink, **AS_IT_IS)
    return figure


def curves(record: RunRecord) -> Any:
    """Draw accuracy, forgotten instances and losses over the steps; ends only where nothing lies between."""
    history: Mapping[str, np.ndarray] = {name: np.asarray(v) for name, v in record.result.history.items()}
    kept = {n: v for n, v in history.items() if len(v) and np.isfinite(v).any()}
    losses = {n: v for n, v in kept.items() if "loss" in n}
    margins = {n: v for n, v in kept.items() if n in MARGINS and not losses}
    figure = new_figure(12 if losses or margins else 8.4, 3.6)
    panels = figure.subplots(1, 3 if losses or margins else 2)
    steps, k = record.result.steps, len(record.ids)
    span = max(steps, 1)
    # Few steps are points with nothing between; of none there are two ends.
    dots = {"marker": "o", "markersize": 4}
    walk: dict[str, Any] = dots if 0 < steps <= FEW_STEPS else {"drawstyle": "steps-post"}

    label, before = np.asarray(record.forget.y), np.asarray(record.logits_before).argmax(axis=1)
    goal_before = before != label if record.goal == "misclassify" else before == np.asarray(record.forget.target)
    count = np.concatenate([[goal_before.sum()], history.get("forgotten", [record.forgotten.sum()])])
    at = np.linspace(0, span, len(count))

    axes, ends_only = panels[0], False
    for name, (colour, words) in SETS.items():
        style: dict[str, Any] = {"marker": "o", "markersize": 3}
        points = [tuple(p) for p in record.curve.get(name, ())]
        words += ", a sample" if points else ""
        if name == "forget" and not points and record.goal == "misclassify" and steps > 0:
            points, style = list(zip(at.tolist(), (1 - count / k).tolist(), strict=True)), walk
        first, last = record.before.get(name), record.after.get(name)
        if not points and first is not None and last is not None:
            points, style, ends_only = (
                [(0, first), (span, last)],
                dots | {"linestyle": "--"},
                steps > 0,
            )
        if points:
            x, y = np.array(points, float).T
            axes.plot(x, 100 * y, color=colour, label=words, linewidth=1.8, clip_on=False, **style)
    axes.set_ylim(0, 103)
    _panel(axes, "Accuracy, %" + (" (dashed: only the ends were measured)" if ends_only else ""), steps)
    axes.legend(frameon=False, fontsize=8, loc="best", handlelength=2.8)

    axes = panels[1]
    style = walk if steps > 0 else dots | {"linestyle": "--"}
    axes.plot(at, count, color=INK, linewidth=1.8, clip_on=False, **style)
    axes.axhline(k, color=GOOD, linewidth=1, linestyle=":")
    axes.set_ylim(0, k * 1.04)
    axes.yaxis.get_major_locator().set_params(integer=True)
    _panel(axes, f"Forgotten instances, of {k}", steps)

    for (name, values), colour in zip(losses.items(), (ORANGE, BLUE, GOOD, BAD, MUTED), strict=False):
        dot = "." if len(values) == 1 else ""
        panels[2].plot(range(1, len(values) + 1), values, color=colour, linewidth=1.6, label=_words(name), marker=dot)
    for name, values in margins.items():
        start, colour, line, words = MARGINS[name]
        x = range(start, start + len(values))
        panels[2].plot(x, values, color=colour, linewidth=1.6, linestyle=line, label=words, marker="o", markersize=4)
    if margins:
        panels[2].axhline(0, color=GOOD, linewidth=1, linestyle=":")
    if losses or margins:
        _panel(panels[2], "Loss" if losses else "Largest margin, logits (below 0: all forgotten)", steps)
        panels[2].legend(frameon=False, fontsize=8, loc="best")
    heading(
        figure,
        f"{record.method}, {'a one-shot edit' if record.result.stop_reason == 'completed' else f'{steps} steps'}",
        "",
    )
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    return figure


def transitions(record: RunRecord) -> Any:
    """Draw how many instances of each true class now get each class; of many classes those that occur."""
    from matplotlib.patches import Rectangle

    true = np.asarray(record.forget.y)
    new = np.array([-1 if item["after"] is None else item["after"] for item in record.results["instances"]])
    classes = np.shape(record.logits_after)[1]
    rows, columns = _classes(true, classes), _classes(new, classes)
    table = np.zeros((len(rows), len(columns)), int)
    for t, n in zip(true, new, strict=True):
        r = rows.index(t) if t in rows else len(rows) - 1
        table[r, columns.index(n) if n in columns else len(columns) - 1] += 1

    names = [[_short(_name(record, c), 22) if c is not None else "others" for c in side] for side in (rows, columns)]
    # Room for the names, whose length nobody knows beforehand.
    left, below = (0.45 + 0.08 * max(map(len, side)) for side in names)
    cell = 0.42
    figure = new_figure(max(left + cell * len(columns) + 0.3, 4.6), below + cell * len(rows) + 0.75)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, below / height, cell * len(columns) / width, cell * len(rows) / height))
    full = max(1.3 * table.max(), 4)
    axes.imshow(table, cmap="Blues", vmin=0, vmax=full, aspect="auto")
    for r, c in np.argwhere(table):
        same = rows[r] is not None and rows[r] == columns[c]
        dark = table[r, c] > 0.6 * full
        axes.text(c, r, str(table[r, c]), ha="center", va="center", fontsize=8.5, color="white" if dark else INK)
        if same and record.goal == "misclassify":
            axes.add_patch(Rectangle((c - 0.46, r - 0.46), 0.92, 0.92, fill=False, edgecolor=BAD, linewidth=1.6))
    upright = max(map(len, names[1])) <= 2
    axes.set_xticks(range(len(columns)), names[1], rotation=0 if upright else 90, fontsize=8.5, **AS_IT_IS)
    axes.set_yticks(range(len(rows)), names[0], fontsize=8.5, **AS_IT_IS)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.set_xlabel("new class", fontsize=9, color=MUTED)
    axes.set_ylabel("true class", fontsize=9, color=MUTED)
    note = "; framed: the true class is still given" if record.goal == "misclassify" and (true == new).any() else ""
    heading(figure, "From true class to new class", f"{len(true)} instances{note}")
    return figure


def adversarial(record: RunRecord) -> Any:
    """Draw some adversarial examples of up to six instances beside the original; None where there are none."""
    batch = record.result.extras.get("adversarial")
    if not isinstance(batch, Batch):
        return None
    real = np.flatnonzero(np.asarray(batch.weight) > 0)
    index = np.asarray(batch.index)[real]
    shown = [(row, real[index == i][:5]) for row, i in enumerate(np.asarray(record.forget.index).tolist())]
    shown = [(row, draws) for row, draws in shown if len(draws)][:6]
    if not shown:
        return None
    columns = 1 + max(len(draws) for _, draws in shown)
    size, gap, head = 1.25, 0.5, 0.65
    figure = new_figure(max((size + 0.2) * columns + 0.7, 6.2), (size + gap) * len(shown) + head + 0.1)
    width, height = figure.get_size_inches()
    margin = (width - (size + 0.2) * columns - 0.25) / 2
    for r, (row, draws) in enumerate(shown):
        original = np.asarray(record.forget.x[row])
        for c in range(1 + len(draws)):
            left = margin + (size + 0.2) * c + (0.25 if c else 0)
            top = height - head - (size + gap) * r - 0.2
            axes = figure.add_axes((left / width, (top - size) / height, size / width, size / height))
            if c == 0:
                _image(axes, original, record.box, INK)
                above, below = _id(record.ids[row]), _name(record, int(record.forget.y[row]))
            else:
                x = np.asarray(batch.x[draws[c - 1]])
                _image(axes, x, record.box, GRID)
                target = _name(record, int(batch.target[draws[c - 1]]))
                above, below = f"→ {target}", f"{np.linalg.norm(x - original):.2f} away"
            axes.set_title(_short(above, 20), fontsize=8, color=INK, pad=3, **AS_IT_IS)
            axes.set_xlabel(_short(below, 20), fontsize=8, color=MUTED, labelpad=2, **AS_IT_IS)
    heading(
        figure,
        f"Adversarial examples of the forget set: {len(real)} in all",
        "left: the original with its label; → the label an example was attacked towards, and its L2 distance",
    )
    return figure


def proxies(record: RunRecord) -> Any:
    """Draw up to sixteen of the images that stood in for data; None where the method tells of none."""
    shown = record.result.extras.get("proxies")
    if shown is None or np.ndim(shown) != 4 or not len(shown):
        return None
    shown = np.asarray(shown)[:16]
    columns = min(len(shown), 8)
    rows = -(-len(shown) // columns)
    size, gap, head = 1.25, 0.12, 0.65
    figure = new_figure(max((size + gap) * columns + 0.4, 6.2), (size + gap) * rows + head + 0.15)
    width, height = figure.get_size_inches()
    margin = (width - (size + gap) * columns + gap) / 2
    for place, x in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = margin + (size + gap) * column, height - head - (size + gap) * row
        axes = figure.add_axes((left / width, (top - size) / height, size / width, size / height))
        _image(axes, x, record.box, GRID)
    heading(figure, f"Proxies: {len(shown)} of the images that stood in for data", "the old answers were held on them")
    return figure


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of a size in inches, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def heading(figure: Any, title: str, note: str) -> None:
    """Write a title and a note above a figure's axes."""
    width, height = figure.get_size_inches()
    bold: dict[str, Any] = {"fontsize": 11.5, "fontweight": "bold", "color": INK}
    for text, down, how in ((title, 0.12, bold), (note, 0.38, {"fontsize": 8.5, "color": MUTED})):
        figure.text(0.15 / width, 1 - down / height, _files.visible(text), va="top", **how, **AS_IT_IS)


def _panel(axes: Any, title: str, steps: int) -> None:
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    if steps:
        axes.set_xlabel("step", fontsize=9, color=MUTED)
        axes.set_xlim(0, steps)
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set_xlim(-0.1, 1.1)
        axes.set_xticks([0, 1], ["before", "after"])
    style(axes)


def style(axes: Any) -> None:
    """Give axes quiet ticks, grid and spines."""
    axes.tick_params(colors=MUTED, labelsize=8.5)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _image(axes: Any, x: Any, box: tuple[float, float], colour: str) -> None:
    low, high = box
    pixels = np.clip((np.asarray(x, np.float32) - low) / (high - low), 0, 1)
    if pixels.ndim == 3 and pixels.shape[-1] not in (3, 4):
        pixels = pixels.mean(axis=-1)
    elif pixels.ndim != 3:  # not an image: show the values as a strip
        pixels = np.atleast_2d(pixels)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1.6)


def _classes(labels: np.ndarray, classes: int) -> list[Any]:
    """Return all labels if they are few, else those that occur; of too many the most frequent and None for the rest."""
    values, counts = np.unique(labels, return_counts=True)
    if classes <= MAX_CLASSES:
        return [*range(classes), *([-1] if values[0] < 0 else [])]
    if len(values) <= MAX_CLASSES:
        return [int(v) for v in values]
    frequent = values[np.argsort(-counts, kind="stable")[: MAX_CLASSES - 1]]
    return [*sorted(int(v) for v in frequent), None]


def _name(record: RunRecord, label: int | None) -> str:
    """Return a class name for a picture: of WordNet's synonyms the first."""
    if label is None or label < 0:
        return "not a number"
    return _files.printable(record.class_names[label].split(",")[0]) if record.class_names else str(label)


def _id(name: Any) -> str:
    """Return an id for a picture: of a path the file's name, of a long one both ends, which tell it from others."""
    if str(name).isdigit():
        return f"#{name}"
    text = _files.printable(str(name)).rstrip("/").rpartition("/")[2]
    return text if len(text) <= 19 else f"{text[:9].rstrip()}…{text[-9:].lstrip()}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip(" ,") + "…"


def _share(confidence: float | None) -> str:
    return "" if confidence is None else f"{100 * confidence:.0f} %"


@functools.cache
def _fonts() -> list[str]:
    """Return the usual font and those of `ALPHABETS` that are installed; names that are not are complained of."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["sans-serif", *(name for name in ALPHABETS if name in there)]
