"""What a report says of a run, in plain words: sentences and rows that every format shows.

Sentences and cells have two marks of Markdown, ``**bold**`` and code in backticks;
in names, which come from outside, marks are escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxunlearn.report.schema import CHECKPOINT, RESULTS, WEIGHTS
from jaxunlearn.report.tables import REASONS, percent, unlearning_seconds

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

Rows: TypeAlias = list[tuple[str, ...]]

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
    "codes": "the random images that stood for {} classes in training",
    "moments": "the second moments of what {} training images are to each layer",
    "anchors": "embeddings of {} classes",
}


def title(record: RunRecord) -> str:
    """Return what the run did, as a heading."""
    k = len(record.ids)
    return f"Forgetting {k} training image{'s' * (k != 1)} with {record.method}"


def summary(record: RunRecord) -> list[tuple[str, str]]:
    """Return the first five lines, each with what it is about: asked, happened, cost, not claimed, seen."""
    k, done = len(record.ids), int(record.forgotten.sum())
    network = f"The network {code(record.arch)}" if record.arch else "The network"
    source = f" of {code(record.data)}" if record.data else ""
    wish = "no longer give the right label to" if record.goal == "misclassify" else "give a chosen other label to"
    seconds = unlearning_seconds(record.results)
    return [
        (
            "What was asked",
            f"{network} should {wish} {k} training image{'s' * (k != 1)}{source}. Method {record.method},"
            f" seed {record.seed}.{_depth_asked(record)}",
        ),
        (
            "What happened",
            f"{f'All {k}' if done == k > 1 else f'{done} of {k}'} {'is' if done == 1 else 'are'} now {met(record)},"
            f" after {record.result.steps} steps and {seconds:.1f} seconds"
            f" (why it stopped: {REASONS[record.result.stop_reason]}).{_before(record)}{_left(record)}",
        ),
        ("What it cost", " ".join(_costs(record)) or "Not measured."),
        ("What is not claimed", _not_claimed(record)),
        ("What the method saw", _seen(record)),
    ]


def met(record: RunRecord) -> str:
    """Return what an image is that was forgotten."""
    return "misclassified" if record.goal == "misclassify" else "given the new label"


def claims(record: RunRecord) -> Rows:
    """Return the three claims and what this run shows of each, a header first."""
    k, done = len(record.ids), int(record.forgotten.sum())
    known = _known(record)
    if known:
        like = f"measured: {_still(known)} of versions made from them (mirrored, shifted, ...) are still recognised"
        like += "; see [Depth](#depth)"
    else:
        like = "not measured in this run; a mirror image of a forgotten image may still be recognised"
    return [
        ("claim", "this run"),
        (f"These images are {met(record)}.", f"measured: true for {done} of {k}"),
        ("Images like them are misclassified, too.", like),
        (
            "The network cannot be told from one that never saw them.",
            "**not claimed**: nothing here measures it, and misclassifying on purpose is itself a trace",
        ),
    ]


def numbers(record: RunRecord) -> str:
    """Return what the columns of the numbers mean, and how much of the network changed."""
    note = "Accuracy in percent on the forget set D_f, the retain set D_r and the test set D_test; seconds are those"
    note += " of the unlearning, compilation included"
    earlier = record.results["seconds"].get("earlier processes")
    note += f"; {earlier:.1f} of them in processes before the one that went on and finished." if earlier else "."
    if "batch_norm" in record.config:
        note += f" BatchNorm statistics: `{record.config['batch_norm']}`."
    return note + _changed(record.weights)


def depth(record: RunRecord) -> tuple[Rows, list[str]]:
    """Return the shares of versions still recognised, a header first, and sentences on them; empty if not measured."""
    if not record.depth:
        return [], []
    shares = record.depth.get("recognised", {})
    rows: Rows = [("versions of the forgotten images", "still given the old label, %")]
    rows += [(words, percent(shares[name])) for name, words in RELATIVES.items() if name in shares]
    return rows, list(_restored(record.depth))


def earlier(record: RunRecord) -> str:
    """Return what became of the instances of earlier requests, or nothing."""
    if not record.earlier:
        return ""
    kept = sum(bool(item["forgotten"]) for item in record.earlier)
    back = [literal(str(item["id"])) for item in record.earlier if not item["forgotten"]]
    parts = [f"Of {len(record.earlier)} instances of earlier runs {kept} are still forgotten: these images themselves,"]
    parts += ["not versions of them."]
    parts += [f"Remembered again: {', '.join(back)}."] if back else []
    parts += [FIRST[record.extras["first_network"]]] if record.extras.get("first_network") in FIRST else []
    return " ".join(parts)


def settings(record: RunRecord) -> str:
    """Return the hyper-parameters as JSON."""
    return json.dumps(record.results["config"])


def digests(record: RunRecord) -> str:
    """Return what the digests of data are of, or nothing where there are none."""
    if "forget set" not in record.digests:
        return ""
    return (
        "`forget set`: ids, images and labels of the images to forget, as the network got them; `rows`: which of the"
        " data were measured. The documentation (Your own pictures: digests of the data) says how to compute them."
    )


def kept(record: RunRecord) -> str:
    """Return where the network and the numbers lie."""
    where = WEIGHTS if record.result.model.spec.recipe is None else f"{CHECKPOINT}/"
    return f"`{where}` holds the unlearned network, `{RESULTS}` every number above."


def label(record: RunRecord, value: int | None) -> str:
    """Return a class by name and number, or by its number where that is all."""
    if value is None:
        return "not a number"
    name = record.class_names[value] if record.class_names else str(value)
    return name if name == str(value) else f"{literal(name)} ({value})"


def verdict(record: RunRecord, value: int | None, confidence: float | None) -> str:
    """Return an answer of the network and how sure it was."""
    return label(record, value) + ("" if confidence is None else f", {percent(confidence)} %")


def _not_claimed(record: RunRecord) -> str:
    unseen, known = "That the network cannot be told from one that never saw them", _known(record)
    if not known:
        like = "images like these, such as their mirror images, are forgotten, too"
        return f"{unseen}, nor that {like}: that was not measured."
    return f"{unseen}. {_still(known)} of versions made from the images (mirrored, shifted, ...) are still recognised."


def _still(shares: list[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return f"{low} %" if low == high else f"{low} % to {high} %"


def _known(record: RunRecord) -> list[float]:
    shares = (record.depth or {}).get("recognised", {})
    return [value for name, value in shares.items() if name in RELATIVES and value is not None]


def _depth_asked(record: RunRecord) -> str:
    asked = record.config.get("depth")
    return f" Depth `{asked}`: {DEPTHS[asked]}." if asked in DEPTHS else ""


def _seen(record: RunRecord) -> str:
    things = ["The network", "the images to forget"]
    things += [SEEN[kind].format(f"{count:,}") for kind, count in record.saw.items() if kind in SEEN]
    if record.extras.get("first_network") == "used":
        things.append("the network before the first of these requests")
    return f"{', '.join(things[:-1])} and {things[-1]}; nothing else."


def _before(record: RunRecord) -> str:
    """Say how many images there was nothing to do for: they count as forgotten, but not because of this run."""
    asked = "label" if record.goal == "misclassify" else "target"
    same = sum((row["before"] == row[asked]) == (asked == "target") for row in record.results["instances"])
    return f" {same} of them {'was' if same == 1 else 'were'} so before this run already." if same else ""


def _left(record: RunRecord) -> str:
    left = [literal(str(name)) for name, done in zip(record.ids, record.forgotten, strict=True) if not done]
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


def _restored(found: Mapping[str, Any]) -> Iterator[str]:
    restore, relearn = found.get("restoring_l2"), found.get("relearn")
    if restore:
        yield (
            f"A change of the image of L2 length {restore['median']:.3g} (median; smallest {restore['min']:.3g}) brings"
            f" the old label back; found for {restore['found']} of {restore['of']}."
            if restore["median"] is not None
            else f"No small change of the image was found that brings the old label back (tried on {restore['of']})."
        )
    if relearn:
        several = relearn["steps"] != 1
        yield (
            f"{relearn['steps']} step{'s' * several} of fine-tuning on the forget set, on a copy,"
            f" teach{'es' * (not several)} it all of them again."
            if relearn["steps"] is not None
            else f"{relearn['max_steps']} steps of fine-tuning on the forget set, on a copy, do not teach it all of"
            f" them again ({percent(relearn['accuracy'])} % at the end)."
        )


def instances(record: RunRecord, most: int) -> tuple[Rows, str]:
    """Return a row of text for each instance, a header first, and a note where more than ``most`` there are."""
    relabel = record.goal == "relabel"
    rows: list[tuple[str, ...]] = [
        ("id", "label", *(["asked for"] * relabel), "before", "after", "forgotten", "for good since step")
    ]
    for item in record.results["instances"][:most]:
        rows.append(
            (
                literal(str(item["id"])),
                label(record, item["label"]),
                *([label(record, item["target"])] * relabel),
                verdict(record, item["before"], item["confidence_before"]),
                verdict(record, item["after"], item["confidence_after"]),
                "yes" if item["forgotten"] else "**no**",
                str(item["forgotten_at"]) if item["forgotten_at"] >= 0 else "-",
            )
        )
    more = len(record.ids) - most
    return rows, f"{more} more are in `results.json`." if more > 0 else ""


def literal(text: str) -> str:
    """Return a text whose marks of Markdown, and tags, show as they are written.

    >>> print(literal("*a* [b](c) <d> train_0 _e_"))
    \\*a\\* \\[b](c) \\<d> train_0 \\_e\\_
    """
    return re.sub(r"[\\`*\[<]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def code(text: str) -> str:
    """Return a text as code.

    >>> code("tfds:cifar10"), code("a`b")
    ('`tfds:cifar10`', '`` a`b ``')
    """
    return f"`` {text} ``" if "`" in text else f"`{text}`"
