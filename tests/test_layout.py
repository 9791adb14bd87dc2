"""The layout of the sources, as `import_graph.py` reads it: arrows point one way, pure parts stay pure."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

# Loaded by its path: with `tests` on the import path, `tests/towline` would hide the package.
_SPEC = importlib.util.spec_from_file_location("import_graph", Path(__file__).with_name("import_graph.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
layout = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(layout)

ARROWS = layout.graph()


def test_every_part_is_in_the_table() -> None:
    assert {layout.part(name) for name in ARROWS} <= set(layout.ALLOWED)


def test_parts_import_only_what_the_design_allows() -> None:
    between = layout.part_arrows(ARROWS)
    wrong = {arrow: names for arrow, names in between.items() if arrow[1] not in layout.ALLOWED[arrow[0]]}
    assert wrong == {}


def test_the_table_itself_has_no_circle() -> None:
    known = set(layout.ALLOWED)
    assert layout.circles({name: set(targets) & known for name, targets in layout.ALLOWED.items()}) == []


def test_no_modules_import_each_other() -> None:
    assert layout.circles(ARROWS) == []


def test_only_the_connection_imports_the_engine() -> None:
    importers = {
        layout.part(name) for name, targets in ARROWS.items() for other in targets if layout.part(other) == "engine"
    }
    assert importers - {"engine"} == {"_connection"}


@pytest.mark.parametrize("name", sorted(name for name in ARROWS if layout.part(name) in layout.PURE))
def test_a_pure_part_does_no_io_and_reads_no_clock(name: str) -> None:
    assert list(layout.impurities(layout.modules()[name])) == []


def test_a_folder_holds_few_files() -> None:
    assert {folder for folder, size in layout.folder_sizes().items() if size > layout.MOST_FILES} == set()


# --- the reader itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `towline` of the test's own, which the reader reads instead."""
    (tmp_path / "towline" / "engine").mkdir(parents=True)
    for name in ("__init__", "_text", "engine/__init__"):
        (tmp_path / f"towline/{name}.py").write_text("")
    monkeypatch.setattr(layout, "ROOT", tmp_path)
    monkeypatch.setattr(layout, "PACKAGES", {"towline": tmp_path / "towline"})
    return tmp_path / "towline"


@pytest.mark.parametrize(
    "statement",
    [
        "from .._text import escape",
        "from .. import _text",
        "from towline._text import escape",
        "import towline._text",
        "def late():\n    from .._text import escape",
        "if TYPE_CHECKING:\n    from .._text import escape",
    ],
)
def test_each_kind_of_import_is_an_arrow(package: Path, statement: str) -> None:
    (package / "engine" / "looks.py").write_text(statement)
    assert layout.graph()["towline.engine.looks"] == {"towline._text"}


def test_a_circle_is_found_through_late_and_type_only_imports(package: Path) -> None:
    (package / "engine" / "a.py").write_text("def late():\n    from .b import x")
    (package / "engine" / "b.py").write_text("if TYPE_CHECKING:\n    from .c import x")
    (package / "engine" / "c.py").write_text("from . import a")
    (package / "engine" / "d.py").write_text("from .a import x")
    assert layout.circles(layout.graph()) == [["towline.engine.a", "towline.engine.b", "towline.engine.c"]]


@pytest.mark.parametrize(
    "statement",
    [
        "import anyio",
        "import socket",
        "from time import monotonic",
        "import random",
        "at = datetime.now()",
        "import asyncio.events",
    ],
)
def test_an_impure_line_is_found(package: Path, statement: str) -> None:
    (package / "engine" / "a.py").write_text(f"import json\n{statement}\n")
    (found,) = layout.impurities(package / "engine" / "a.py")
    assert found.startswith("towline/engine/a.py:2: ")
