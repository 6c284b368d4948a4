"""A comparison of methods on one forget set: a table, a picture, a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from jaxunlearn.report import figures, words
from jaxunlearn.report.tables import percent, unlearning_seconds

HEADER = ("", "seeds", "D_f %", "D_r %", "D_test %", "recognised %", "agreement %", "change %", "seconds", "GiB", "saw")
MEANING = {
    "D_f": "accuracy on the images to forget: should fall to 0",
    "relabelled": "share of the images to forget that are given the label asked for",
    "D_r": "accuracy on the other training images, with the 95 % interval of the sample (Wilson)",
    "D_test": "accuracy on images never trained on",
    "recognised": "share of mirrored, cropped, shifted, noisy, compressed and rotated versions of the forgotten images"
    " that are still given the old label, each kind weighing the same: 0 is deepest",
    "agreement": "share of cut-and-paste images of the forget set, which no method saw, that get the same answer as"
    " before; strengths are chosen by it, never by test or retain images",
    "change": "length of the weights' change over their own length; after a +, how many numbers were put around the"
    " network instead",
    "seconds": "of the unlearning; of its compilation what an earlier run or trial did not leave in the cache",
    "GiB": "peak memory of the process to the end of the unlearning, the libraries' own included",
    "saw": "what the method was shown beside the network and the forget set",
}


#: How what a method was shown is told of.
SAW = {"codes": "codes of {} classes", "moments": "moments of {} images", "anchors": "embeddings of {} classes"}


def depth_share(results: Mapping[str, Any]) -> float | None:
    """Return the mean over kinds of versions of the share still given the old label, or None where not measured."""
    shares = [
        share
        for name, share in ((results.get("depth") or {}).get("recognised") or {}).items()
        if name != "exact" and share is not None
    ]
    return statistics.fmean(shares) if shares else None


def table(before: Mapping[str, Any], groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Return rows of text, the header first: the network before, then each method's mean and range over seeds.

    Args:
      before: ``accuracy`` and ``sizes`` by set.
      groups: by label, results of the seeds of a method.
    """
    accuracy, sizes = before["accuracy"], before["sizes"]
    start = [_sampled([accuracy.get(name)], sizes, name) for name in ("forget", "retain", "test")]
    # A label that is gone need not have become the one asked for.
    relabel = any(run["goal"] == "relabel" for runs in groups.values() for run in runs)
    header = (*HEADER[:3], *["relabelled %"] * relabel, *HEADER[3:])
    rows: list[tuple[str, ...]] = [header, ("before", "", start[0], *[""] * relabel, *start[1:], *[""] * 6)]
    for label, runs in groups.items():
        after = {name: [run["after"].get(name) for run in runs] for name in ("forget", "retain", "test")}
        rows.append(
            (
                label + _diverged(runs),
                str(len(runs)),
                _spread([100 * value for value in after["forget"]]),
                *[_spread([100 * run["forgotten"] / len(run["instances"]) for run in runs])] * relabel,
                _sampled(after["retain"], sizes, "retain"),
                _sampled(after["test"], sizes, "test"),
                _spread([100 * share for run in runs if (share := depth_share(run)) is not None], 1),
                _spread([100 * run["agreement"]["agreement"] for run in runs], 1),
                _changed([run["weights"] for run in runs]),
                _spread([unlearning_seconds(run) for run in runs], 0),
                _spread([run["memory"]["process"] / 2**30 for run in runs if "process" in run["memory"]], 1),
                _saw(runs[0]["saw"]),
            )
        )
    return rows


