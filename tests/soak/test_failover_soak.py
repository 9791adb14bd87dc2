"""The primary Redis is killed under load again and again."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KILLS = 20


@pytest.mark.anyio
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.promises("hub", "Redis: the primary is killed under load", "20 times: events lost, doubled, ends wrong: 0")
async def test_failovers(
    redis_server: Any,
    tmp_path: Path,
    load: Callable[[str], ModuleType],
    count: Callable[[int], int],
    reached: Callable[..., None],
) -> None:
    failover = load("server/system/test_failover.py")
    seed = time.time_ns() % 10**6
    wrong = await failover.run_failovers(count(KILLS), redis_server, tmp_path, random.Random(seed))
    reached(f"{count(KILLS)} kills (seed {seed}), {failover.JOBS * failover.FOLLOWERS} followers: {len(wrong)} wrong")
    assert wrong == []
