"""What the run saw of other people's servers, and the switch that writes it down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from interop.scenes import Seen
from interop.table import write


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-servers` puts what the run saw into docs/servers.md."""
    parser.addoption("--write-servers", action="store_true", help="write the tables of docs/servers.md")


@pytest.fixture(scope="session")
def seen(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], dict[str, Seen]]]:
    """What was seen, by group and row."""
    seen: dict[tuple[str, str], dict[str, Seen]] = {}
    yield seen
    if request.config.getoption("--write-servers"):
        write(seen)
