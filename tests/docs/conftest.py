"""A reader of the tutorial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tutorial import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """An empty folder, a token store and a free port."""
    desk = Desk(tmp_path)
    yield desk
    desk.clear()