def picture(before: Mapping[str, Any], groups: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Any:
    """Draw test accuracy (retain accuracy where there is no test set) against depth, the area of a dot being its time.

    Methods that leave an instance unforgotten are hollow. Returns None where no depth was measured.
    """
    measured = "test" if before["accuracy"].get("test") is not None else "retain"
    points = {}
    for label, runs in groups.items():
        shares = [share for run in runs if (share := depth_share(run)) is not None]
        values = [run["after"].get(measured) for run in runs]
        if shares and None not in values:
            met = all(run["goal_met"] for run in runs)
            seconds = statistics.fmean(unlearning_seconds(run) for run in runs)
            points[label] = (100 - 100 * statistics.fmean(shares), 100 * statistics.fmean(values), seconds, met)
    if not points:
        return None
    figure = figures.new_figure(8.2, 5.4)
    axes = figure.add_axes((0.09, 0.11, 0.6, 0.73))
    figures.heading(figure, title, "area: seconds of the unlearning; hollow: not every instance is forgotten")
    colours = [figures.BLUE, figures.ORANGE, figures.GOOD, figures.BAD, "#8250df", "#bf3989", "#1b7c83", "#9a6700"]
    longest = max(seconds for _, _, seconds, _ in points.values())
    for number, (label, (x, y, seconds, met)) in enumerate(points.items()):
        colour, marker = colours[number % len(colours)], "osD^"[number // len(colours) % 4]
        style: dict[str, Any] = {"facecolor": colour if met else "none", "edgecolor": colour, "marker": marker}
        axes.scatter([x], [y], s=30 + 400 * seconds / longest, alpha=0.75, linewidths=1.5, zorder=3, **style)
        axes.scatter([], [], s=45, label=f"{label}, {_short(seconds)} s", **style)
    reference = before["accuracy"].get(measured)
    if reference is not None:
        axes.axhline(100 * reference, color=figures.MUTED, linewidth=1, linestyle="--", label="before")
    axes.set_xlim(-4, 104)
    axes.set_xlabel("versions of the forgotten images no longer recognised, %", fontsize=9, color=figures.MUTED)
    axes.set_ylabel(f"D_{'test' if measured == 'test' else 'r'}, %", fontsize=9, color=figures.MUTED)
    figures.style(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.7, 0.5), fontsize=8, frameon=False)
    return figure


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[str]],
    chosen: Mapping[str, str],
    left_out: Mapping[str, str],
    pictures: Mapping[str, str],
    command: str,
) -> str:
    """Return ``compare.md``: what was asked, the table, the picture, what the columns mean, how to do it again."""
    lines = [f"# {words.literal(title)}", ""]
    lines += [f"* **{name}**: {words.literal(value)}" for name, value in facts]
    lines += ["", _markdown(rows), ""]
    if left_out:
        lines += [
            "Not in the table:",
            "",
            *(f"* {words.literal(f'{name}: {why}')}" for name, why in left_out.items()),
            "",
        ]
    for file, caption in pictures.items():
        lines += [f"![{caption}]({file})", "", caption, ""]
    if chosen:
        lines += [
            "Strengths, of the same number of trials on the first seed that which forgets most and then agrees best:"
        ]
        lines += [""]
        lines += [*(f"* {words.literal(name)}: {value}" for name, value in chosen.items()), ""]
    lines += ["What the columns say, mean over seeds (range):", ""]
    shown = {name.removesuffix(" %") for name in rows[0]}
    lines += [f"* **{name}**: {meaning}" for name, meaning in MEANING.items() if name in shown]
    return "\n".join([*lines, "", "Again:", "", "```bash", command, "```", ""])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    escaped = [[words.literal(cell).replace("|", "\\|") if n == 0 else cell for n, cell in enumerate(r)] for r in rows]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], f"|---|{'---:|' * (len(rows[0]) - 2)}---|", *lines[1:]])


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and, of several values that differ, the range.

    >>> _spread([1.0, 3.0], 1), _spread([2.0, 2.0]), _spread([])
    ('2.0 (1.0-3.0)', '2.00', '-')
    """
    if not values:
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low}-{high})"


def _changed(weights: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the weights moved, and what was added.

    >>> _changed([{"relative_l2": 0.01, "added": 0}]), _changed([{"relative_l2": 0.0, "added": 1200}])
    ('1.00', '0.00 +1,200')
    """
    moved = _spread([100 * found["relative_l2"] for found in weights])
    added = max(found["added"] for found in weights)
    return moved + f" +{added:,}" * (added > 0)


def _sampled(values: Sequence[float | None], sizes: Mapping[str, int], name: str) -> str:
    """Return a mean accuracy and its range; of the retain set with the interval of the sample."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = _spread([100 * value for value in known])
    n = sizes.get(name, 0)
    if name == "retain" and n:
        mean = statistics.fmean(known)
        interval = binomtest(round(mean * n), n).proportion_ci(method="wilson")
        text += f" [{percent(interval.low)}, {percent(interval.high)}]"
    return text


def _diverged(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what is to be said of runs that ended early because a step was not finite."""
    count = sum(run["stop_reason"] == "diverged" for run in runs)
    return "" if not count else " (diverged)" if count == len(runs) else f" ({count} of {len(runs)} diverged)"


def _saw(counts: Mapping[str, int]) -> str:
    more = [SAW.get(kind, f"{{}} {kind}").format(f"{count:,}") for kind, count in counts.items() if kind != "forget"]
    return ", ".join(more) or "nothing else"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 or not math.isfinite(seconds) else f"{seconds:.1f}"
