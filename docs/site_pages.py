"""Pages of the site that are made from what is there already, so that they cannot go stale."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import jaxunlearn
from jaxunlearn import methods
from jaxunlearn.cli import main as command_line

ROOT = Path(__file__).resolve().parents[1]
#: Public modules, a page of the reference each.
ROOMS = jaxunlearn._ROOMS
#: Files beside docs/ that a page links to -> their page.
ELSEWHERE = {
    "README.md": "generated/start.md",
    "CONTRIBUTING.md": "generated/contributing.md",
    "CHANGELOG.md": "generated/changelog.md",
}


def write_all(folder: Path) -> None:
    """Write every page; a file is touched only where its content changes."""
    pages = {
        "start.md": _moved(ROOT / "README.md"),
        "contributing.md": _moved(ROOT / "CONTRIBUTING.md"),
        "changelog.md": _moved(ROOT / "CHANGELOG.md"),
        "notebook.md": notebook("notebooks/digits.ipynb"),
        "papers.md": papers(),
        "commands.md": commands(),
        **{f"reference/{name}": text for name, text in reference().items()},
    }
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.*"):  # of a version that had more pages
        if str(path.relative_to(folder)) not in pages:
            path.unlink()


def _moved(file: Path) -> str:
    """Return a page of the repository's root with its links as they are seen from ``docs/generated``."""

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        if target in ELSEWHERE:
            return f"[{words}]({ELSEWHERE[target].removeprefix('generated/')}{anchor})"
        if target.startswith("docs/"):
            return f"[{words}](../{target.removeprefix('docs/')}{anchor})"
        return words if words == target else f"{words} (`{target}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)", link, file.read_text(encoding="utf-8"))


