"""10,000 simulated storms: no end lost, none told twice."""

import time

import pytest

from towline.testing import simulate_storm, virtual_time_backends

RUNS = 10_000


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_simulated_storms(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    wrong: list[str] = []
    faults = dials = exhausted = 0
    seconds = 0.0
    for seed in range(RUNS // 2):
        report = simulate_storm(seed, backend=backend)
        wrong += [str(report)] if report.findings else []
        faults += len(report.faults)
        dials += report.dials
        exhausted += report.exhausted
        seconds += report.seconds
    with capsys.disabled():
        print(  # noqa: T201 - a soak prints its figures
            f"\nL1–L4, {backend}: {RUNS // 2} storms, {faults} faults, {dials} dials, {exhausted} times given up, "
            f"{seconds / 86_400:.0f} simulated days in {time.monotonic() - begun:.0f} s: {len(wrong)} wrong"
        )
    assert not wrong
