"""How the pages are built: `make docs`, warnings are errors."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

import fastmap

project = "fastmap"
author = "the fastmap authors"
version = release = fastmap.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"fastmap {release}"
html_copy_source = False

myst_heading_anchors = 3  # a heading of another page is page.md#heading
copybutton_prompt_text = r">>> |\.\.\. ?"
copybutton_prompt_is_regexp = True
default_role = "py:obj"  # `lookup` in a docstring is a link where there is such a name

napoleon_google_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings tell types, shorter than annotations
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}

#: Attributes that several classes have, and words that are none: no links.
_PLAIN = re.compile(r"(?<!`)`(\.?(?:data|id|path))`(?!`)")
#: What is documented with a constructor: the other classes are made by functions and methods.
_MADE = {"Token", "Program", "PerfBuffer", "PidFd", "Delta", "Writer", "MapCollector", "Assembler"}
#: Members of Map that are the house's own.
_INNER = {
    "apply_many", "apply_one", "default_via", "fresh", "in_kernel", "key_objects", "keys_are",
    "most_entries", "of", "per_cpu", "pop_rows", "push_rows", "queue_route", "reads_by", "route",
    "settle", "untold", "values_are", "whole_reads",
    # What MapCore has for other modules.
    "apply_rows", "holds", "lookup_elem", "lookup_elem_on", "lookup_rows", "may", "next_key",
    "permits", "pop_entry", "resizes", "take_elem", "update_elem", "update_elem_on",
}


def docstring(app: Sphinx, what: str, name: str, at: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring one that napoleon and Sphinx take as it is meant."""
    section = ""
    for i, line in enumerate(lines):
        if i and re.fullmatch("-+", line):
            section = lines[i - 1]
        names, colon, kind = line.partition(" : ")
        if section == "Attributes" and colon and not names.startswith(" "):
            line = names.replace(", ", ",") + colon + kind  # it takes spaces for a type's end
        lines[i] = _PLAIN.sub(r"``\1``", line)


def signature(app: Sphinx, what: str, name: str, at: Any, options: Any, arguments: str | None,
              returned: str | None) -> tuple[str | None, str | None] | None:
    """Leave out how a class is made that users do not make."""
    return ("", None) if what == "class" and name.rpartition(".")[2] not in _MADE else None


def skip(app: Sphinx, what: str, name: str, at: Any, given: bool, options: Any) -> bool | None:
    """Leave out members that are the house's own."""
    return True if name in _INNER else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
