"""The machine in the long run: 200,000 steps of anything, and cancel at any moment, under virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from stateful import connection_machine, play
from tour import take_tour

from towline.testing import virtual_time_backends

pytestmark = pytest.mark.timeout(3600)
STEPS = 200_000
STORIES = 400
MOMENTS = 2_000
backends = pytest.mark.parametrize("backend", virtual_time_backends())


def long_run(stories: int, steps: int) -> settings:
    """Settings of one long run, which keeps nothing and hurries for nobody."""
    return settings(
        max_examples=stories,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.promises("L3", "every state x event is a listed cell", "Hypothesis, 200,000 steps: 0 surprises")
def test_two_hundred_thousand_steps(
    load: Callable[[str], ModuleType], count: Callable[[int], int], reached: Callable[..., None]
) -> None:
    properties = load("statemachine/test_properties.py")
    steps, rounds = 0, 0

    class Counted(properties.World):  # type: ignore[name-defined,misc]
        def take(self, event: Any) -> None:
            nonlocal steps
            steps += 1
            super().take(event)

    # Hypothesis decides how long a story is, so the steps are counted, and it plays on until there are enough.
    while steps < count(STEPS):
        rounds += 1
        case = seed(rounds)(Counted).TestCase
        case.settings = long_run(500 if count(STEPS) == STEPS else 20, 100)
        case("runTest").runTest()
    reached(f"{steps:,} steps in {rounds} rounds: 0 surprises")


@pytest.mark.promises("L3", "a whole connection under whatever Hypothesis invents", "400 stories x 40 lines: 0 wrong")
@backends
def test_stories(backend: str, count: Callable[[int], int], reached: Callable[..., None]) -> None:
    case = connection_machine(backend).TestCase
    case.settings = long_run(count(STORIES), 40)
    case("runTest").runTest()
    reached(f"{count(STORIES)} stories of up to 40 lines: 0 wrong")


@pytest.mark.promises("L7", "cancel at a random moment, simulated: final, nothing left", "2,000 x asyncio and trio: 0")
@backends
def test_cancel_at_a_random_moment(backend: str, count: Callable[[int], int], reached: Callable[..., None]) -> None:
    found = []
    for number in range(count(MOMENTS)):
        draw = random.Random(number)
        story: list[tuple[str, object]] = [
            ("upgrade", draw.choice([None, "503", "hang", "401", "404"])),
            ("state", draw.choice([None, "503", "hang"])),
            ("sleep", draw.choice([0.0, 0.01, draw.uniform(0, 40)])),
            ("progress", 3),
            draw.choice([("cut", "rst"), ("hold", None), ("close", 1012), ("background", None), ("end", "complete")]),
            ("sleep", draw.choice([0.0, 0.0, draw.uniform(0, 0.1), draw.uniform(0, 60)])),
            ("cancel", None),
        ]
        if findings := play(story, backend=backend, numbered=draw.random() < 0.5):
            found.append((number, findings, story))
    reached(f"{count(MOMENTS):,} moments: {len(found)} wrong")
    assert found == []


@pytest.mark.promises("L8", "`cancel()` racing the end, simulated: one wins, and is told", "2,000: 0 wrong")
@backends
def test_cancel_racing_the_end(backend: str, count: Callable[[int], int], reached: Callable[..., None]) -> None:
    found = []
    for number in range(count(MOMENTS)):
        draw = random.Random(number)
        race: list[tuple[str, object]] = [
            ("end", draw.choice(["complete", "fail", "cancel"])),
            ("sleep", draw.choice([0.0, 0.0, draw.uniform(0, 0.7)])),
            ("cancel", None),
        ]
        if draw.random() < 0.3:
            race.reverse()
        # The server's answers take a while, so that the two cross on their way.
        story = [("weather", draw.choice(["fair", "slow"])), ("sleep", draw.uniform(0, 4)), ("progress", 2), *race]
        if findings := play(story, backend=backend, numbered=draw.random() < 0.5):
            found.append((number, findings, story))
    reached(f"{count(MOMENTS):,} races: {len(found)} wrong")
    assert found == []


@pytest.mark.promises("L3", "the tour through every cell, with a real connection", "10 times: 0 findings, 0 missed")
@backends
def test_the_tour_again_and_again(backend: str, reached: Callable[..., None]) -> None:
    for _ in range(10):
        tour = take_tour(backend=backend)
        assert (tour.findings, tour.missed) == ([], set())
    reached("10 times: 0 findings, 0 missed")
