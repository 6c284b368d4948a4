"""The site: ``python -m sphinx -W docs build/site``. Needs no network, neither to be built nor to be read."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import site_pages  # noqa: E402

import jaxunlearn  # noqa: E402

site_pages.write_all(HERE / "generated")

project, author, release = "jaxunlearn", "the jaxunlearn authors", jaxunlearn.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns: list[str] = []
default_role = "py:obj"  # `name` in a docstring is a link
nitpicky = True  # and one that leads nowhere is an error
nitpick_ignore_regex = [
    # Other packages: their pages are elsewhere, and the site needs no network.
    ("py:.*", r"(jax|jaxlib|lax|numpy|np|optax|flax|nnx|pandas|matplotlib)\..*"),
    ("py:.*", r"(collections\.abc|dataclasses|fnmatch|os|pathlib|typing)\..*"),
    # What annotations name and no page has: aliases of types, and what is private.
    ("py:class", r"(jaxunlearn\._types\.)?(ApplyFn|Array|Info|Params|Path|PyTree)"),
    ("py:class", r"jaxunlearn\.(\w+\.)*_\w+(\.\w+)?"),
]

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"jaxunlearn {release}"
html_copy_source = False
html_show_sphinx = False


def setup(app: object) -> None:
    """Register what the pages need beside the extensions."""
    site_pages.connect(app)
