"""The tables of docs/servers.md have the rows and columns that are played; what is in them is a run's own."""

from __future__ import annotations

import pytest
from interop.groups import Group, Table
from interop.table import TABLES, heads, written_heads


@pytest.mark.parametrize(("group", "table"), [pytest.param(*pair, id=pair[1].name) for pair in TABLES])
def test_the_document_has_what_is_played(group: Group, table: Table) -> None:
    assert written_heads(table) == heads(group, table)
