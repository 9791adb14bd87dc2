"""The engine, through random faults in memory: no end lost, none twice, nothing out of order, nothing left."""

from pathlib import Path

import pytest
from simulated_storm import simulate_storm

from towline.testing import virtual_time_backends

KNOWN = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "storm-seeds.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
CHUNK = 25


@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize("first", range(0, 50, CHUNK))
def test_storms(first: int, backend: str) -> None:
    reports = [simulate_storm(seed, backend=backend) for seed in range(first, first + CHUNK)]
    assert not [str(report) for report in reports if report.findings]
    assert any(report.faults for report in reports)


@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize("seed", KNOWN)
def test_seeds_that_once_found_something(seed: int, backend: str) -> None:
    report = simulate_storm(seed, backend=backend)
    assert not report.findings, str(report)


def test_a_seed_is_a_story() -> None:
    once, again = simulate_storm(389), simulate_storm(389)
    assert once == again
    assert once.faults
    assert once != simulate_storm(390)
