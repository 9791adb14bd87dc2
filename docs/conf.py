"""The documentation site: `make docs` builds it into build/docs, and a warning is an error."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

import towline
from towline.cli._app import app as command_line

project = "Towline"
author = "The Towline developers"
version = release = towline.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
html_theme = "furo"
html_title = f"Towline {version}"

# Docstrings name code in single backquotes, as Markdown does.
default_role = "code"
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "groupwise"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"
add_module_names = False
python_use_unqualified_type_names = True

# Headings of level 1 to 3 can be linked to, with the anchors that code hosts give them.
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["colon_fence"]

# A class has one page and several modules that export it: a type hint may mean any of them.
suppress_warnings = ["ref.python"]


def name_files_of_the_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """A link that leads out of this folder works where the repository is shown; on the site the file is named."""

    def named(link: re.Match[str]) -> str:
        target = Path(app.srcdir, name).parent.joinpath(link[2]).resolve()
        inside = target.is_relative_to(app.srcdir)
        return link[0] if inside else f"{link[1]} (`{target.relative_to(app.srcdir.parent)}`)"

    source[0] = re.sub(r"\[([^\]]*)\]\((\.\./[\w./-]+)[^)]*\)", named, source[0])


def describe_the_command_line(app: object, name: str, source: list[str]) -> None:
    """The page of the command line comes from the commands themselves."""
    if name == "reference/command-line":
        command = get_command(command_line)
        source[0] = get_docs_for_click(obj=command, ctx=Context(command), name="towline", title="The command line")


def setup(app: Sphinx) -> None:
    app.connect("source-read", describe_the_command_line)
    app.connect("source-read", name_files_of_the_repository)
