"""Crowds of clients: the figures that the default policy must reach, and that the others do as published."""

from __future__ import annotations

import random
from functools import cache

import pytest
from crowd import ALGORITHMS, Algorithm, CrowdResult, Scene, crowd

BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}
HERD = 1000


@cache
def herd(name: str, outage: float = 10.0) -> CrowdResult:
    """A tenth of the herd of 10,000 at 200 a second: all shares are the same."""
    return crowd(BY_NAME[name], Scene(outage=outage, accepts=20), clients=HERD, seed=1)


def flap(name: str) -> int:
    return crowd(BY_NAME[name], Scene(flapping=True, horizon=300), clients=50).dials_a_minute


@pytest.mark.parametrize("outage", [0.0, 10.0, 45.0])
def test_a_patient_herd_is_spread_and_comes_back_whole(outage: float) -> None:
    outcome = herd("towline patient", outage)
    # 25 % of 10,000; a smaller herd's busiest second has more noise.
    assert outcome.busiest <= 0.28
    assert outcome.gave_up == 0
    assert outcome.back_by is not None
    assert outcome.back_by < outage + 120
    assert not outcome.at_cap


def test_a_told_spread_is_kept() -> None:
    outcome = herd("towline patient, spread")
    assert outcome.busiest <= 0.05
    assert outcome.gave_up == 0
    assert min(outcome.dials) >= 10


def test_the_original_loses_most_of_its_clients() -> None:
    outcome = herd("towline original")
    assert outcome.busiest == 1.0
    assert outcome.gave_up >= 0.8 * HERD
    assert outcome.back_by is None
    assert list(outcome.dials) == [1, 3, 7, 15, 31]


def test_the_published_ones_do_as_published() -> None:
    assert herd("SignalR").gave_up > 0
    assert set(herd("SignalR").dials) <= {0, 2, 12, 42}
    assert herd("socket.io").at_cap == pytest.approx(1.0)
    assert (herd("websockets", outage=300.0).at_cap or 0) > 0
    assert herd("AWS full jitter").at_cap == 0
    assert herd("gRPC").gave_up == 0
    draw = random.Random(7)
    delays = BY_NAME["websockets"].delays
    assert delays is not None
    first, second, third, fourth, *_ = (delay for _, delay in zip(range(20), delays(draw), strict=False))
    assert first == 0
    assert second <= 5
    assert (third, fourth) == (3.1, pytest.approx(5.0158))


def test_a_flapping_server_is_dialled_at_most_ten_times_a_minute() -> None:
    assert flap("towline patient") <= 10
    assert flap("towline original") <= 10
    assert flap("SignalR") > 500
    assert flap("AWS full jitter") > 60


def test_a_seed_gives_the_same_run_and_another_another() -> None:
    def run(seed: int) -> CrowdResult:
        return crowd(BY_NAME["towline patient"], Scene(outage=10.0, accepts=20), clients=200, seed=seed)

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_one_s_own_algorithm() -> None:
    mine = Algorithm("mine", "every second", 1.0, lambda draw: iter([1.0] * 500))
    outcome = crowd(mine, Scene(outage=3.0, accepts=1000), clients=10)
    assert outcome.dials == {1: 10, 2: 10, 3: 10}
    assert outcome.back_by == pytest.approx(3.15)
