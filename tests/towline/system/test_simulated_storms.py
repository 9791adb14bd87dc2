"""More seeds of the simulated storms than the quick suite has."""

from __future__ import annotations

import pytest
from simulated_storm import simulate_storm

from towline.testing import virtual_time_backends

CHUNK = 25


@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize("first", range(50, 250, CHUNK))
def test_storms(first: int, backend: str) -> None:
    reports = [simulate_storm(seed, backend=backend) for seed in range(first, first + CHUNK)]
    assert not [str(report) for report in reports if report.findings]
    assert any(report.faults for report in reports)
