"""A recorded run is JSON, and replays step by step; a change of the machine or of the record is seen."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from dry_run import DryRun
from msgspec.structs import replace

from towline._exceptions import ForbiddenRequest, InvalidArgument
from towline.statemachine import (
    Advice,
    AnyEvent,
    Backoff,
    Cancel,
    Cause,
    Connect,
    Entry,
    History,
    JobEnded,
    Lost,
    Opened,
    PathLost,
    PathRestored,
    Policy,
    Recorder,
    State,
    Synced,
    Verdict,
    replay,
)

CAUSE = Cause(code="close 1012", text="restart", shared=True, advice=Advice(retry_in=1.0, spread=5.0))
STORY: list[AnyEvent] = [
    Connect(),
    Opened(generation=1),
    Synced(generation=1, fetch=1),
    Lost(cause=CAUSE, generation=1),
    PathLost(),
    PathRestored(),
    Lost(cause=CAUSE, generation=0),
    JobEnded(outcome="complete", update=b"the books"),
    Connect(),
    Cancel(),
]


def record(limit: int = 256, policy: Policy | None = None) -> History:
    run = DryRun(policy)
    recorder = Recorder(run.policy, limit)
    for event in STORY:
        before = run.snapshot
        verdict: Verdict | None = None
        with contextlib.suppress(ForbiddenRequest):
            verdict = run.take(event).verdict
        entry = Entry(event=event, facts=run.facts, source=before.state, target=run.snapshot.state, verdict=verdict)
        recorder.record(before, entry)
        run.world(now=run.now + 1.0)
    return recorder.history()


@pytest.mark.parametrize("policy", [Policy(), Policy(backoff=Backoff.original(), grace=0.0)], ids=["default", "own"])
def test_round_trip_and_replay(policy: Policy) -> None:
    history = record(policy=policy)
    again = History.from_json(history.to_json())
    assert again == history
    assert again.policy == policy
    assert [entry.verdict for entry in again.entries][-3:] == [Verdict.MOVED, None, Verdict.KEPT]
    assert replay(again) is None


def test_no_job_data_is_kept() -> None:
    assert b"books" not in record().to_json()


def test_the_oldest_entries_are_forgotten_and_the_rest_still_replays() -> None:
    history = record(limit=4)
    assert len(history.entries) == 4
    assert history.start.state is State.RECONNECTING
    assert replay(History.from_json(history.to_json())) is None


def test_an_empty_history() -> None:
    assert replay(Recorder(Policy()).history()) is None


@pytest.mark.parametrize(
    ("field", "value"), [("target", State.EXHAUSTED), ("verdict", Verdict.STALE), ("source", State.CANCELLED)]
)
def test_the_first_divergence_is_shown(field: str, value: Any) -> None:
    history = record()
    entries = list(history.entries)
    entries[3] = replace(entries[3], **{field: value})
    found = replay(replace(history, entries=tuple(entries)))
    assert found is not None
    recorded = (found.passage.source, found.passage.target, found.passage.verdict)
    assert (found.place, recorded) == (3, (entries[3].source.value, entries[3].target.value, entries[3].verdict.value))
    assert (found.target, found.verdict) == ("reconnecting", "moved")


def test_another_policy_diverges() -> None:
    history = record()
    stingy = replace(history, policy=Policy(backoff=Backoff(attempts=0)))
    found = replay(stingy)
    assert found is not None
    assert (found.place, found.target) == (3, "exhausted")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"version": 2}',
        b'{"version": 1, "policy": {"grace": -1}}',
        b'{"version": 1, "entries": [{"event": {"event": "unheard of"}}]}',
        b"[" * 100_000,
    ],
)
def test_damaged_histories_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        History.from_json(data)
    assert caught.value.name == "history"


def test_a_history_is_plain_json() -> None:
    tree = msgspec.json.decode(record().to_json())
    assert tree["version"] == 1
    assert tree["entries"][3]["event"]["event"] == "lost"
    assert tree["entries"][3]["event"]["cause"]["code"] == "close 1012"
