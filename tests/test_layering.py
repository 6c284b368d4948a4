"""The house has floors: an import may only point down, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxunlearn"
FLOORS = (
    {
        "_types",
        "_validate",
        "_tree",
        "_config",
        "_progress",
        "_devices",
        "_repeat",
        "_journal",
        "_memo",
        "_ahead",
        "_cpu",
        "_files",
    },
    {"losses", "inference", "adapters", "wrappers", "sharding"},
    {
        "attacks",
        "importance",
        "transforms",
        "curvature",
        "proxies",
        "patches",
        "data",
        "checkpoint",
        "convert",
        "artefacts",
    },
    {"methods", "audits"},
    {"loop", "training"},
    {"cli", "job", "report", "testing"},
)
ASIDE = {"models"}  # reference networks: only floor 5 may import them
SAME_FLOOR = {("curvature", "importance"), ("proxies", "curvature")}
CORE = {"jax", "numpy", "optax", "scipy"}  # scipy comes with jax
ROOMS = {  # third-party libraries and the only rooms that may import them
    "flax": {"adapters", "models", "convert"},  # convert reads and writes the files of flax.serialization
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "sklearn": {"data"},
    "PIL": {"data", "audits", "report"},
    "torch": {"convert"},
    "safetensors": {"convert", "artefacts"},
    "matplotlib": {"report"},
    "pandas": {"report"},
    "tensorboardX": {"cli"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "markdown_it": {"report"},
    "rich": {"cli"},
    "platformdirs": {"cli"},
    "filelock": {"job"},
    "array_record": {"data"},
    "pyarrow": {"data"},
}


def room_of(path: Path) -> str:
    """Return the top-level module or folder a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return the absolute names a file imports, in functions too, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    hidden = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    names = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top != "jaxunlearn":
            allowed = top in CORE | set(sys.stdlib_module_names) or room in ROOMS.get(top, set())
            assert allowed, f"{path.name} imports {top}, which has no place in {room}"
        elif rest and rest[0] in floor and room in floor and rest[0] != room:
            below = floor[rest[0]] < floor[room] or (room, rest[0]) in SAME_FLOOR
            on_ground = floor[rest[0]] == floor[room] == 0 or (floor[room] == 5 and floor[rest[0]] == 5)
            assert below or on_ground, f"{path.name}: {room} may not import {rest[0]}"
        elif rest and rest[0] in ASIDE:
            assert room in FLOORS[5] | ASIDE, f"{path.name}: {room} may not import {rest[0]}"


def test_every_room_has_a_floor() -> None:
    known = set().union(*FLOORS) | ASIDE | {"__init__", "__main__"}
    assert {room_of(path) for path in FILES} <= known


def test_no_import_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(("jaxunlearn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[module] = set()
    for path, module in zip(FILES, graph, strict=True):
        for name in imports_of(path):
            target = name if name in graph else name.rpartition(".")[0]
            # A package's __init__ collects its own files; that is no circle.
            if target in graph and not module.startswith(target + ".") and target != module:
                graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_no_source_file_is_too_long() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    assert not list(PACKAGE.rglob("utils.py"))
