"""The HTML report: complete in itself, safe whatever the ids are, and silent on images where that is asked."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from jaxunlearn import report
from jaxunlearn.report import figures, page as markdown_page, web, words
from tests.test_report import C, make

VOID = {"meta", "link", "img", "br", "input"}
EVIL = ['<script>alert("1")</script>', "**bold** & `code`", "[a](javascript:alert(1))", '" onload="x']
MARKS = ["*a* and *b*", "_c_ and `d", "[e](http://f)", "\\*g\\* <http://h>"]


class Page(HTMLParser):
    """Tags, text and addresses of a page; raises where tags do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag, name):
        return [attributes[name] for found, attributes in self.attributes if found == tag and name in attributes]


def page(folder, **settings):
    run = make(**settings)
    return run, Page(web.html(run, figures.draw(folder, run), folder))


def test_the_page_says_first_what_was_asked_happened_and_cost_and_what_is_not_claimed(tmp_path):
    run, found = page(tmp_path, k=4, missed=1)
    text = " ".join("".join(found.text).split())
    leads = ["What was asked.", "What happened.", "What it cost.", "What is not claimed.", "What the method saw."]
    places = [text.index(lead) for lead in leads]
    assert places == sorted(places)
    assert places[-1] < text.index("Pictures")
    assert text.index("Pictures") < text.index("Instances") < text.index("How to do it again")
    assert "1 of 4" not in text
    assert "3 of 4 forgotten" in text
    assert "fell from 91.73 % to 73.50 %, by 18.23 points" in text
    assert "such as their mirror images, are forgotten, too: that was not measured" in text
    assert run.command in text


def test_what_is_measured_is_told_and_not_disclaimed():
    shares = {"recognised": {"mirrored": 0.25, "noisy": None}}
    said = dict(words.summary(make(depth=shares)))["What is not claimed"]
    unseen = "That the network cannot be told from one that never saw them."
    assert said == f"{unseen} 25.00 % of versions made from the images (mirrored, shifted, ...) are still recognised."


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    run, found = page(tmp_path, k=5)
    sources = found.all("img", "src")
    assert len(sources) == len(figures.draw(tmp_path, run)) + 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert [link for link in found.all("a", "href") if not link.startswith("#")] == []
    assert found.all("link", "href") == ["data:,"]
    assert found.tags.count("script") == 1
    assert not found.all("script", "src")
    policy = found.all("meta", "content")
    assert any("default-src 'none'" in content for content in policy)
    assert all(found.all("img", "alt"))


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_thumbnail_is_the_image(tmp_path, box, channels):
    run, found = page(tmp_path, k=3, shape=(8, 6, channels), box=box)
    thumbs = found.all("img", "src")[-3:]
    for thumb, x in zip(thumbs, np.asarray(run.forget.x), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(thumb.partition(",")[2]))), np.float64)
        wanted = 255 * (x - box[0]) / (box[1] - box[0])
        np.testing.assert_allclose(shown.reshape(x.shape), np.clip(wanted, 0, 255), atol=0.5 + 1e-4)


def test_a_large_image_is_shown_small(tmp_path):
    _, found = page(tmp_path, k=1, shape=(300, 200, 3))
    (thumb,) = found.all("img", "src")[-1:]
    assert Image.open(io.BytesIO(base64.b64decode(thumb.partition(",")[2]))).size == (64, 96)


def test_what_comes_from_outside_stays_text(tmp_path):
    names = [f"<b>{EVIL[0]}{c}" for c in range(C)]
    run, found = page(tmp_path, k=4, missed=4, ids=EVIL, class_names=names,
                      command=f"unlearn --forget '{EVIL[0]}</code>'", arch=EVIL[0], data=EVIL[3])  # fmt: skip
    assert found.tags.count("script") == 1
    assert "b" not in found.tags
    assert not [1 for _, attributes in found.attributes if "onload" in attributes]
    assert [link for link in found.all("a", "href") if not link.startswith("#")] == []
    text = "".join(found.text)
    for name in EVIL:
        assert name in text
    assert run.command in text


def test_marks_in_names_are_no_marks(tmp_path):
    """Names of files and classes in all places that have some: the tags are those of a report with plain names."""
    plain, evil = (
        dict(
            k=4, missed=4, ids=names, class_names=[f"{names[c % 4]}{c}" for c in range(C)],
            arch=names[1], data=names[3], depth={"recognised": {"mirrored": 0.5}},
            earlier=[{"run": "r", "id": name, "label": 1, "after": 1, "forgotten": False} for name in names],
        )
        for names in (["a", "b", "c", "d"], MARKS)
    )  # fmt: skip
    (_, usual), (run, found) = (page(tmp_path, **settings) for settings in (plain, evil))
    assert found.tags == usual.tags
    assert found.all("a", "href") == usual.all("a", "href")
    text = "".join(found.text)
    for name in MARKS:
        assert text.count(name) >= 3  # not forgotten, remembered again, in the table
    markdown = MarkdownIt("commonmark").enable("table")
    texts = [Page(f"<div>{markdown.render(markdown_page.markdown(r, {}))}</div>") for r in (make(**plain), run)]
    assert texts[0].tags == texts[1].tags
    assert all("".join(texts[1].text).count(name) >= 3 for name in MARKS)


def test_without_images_no_picture_of_an_instance_is_anywhere(tmp_path):
    path = report.write_run(tmp_path / "run", make(k=4, images=False))
    assert sorted(file.name for file in path.glob("*.png")) == ["curves.png", "transitions.png"]
    found = Page((path / "report.html").read_text())
    assert len(found.all("img", "src")) == 2
    assert "The images themselves are left out" in "".join(found.text)
    assert "forgotten.png" not in (path / "report.md").read_text()


def test_a_large_forget_set_keeps_the_page_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MAX_ROWS", 6)
    monkeypatch.setattr(web, "MAX_THUMBS", 4)
    run = make(k=9, missed=1)
    text = web.html(run, {}, tmp_path)
    found = Page(text)
    assert len(found.all("img", "src")) == 4
    rows = re.findall(r'<tr><td class="(good|bad)">', text)
    assert rows == ["bad", *["good"] * 5]
    assert "3 more are in results.json" in " ".join("".join(found.text).split())


def test_a_long_table_has_a_filter_with_a_label_that_waits_for_its_script(tmp_path):
    _, found = page(tmp_path, k=11)
    (field,) = (attributes for tag, attributes in found.attributes if tag == "input")
    assert found.all("label", "for") == [field["id"]]
    assert field["type"] == "search"
    assert [attributes for tag, attributes in found.attributes if tag == "p" and "hidden" in attributes] == [
        {"class": "filter", "hidden": None}
    ]
    assert "Show only ids and labels with" in found.text
    assert "status" in found.all("span", "role")
    _, short = page(tmp_path, k=10)
    assert "input" not in short.tags


def test_inputs_that_are_no_images_have_no_thumbnails(tmp_path):
    _, found = page(tmp_path, k=2, shape=(5,))
    assert len(found.all("img", "src")) == 4  # the pictures of the run, among them strips of values
