"""Stories that Hypothesis makes up, played by a real connection on both backends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from stateful import connection_machine, play

from towline import Connection
from towline.testing import virtual_time_backends


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_whatever_happens_the_end_is_told_once_and_nothing_is_left(backend: str) -> None:
    case = connection_machine(backend).TestCase
    case.settings = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
    case("runTest").runTest()


@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize(
    "story",
    [
        [],
        [("cancel", None), ("retry", None), ("end", "complete")],
        [("aclose", None), ("end", "fail"), ("connect", None)],
        [("sleep", 5.0), ("progress", 3), ("hold", None), ("end", "cancel"), ("sleep", 700.0)],
        [("upgrade", "401"), ("sleep", 30.0), ("retry", None), ("sleep", 5.0)],
        [("sleep", 1.0), ("background", None), ("sleep", 130.0), ("end", "complete"), ("wake", None)],
        [("weather", "silent"), ("path lost", None), ("cut", "rst"), ("sleep", 700.0), ("cancel", None)],
    ],
    ids=str,
)
def test_stories_told_by_hand(story: list[tuple[str, object]], backend: str) -> None:
    assert play(story, backend=backend) == []


def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "cancel", lambda line: True)
    assert play([("cancel", None)]) == ["cancel() returned True in connecting"]
