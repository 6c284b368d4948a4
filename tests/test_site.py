"""The site builds from the repository, without a warning and without a network, and has what the registry has."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import jaxunlearn
from jaxunlearn import methods
from jaxunlearn.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; every warning is an error, and an address that does not answer stands for the network."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(out / "kept"), "docs"]
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [*command, str(out / "html")],
        cwd=ROOT,
        env={**os.environ, "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out / "html"


class Page(HTMLParser):
    """What a page names: ids, links, and whatever a browser fetches by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "href" in given:
            self.fetched.append(given["href"])
        self.fetched += [given[name] for name in ("src", "srcset", "data", "poster") if given.get(name)]


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_nothing_is_fetched_from_a_network(site, pages):
    assert len(pages) > 40
    for path, page in pages.items():
        assert page.fetched, path
        for address in page.fetched:
            assert not re.match(r"(?i)([a-z]+:)?//", address), f"{path.name} fetches {address}"
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?i)(url\(\s*['\"]?|@import\s+['\"]?)([a-z]+:)?//", text), path.name


def test_no_link_inside_is_dead(site, pages):
    for path, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if re.match(r"(?i)([a-z]+:|//)", file):
                continue
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.relative_to(site)}: dead link {link}"
            # A page of source names places by where a thing is defined, not by where it is public.
            if anchor and target in pages and "_modules" not in path.parts:
                assert anchor in pages[target].ids, f"{path.relative_to(site)}: no such place {link}"


def test_every_public_name_has_its_place(site, pages):
    ids = set().union(*(page.ids for page in pages.values()))
    inside = [
        f"{room}.{name}" for room in jaxunlearn._ROOMS for name in getattr(jaxunlearn, room).__dict__.get("__all__", ())
    ]
    for name in [*jaxunlearn.__all__, *inside]:
        if name != "__version__":
            full = f"jaxunlearn.{name}"
            assert full in ids or f"module-{full}" in ids, f"{full} is not in the reference"


def test_names_in_docstrings_are_links(site):
    text = (site / "generated" / "reference" / "job.html").read_text(encoding="utf-8")
    for place in (
        "audits.html#jaxunlearn.audits.depth",
        "data.html#jaxunlearn.data.Source",
        "index.html#jaxunlearn.Model",
    ):
        assert f'href="{place}"' in text
    assert 'href="report.html#jaxunlearn.report.RunRecord"' in text
    # By a short name, too; and `jax.jit` is not our method of that name.
    text = (site / "generated" / "reference" / "models.html").read_text(encoding="utf-8")
    assert 'title="jaxunlearn.Recipe"' in text
    for page in (site / "generated" / "reference").glob("*.html"):
        assert "methods.jit" not in page.read_text(encoding="utf-8"), page.name


def test_every_method_its_source_and_every_departure_is_told(site):
    text = (site / "generated" / "papers.html").read_text(encoding="utf-8")
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text)))
    plain = plain.replace("‘", "'").replace("’", "'").replace("“", '"').replace("”", '"').replace("–", "--")
    for spec in methods.all_specs().values():
        assert f'<section id="{spec.name}">' in text
        assert spec.paper.replace("`", "") in plain
        for field in dataclasses.fields(spec.Config):
            assert field.name in plain
            departure = field.metadata["deviation"]
            assert not departure or f"<td><p>{departure}</p></td>" in text


def test_every_command_is_told(site, pages):
    text = html.unescape((site / "generated" / "commands.html").read_text(encoding="utf-8"))
    for name in COMMANDS:
        assert name in pages[site / "generated" / "commands.html"].ids
    assert "--log-dir" in text


def test_the_notebook_is_shown_and_can_be_fetched(site, pages):
    notebook = ROOT / "docs" / "notebooks" / "digits.ipynb"
    text = (site / "generated" / "notebook.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", text))
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]) in shown
    (link,) = (link for link in pages[site / "generated" / "notebook.html"].links if link.endswith(".ipynb"))
    assert (site / "generated" / link).resolve().read_bytes() == notebook.read_bytes()


def test_every_page_is_in_the_menu(site, pages):
    menu = {link.partition("#")[0] for link in pages[site / "index.html"].links}
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f"{page.stem}.html" in menu
