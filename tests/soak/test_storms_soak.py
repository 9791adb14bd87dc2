"""10,000 simulated storms: no end lost, none told twice, nothing after it, no gap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simulated_storm import simulate_storm

from towline.testing import virtual_time_backends


@pytest.mark.timeout(3000)
@pytest.mark.promises("L1", "one end, or `Exhausted` told, in simulated storms", "10,000 seeds in all: 0 wrong")
@pytest.mark.promises("L2", "nothing after the end, same runs", "0")
@pytest.mark.promises("L4", "no gap and no repeat against the server's log, same runs", "0")
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_simulated_storms(backend: str, count: Callable[[int], int], reached: Callable[..., None]) -> None:
    each = count(10_000) // 2
    first = virtual_time_backends().index(backend) * each
    wrong: list[str] = []
    faults = dials = exhausted = 0
    seconds = 0.0
    for seed in range(first, first + each):
        report = simulate_storm(seed, backend=backend)
        wrong += [str(report)] if report.findings else []
        faults += len(report.faults)
        dials += report.dials
        exhausted += report.exhausted
        seconds += report.seconds
    reached(
        f"{each:,} storms, {faults:,} faults, {dials:,} dials, {exhausted} times given up, "
        f"{seconds / 86_400:.1f} simulated days: {len(wrong)} wrong"
    )
    assert not wrong
