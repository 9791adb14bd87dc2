"""The engine against other people's servers and proxies: real processes, real signals, real refusals."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from interop.groups import GROUPS, Group
from interop.proxies import Proxy
from interop.scenes import Seen
from interop.servers import Server

ROWS = [
    # Every scene is played on both backends; which one a row has does not matter.
    pytest.param(group, row, ("asyncio", "trio")[number % 2], id=f"{group.name}-{row.title}")
    for group in GROUPS
    for number, row in enumerate(group.rows)
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("group", "row", "backend"), ROWS)
def test_followed_to_its_end(
    group: Group,
    row: Server | Proxy,
    backend: str,
    tmp_path: Path,
    seen: dict[tuple[str, str], dict[str, Seen]],
) -> None:
    """Each scene ends with the job's end told once, or with the right refusal."""
    if missing := group.missing(row):
        pytest.skip(missing)
    found = anyio.run(group.play, row, tmp_path, backend=backend)
    seen[group.name, row.title] = found
    assert {title: one.findings for title, one in found.items() if one.findings} == {}
