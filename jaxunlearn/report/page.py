"""The Markdown report: plain words first, then numbers, pictures and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxunlearn.report.record import RunRecord
from jaxunlearn.report.tables import REASONS, percent, summary_table, unlearning_seconds

MAX_ROWS = 256
RELATIVES = {
    "mirrored": "mirrored",
    "cropped": "randomly cropped and flipped",
    "shifted": "shifted by 1 to 4 pixels",
    "noisy": "with noise of standard deviation 8/255",
    "jpeg": "JPEG-compressed",
    "rotated": "slightly rotated",
}

DEPTHS = {
    "none": "the images themselves, not versions of them such as mirror images",
    "mirror": "the images and their mirror images",
    "crops": "the images, and shifted, cropped and mirrored versions of them",
    "full": "the images, and shifted, cropped, mirrored, noisy, rotated and compressed versions of them",
}
FIRST = {
    "used": "All other answers were held to those of the network before the first of these runs.",
    "gone": "The network before the first of these runs was not found any more. All other answers were held to those of"
    " the last run's network; small changes may add up.",
}
SEEN = {
    "retain": "{} labelled images of the retain set",
    "public": "{} unlabelled public images",
    "inversion": "{} images made from the network itself",
    "earlier": "{} images forgotten earlier",
}


def markdown(record: RunRecord, pictures: Mapping[str, str]) -> str:
    """Return ``report.md``.

    Args:
      record: the run.
      pictures: caption by file name, beside the report.
    """
    parts = [_summary(record), _claims(record), _numbers(record)]
    parts += [f"## Pictures\n\n{_pictures(pictures)}" if pictures else ""]
    parts += [_instances(record), _depth(record), _earlier(record), _again(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(record: RunRecord) -> str:
    k, done = len(record.ids), int(record.forgotten.sum())
    images = f"{k} training image{'s' * (k != 1)}"
    network = f"The network `{record.arch}`" if record.arch else "The network"
    source = f" of `{record.data}`" if record.data else ""
    wish = "no longer give the right label to" if record.goal == "misclassify" else "give a chosen other label to"
    met = "misclassified" if record.goal == "misclassify" else "given the new label"
    seconds = unlearning_seconds(record.results)
    return "\n\n".join(
        [
            f"# Forgetting {images} with {record.method}",
            f"**What was asked.** {network} should {wish} {images}{source}. Method {record.method},"
            f" seed {record.seed}.{_depth_asked(record)}",
            f"**What the method saw.** {_seen(record)}",
            f"**What happened.** {f'All {k}' if done == k > 1 else f'{done} of {k}'} {'is' if done == 1 else 'are'}"
            f" now {met}, after {record.result.steps} steps and {seconds:.1f} seconds"
            f" (why it stopped: {REASONS[record.result.stop_reason]}).{_left(record)}",
            f"**What it cost.** {' '.join(_costs(record)) or 'Not measured.'}",
        ]
    )


def _depth_asked(record: RunRecord) -> str:
    depth = record.config.get("depth")
    return f" Depth `{depth}`: {DEPTHS[depth]}." if depth in DEPTHS else ""


def _seen(record: RunRecord) -> str:
    things = ["The network", "the images to forget"]
    things += [SEEN[kind].format(f"{count:,}") for kind, count in record.saw.items() if kind in SEEN]
    if record.extras.get("first_network") == "used":
        things.append("the network before the first of these requests")
    return f"{', '.join(things[:-1])} and {things[-1]}; nothing else."


def _left(record: RunRecord) -> str:
    left = [str(name) for name, done in zip(record.ids, record.forgotten, strict=True) if not done]
    if not left:
        return ""
    names = ", ".join(left[:8]) + (", ..." if len(left) > 8 else "")
    return f" Not forgotten: {names}. The cost below is that of an unfinished job: compare it with no finished one."


def _costs(record: RunRecord) -> Iterator[str]:
    for name, words in (("test", "test images"), ("retain", "the other training images")):
        before, after = record.before.get(name), record.after.get(name)
        if before is None or after is None:
            continue
        points = 100 * (after - before)
        verb = "fell" if points < -0.005 else "rose" if points > 0.005 else "stayed"
        change = "" if verb == "stayed" else f", by {abs(points):.2f} points"
        count = f" ({record.sizes[name]:,} of them)" if record.sizes.get(name) else ""
        way = f"at {percent(after)} %" if verb == "stayed" else f"from {percent(before)} % to {percent(after)} %"
        yield f"Accuracy on {words}{count} {verb} {way}{change}."


def _claims(record: RunRecord) -> str:
    k, done = len(record.ids), int(record.forgotten.sum())
    met = "misclassified" if record.goal == "misclassify" else "given the new label"
    shares = (record.depth or {}).get("recognised", {})
    known = [value for name, value in shares.items() if name in RELATIVES and value is not None]
    if known:
        like = f"measured: of versions made from them (mirrored, shifted, ...), {percent(min(known))} % to"
        like += f" {percent(max(known))} % are still recognised; see [Depth](#depth)"
    else:
        like = "not measured in this run; a mirror image of a forgotten image may still be recognised"
    rows = [
        ("claim", "this run"),
        (f"These images are {met}.", f"measured: true for {done} of {k}"),
        ("Images like them are misclassified, too.", like),
        (
            "The network cannot be told from one that never saw them.",
            "**not claimed**: nothing here measures it, and misclassifying on purpose is itself a trace",
        ),
    ]
    return "## What this shows, and what it does not\n\n" + table(rows)


def _numbers(record: RunRecord) -> str:
    note = "Accuracy in percent on the forget set D_f, the retain set D_r and the test set D_test; seconds are those"
    note += " of the unlearning, compilation included."
    if "batch_norm" in record.config:
        note += f" BatchNorm statistics: `{record.config['batch_norm']}`."
    note += _changed(record.weights)
    return f"## Numbers\n\n{table(summary_table([record]), right=range(1, 7))}\n\n{note}"


def _changed(weights: Mapping[str, Any] | None) -> str:
    """Say how much of the network is another one now.

    >>> _changed({"parameters": 900, "changed": 12, "relative_l2": 0.003, "statistics": 0, "added": 40})
    ' Of 900 weights 12 are others now; the change is 0.30 % of their length. 40 were put around the network.'
    """
    if not weights:
        return ""
    text = f" Of {weights['parameters']:,} weights {weights['changed']:,} are others now"
    text += f"; the change is {percent(weights['relative_l2'])} % of their length." if weights["changed"] else "."
    text += f" {weights['statistics']:,} running statistics are others, too." if weights["statistics"] else ""
    return text + (f" {weights['added']:,} were put around the network." if weights["added"] else "")


def _pictures(pictures: Mapping[str, str]) -> str:
    return "\n\n".join(f"{caption}.\n\n![{caption}]({name})" for name, caption in pictures.items())


def _instances(record: RunRecord) -> str:
    relabel = record.goal == "relabel"
    rows: list[Sequence[str]] = [
        ("id", "label", *(["asked for"] * relabel), "before", "after", "forgotten", "for good since step")
    ]
    for item in record.results["instances"][:MAX_ROWS]:
        rows.append(
            (
                str(item["id"]),
                _label(record, item["label"]),
                *([_label(record, item["target"])] * relabel),
                _verdict(record, item["before"], item["confidence_before"]),
                _verdict(record, item["after"], item["confidence_after"]),
                "yes" if item["forgotten"] else "**no**",
                str(item["forgotten_at"]) if item["forgotten_at"] >= 0 else "-",
            )
        )
    more = len(record.ids) - MAX_ROWS
    note = f"\n\n{more} more are in `results.json`." if more > 0 else ""
    return f"## Instances\n\n{table(rows)}{note}"


def _depth(record: RunRecord) -> str:
    if not record.depth:
        return ""
    shares = record.depth.get("recognised", {})
    rows = [("versions of the forgotten images", "still given the old label, %")]
    rows += [(words, percent(shares[name])) for name, words in RELATIVES.items() if name in shares]
    lines = [f"## Depth\n\n{table(rows, right=(1,))}"]
    restore, relearn = record.depth.get("restoring_l2"), record.depth.get("relearn")
    if restore:
        found = f"{restore['found']} of {restore['of']}"
        lines.append(
            f"A change of the image of L2 length {restore['median']:.3g} (median; smallest {restore['min']:.3g}) brings"
            f" the old label back; found for {found}."
            if restore["median"] is not None
            else f"No small change of the image was found that brings the old label back (tried on {restore['of']})."
        )
    if relearn:
        lines.append(
            f"{relearn['steps']} steps of fine-tuning on the forget set, on a copy, teach it all of them again."
            if relearn["steps"] is not None
            else f"{relearn['max_steps']} steps of fine-tuning on the forget set, on a copy, do not teach it all of"
            f" them again ({percent(relearn['accuracy'])} % at the end)."
        )
    return "\n\n".join(lines)


def _earlier(record: RunRecord) -> str:
    if not record.earlier:
        return ""
    kept = sum(bool(item["forgotten"]) for item in record.earlier)
    back = [str(item["id"]) for item in record.earlier if not item["forgotten"]]
    text = f"## Earlier requests, measured again\n\nOf {len(record.earlier)} instances of earlier runs {kept} are still"
    parts = [f"{text} forgotten: these images themselves, not versions of them."]
    parts += [f"Remembered again: {', '.join(back)}."] if back else []
    parts += [FIRST[record.extras["first_network"]]] if record.extras.get("first_network") in FIRST else []
    return " ".join(parts)


def _again(record: RunRecord) -> str:
    results = record.results
    parts = ["## How to do it again"]
    if record.command:
        parts.append(f"```\n{record.command}\n```")
    parts.append(f"Settings: `{json.dumps(results['config'])}`")
    parts.append(table([("what", "version"), *results["versions"].items()]))
    if record.digests:
        parts.append(table([("SHA-256 of", ""), *((name, f"`{digest}`") for name, digest in record.digests.items())]))
    parts.append("`checkpoint/` holds the unlearned network, `results.json` every number above.")
    return "\n\n".join(parts)


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


def _label(record: RunRecord, label: int | None) -> str:
    if label is None:
        return "not a number"
    name = record.class_names[label] if record.class_names else str(label)
    return name if name == str(label) else f"{name} ({label})"


def _verdict(record: RunRecord, label: int | None, confidence: float | None) -> str:
    return _label(record, label) + ("" if confidence is None else f", {percent(confidence)} %")
