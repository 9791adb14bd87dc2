"""The tables of docs/servers.md have the rows and columns that are played; what is in them is a run's own."""

from __future__ import annotations

import pytest
from interop.groups import GROUPS, Group
from interop.table import heads, written_heads


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_document_has_what_is_played(group: Group) -> None:
    assert written_heads(group) == heads(group)
