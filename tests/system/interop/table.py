"""The tables of docs/servers.md: read their rows, and write what a run saw. A cell holds times, so none is compared."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .groups import GROUPS, Group, Table
from .scenes import Seen

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "servers.md"
TABLES: Final = [(group, table) for group in GROUPS for table in group.tables]


def heads(group: Group, table: Table) -> tuple[list[str], list[str]]:
    """The titles of columns and rows, as declared."""
    return [scene.title for scene in table.scenes], [row.title for row in group.rows]


def written_heads(table: Table) -> tuple[list[str], list[str]]:
    """The titles of columns and rows, as the document has them."""
    found = _marked(table.name).search(DOCUMENT.read_text())
    assert found is not None, f"docs/servers.md has no table for {table.name}"
    first, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[2].splitlines()]
    return first[1:], [row[0] for row in rows]


def write(seen: Mapping[tuple[str, str], Mapping[str, Seen]]) -> None:
    """Write the tables; `seen` is by group and row. A row that was not played keeps its place and says so."""
    text = DOCUMENT.read_text()
    for group, table in TABLES:
        columns, rows = heads(group, table)
        played = [seen.get((group.name, row), {}) for row in rows]
        cells = [[row, *(_cell(one.get(column)) for column in columns)] for row, one in zip(rows, played, strict=True)]
        lines = [["", *columns], ["---"] * (1 + len(columns)), *cells]
        text = _put(text, table.name, "".join(f"| {' | '.join(line)} |\n" for line in lines))
    parts = {row.part: row for group in GROUPS for row in group.rows if (group.name, row.title) in seen}
    versions = ", ".join(sorted(part.version() for part in parts.values()))
    python = f"Python {platform.python_version()} on {platform.system()}"
    DOCUMENT.write_text(_put(text, "versions", f"Run with {versions}; {python}.\n"))


def _put(text: str, name: str, part: str) -> str:
    return _marked(name).sub(lambda found: found[1] + part + found[3], text)


def _cell(seen: Seen | None) -> str:
    if seen is None:
        return "not run"
    return seen.words if not seen.findings else f"**{seen.words}: {'; '.join(seen.findings)}**"


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
