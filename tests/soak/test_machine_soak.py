"""The machine in the long run: 200,000 steps of anything, and cancel at any moment, on both backends."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from towline.testing import connection_machine, play, take_tour, virtual_time_backends

STORIES = 400
CANCELS = 2000


def properties() -> ModuleType:
    """The quick suite's own stateful test."""
    path = Path(__file__).parents[1] / "statemachine" / "test_properties.py"
    spec = importlib.util.spec_from_file_location("machine_properties", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(3600)
def test_two_hundred_thousand_steps() -> None:
    case = properties().World.TestCase
    case.settings = settings(
        max_examples=2000, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case("runTest").runTest()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_stories(backend: str) -> None:
    case = connection_machine(backend).TestCase
    case.settings = settings(
        max_examples=STORIES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case("runTest").runTest()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_cancel_at_a_random_moment(backend: str) -> None:
    """Racing whatever goes on, the end not least: one of the two wins, and nothing is left."""
    found = []
    for seed in range(CANCELS):
        draw = random.Random(seed)
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
            found.append((seed, findings, story))
    assert found == []


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_the_tour_again_and_again(backend: str) -> None:
    for _ in range(10):
        tour = take_tour(backend=backend)
        assert (tour.findings, tour.missed) == ([], set())