def notebook(file: str) -> str:
    """Return a notebook of ``docs``, without outputs, as a page of ``docs/generated``."""
    parts = []
    for cell in json.loads((ROOT / "docs" / file).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```ipython\n{text}\n```" if cell["cell_type"] == "code" else text)
    where = f"This page is the notebook {{download}}`docs/{file} <../{file}>`; a test runs it from first cell to last."
    return "\n\n".join([parts[0], where, *parts[1:]]) + "\n"


def papers() -> str:
    """Return every method's source, what it asks for, and how it departs from published code, from the registry."""
    parts = [
        "# Papers and departures from them",
        "Each method, its source, and every hyper-parameter, from the registry that the command line is made of. Where"
        " a paper and its published code differ, the paper's intent is the default, and `Config.published()`, on the"
        " command line `--preset published`, is the published behaviour. A departure has an id; its field says what it"
        " is. The text below a table is the method's own, with its formulas.",
    ]
    for spec in methods.all_specs().values():
        module = inspect.getmodule(spec.Config)
        needs = ", ".join(spec.needs) or "the network and the forget set only"
        facts = [f"**Source**: {spec.paper}.", f"**Needs**: {needs}."]
        facts += [f"**Takes where given**: {', '.join(spec.uses)}."] if spec.uses else []
        facts += [f"**Goals**: {', '.join(spec.goals)}. **Cost**: {spec.cost}."]
        if "published" in vars(spec.Config):
            said = (inspect.getdoc(spec.Config.published) or "").split("\n")[0].removeprefix("Return ")
            facts += [f"**Published settings**: {said}"]
        parts += [f"## {spec.name}", f"{spec.summary[0].upper()}{spec.summary[1:]}.", "\\\n".join(facts)]
        parts += [_fields(spec.Config)]
        if module is not None and module.__name__.startswith("jaxunlearn."):
            parts += [f"```{{eval-rst}}\n.. automodule:: {module.__name__}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fields(config: Any) -> str:
    published, rows = config.published(), []
    for field in dataclasses.fields(config):
        value, meta = getattr(published, field.name), field.metadata
        theirs = "" if value == field.default else f"`{value!r}`"
        unit = f" ({meta['unit']})" if meta["unit"] else ""
        what, default = f"{meta['help']}{unit}", f"`{field.default!r}`"
        rows.append((f"`{field.name}`", what, default, theirs, meta["deviation"] or ""))
    head = ("hyper-parameter", "what it is", "default", "published", "departure")
    lines = [head, ("---",) * len(head), *rows] if rows else []
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def commands() -> str:
    """Return what each command says of itself."""
    parts = ["# Commands", "What `jaxunlearn COMMAND --help` says."]
    for name, what in command_line.COMMANDS.items():
        said = io.StringIO()
        kept = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "110"
        try:
            with contextlib.redirect_stdout(said):
                command_line.main([name, "--help"])
        finally:
            os.environ.pop("COLUMNS") if kept is None else os.environ.update(COLUMNS=kept)
        parts += [f"## {name}", f"{what[0].upper()}{what[1:]}.", f"```text\n{said.getvalue().rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def reference() -> dict[str, str]:
    """Return the pages of the reference: what the package exports, and one page a module."""
    names = [_entry(f"jaxunlearn.{name}", getattr(jaxunlearn, name)) for name in jaxunlearn._HOME]
    listed = "\n".join(f"   {room}" for room in sorted(ROOMS))
    top = [_title("Reference"), ".. automodule:: jaxunlearn", _title("Names", "-"), *names, _title("Modules", "-")]
    pages = {"index.rst": "\n\n".join([*top, f".. toctree::\n   :maxdepth: 1\n\n{listed}"]) + "\n"}
    for room in ROOMS:
        module = importlib.import_module(f"jaxunlearn.{room}")
        parts = [_title(f"jaxunlearn.{room}"), f".. automodule:: {module.__name__}\n   :members:"]
        for name in getattr(module, "__all__", ()):  # what :members: passes over: constants and modules
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                parts.append(f".. automodule:: {thing.__name__}\n   :members:")
            elif not callable(thing):
                parts.append(f".. autodata:: {module.__name__}.{name}")
        pages[f"{room}.rst"] = "\n\n".join(parts) + "\n"
    return pages


def _entry(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        return f".. autoclass:: {name}\n   :members:"
    return f".. autofunction:: {name}"


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}"


def connect(app: Any) -> None:
    """Have docstrings read as they are meant."""
    app.connect("missing-reference", _by_last_name)
    app.connect("autodoc-process-docstring", _no_type, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", _plain_stars, priority=900)  # after it
    app.connect("autodoc-skip-member", _skip)


def _no_type(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon in a property's docstring for its type."""
    if what in ("property", "attribute", "data"):
        lines.insert(0, "\\ ")  # an empty line would be passed over


def _plain_stars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escape what is no markup in our docstrings: the star of ``*input_shape`` outside of literals, and bars."""
    in_example = False
    for number, line in enumerate(lines):
        in_example = bool(line.strip()) and (in_example or line.lstrip().startswith(">>>"))
        if not in_example:
            parts = re.split(r"(``.*?``|`[^`]*`)", line)
            parts[::2] = [re.sub(r"(?<![\w*\\])\*(?=\w)(?![\w ]+\*)|\|", r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)
        # Of "low, high" Sphinx would take the first for the type of the second.
        lines[number] = re.sub(r"^(:\w+ )((?:\\?\*{0,2}\w+, )+\w+:)", _one_word, lines[number])


def _one_word(match: re.Match[str]) -> str:
    return match[1] + match[2].replace(" ", "")


def _skip(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples that say no more than their number: "Attributes" tells of them."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def _by_last_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Make short names, and those of the private modules that things live in, links as well."""
    if node.get("refdomain") != "py":
        return None
    target = re.sub(r"\(.*\)$", "", node["reftarget"])
    package, _, name = target.rpartition(".")
    if package.partition(".")[0] in ("jax", "numpy", "np", "optax", "flax", "nnx", "matplotlib", "pandas"):
        return None
    domain = env.get_domain("py")
    kinds = ("class", "function", "exception")
    ours = {
        full: entry for full, entry in domain.objects.items() if full.startswith("jaxunlearn") and not entry.aliased
    }
    found = [full for full in ours if "." in target and full.endswith(f".{target}")]
    found = found or [
        full for full, entry in ours.items() if full.rpartition(".")[2] == name and entry.objtype in kinds
    ]
    first = [full for full in found if full == f"jaxunlearn.{name}"] or (found if len(set(found)) == 1 else [])
    if not first:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", first[0], node, contnode)
