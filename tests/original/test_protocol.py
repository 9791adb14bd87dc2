"""The recordings of the original backend, read by the protocol `Bookstrack` and put in order: no socket, no engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from recordings import JOB, STATE_PATH, Recording

from towline import AnyUpdate, JobComplete, JobFailed, Outcome, Progress, Resynced, Secret
from towline._facts import (
    Answer,
    CancelAnswer,
    CancelJob,
    Closed,
    Ended,
    Follow,
    GetResult,
    GetState,
    InStep,
    Message,
    Request,
    Snapshot,
    Value,
)
from towline.engine.sequence.sequencer import End, Sequencer, Synced
from towline.protocols.bookstrack import Bookstrack

BACKEND = Bookstrack("wss://backend.example/ws/progress", JOB)
FOLLOW = Follow("websocket")


def path_of(request: Request | None) -> str:
    assert request is not None
    url = request.url.reveal() if isinstance(request.url, Secret) else request.url
    return url.removeprefix("https://backend.example").removeprefix("wss://backend.example")


def answer_of(entry: dict[str, Any]) -> Answer:
    return Answer(entry["status"], entry.get("headers") or {}, entry["body"].encode())


def followed(recording: Recording) -> tuple[list[AnyUpdate], Outcome | None]:
    """Follow a recording as the engine does: each socket is synced with the last state that was seen."""
    sequencer, updates, outcome = Sequencer(JOB), list[AnyUpdate](), None
    state: list[Any] = []
    for entry in recording.entries:
        match entry["kind"]:
            case "open":
                sequencer.opened("state")
                finding = sequencer.state(state) if state else sequencer.unavailable()
                assert finding == Synced()
                sequencer.release()
            case "received":
                finding = sequencer.follow(BACKEND.read(FOLLOW, Message(entry["text"])))
                if isinstance(finding, End):
                    updates += finding.before
                    outcome = finding.outcome
            case "http" if (entry["method"], entry["path"]) == ("GET", STATE_PATH):
                state = list(BACKEND.read(GetState(), answer_of(entry)))
            case "closed":
                assert list(BACKEND.read(FOLLOW, Closed(entry["code"], entry["reason"]))) == []
        updates += sequencer.take()
    return updates, outcome


@pytest.mark.parametrize(
    ("name", "kind", "counts"),
    [
        ("newest-batch", JobComplete, [1, 2, 3, 4, 5, 6]),
        ("newest-batch-dropped", JobComplete, [1, 2, 5, 6, 7, 8]),
        ("newest-batch-canceled", None, [1, 2, 3, 4]),
        ("newest-batch-ended-while-away", None, [1]),
        ("newest-csv", JobFailed, None),
        ("newest-scan", JobComplete, None),
        ("first-scan", JobComplete, None),
        ("first-csv", JobComplete, None),
    ],
)
def test_a_recording_is_followed_to_its_end(name: str, kind: type | None, counts: list[int] | None) -> None:
    recording = Recording(name)
    updates, outcome = followed(recording)
    assert outcome is None if kind is None else type(outcome) is kind
    shown = [update.processed_count for update in updates if isinstance(update, Progress)]
    told = [json.loads(text) for _, text in recording.story]
    progress = [one["payload"]["processedCount"] for one in told if one["type"] == "job_progress"]
    if counts is not None:
        assert [count for count in shown if count] == counts
    assert [count for count in shown if count] == [count for count in progress if count]
    # U12: the state's count stays 0 and is never shown after a larger one.
    assert shown == sorted(count for count in shown if count is not None)


def test_each_message_with_an_object_as_item_is_shown() -> None:
    updates, _ = followed(Recording("newest-batch"))
    items = [update.current_item for update in updates if isinstance(update, Progress) and update.processed_count]
    assert len(items) == 6


def test_u5_what_was_lost_while_away_is_reported_as_unknown() -> None:
    updates, _ = followed(Recording("newest-batch-dropped"))
    again = [update for update in updates if isinstance(update, Resynced) and not update.first]
    assert [update.missed for update in again] == [None]


def test_u11_the_bug_of_the_csv_import_is_a_failed_job() -> None:
    _, outcome = followed(Recording("newest-csv"))
    assert isinstance(outcome, JobFailed)
    assert (outcome.code, outcome.message) == ("E_CSV_PROCESSING_FAILED", "startTime is not defined")


def test_the_result_of_a_scan_is_where_it_says_and_without_its_envelope() -> None:
    recording = Recording("newest-scan")
    _, outcome = followed(recording)
    assert isinstance(outcome, JobComplete)
    want = GetResult(outcome)
    [entry] = recording.calls("GET", path_of(BACKEND.ask(want, None)))
    assert list(BACKEND.read(want, answer_of(entry))) == [Value(json.loads(entry["body"])["data"])]


def test_a_cancel_is_asked_and_answered_as_recorded() -> None:
    request = BACKEND.ask(CancelJob("k"), None)
    assert request is not None
    assert isinstance(request.body, bytes)
    calls = Recording("newest-batch-canceled").calls("POST", path_of(request))
    assert len(calls) == 2, "the second cancel has the same answer"
    for entry in calls:
        assert json.loads(request.body) == entry["request_json"]
        assert list(BACKEND.read(CancelJob("k"), answer_of(entry))) == [CancelAnswer("accepted")]


def test_a_state_is_a_snapshot_without_a_position_and_a_refused_one_means_nothing_by_itself() -> None:
    calls = Recording("newest-batch").calls("GET", path_of(BACKEND.ask(GetState(), None)))
    assert calls
    for entry in calls:
        facts = list(BACKEND.read(GetState(), answer_of(entry)))
        if entry["status"] == 200:
            [snapshot] = facts
            assert isinstance(snapshot, Snapshot)
            assert snapshot.at is None
        else:
            assert facts == []


@pytest.mark.parametrize("name", ["newest-batch", "first-scan"])
def test_the_answer_to_ready_says_that_no_replay_follows(name: str) -> None:
    text = Recording(name).answer_on_socket("ready_ack")
    assert list(BACKEND.read(FOLLOW, Message(text))) == [InStep()]


def test_no_end_is_read_from_a_close() -> None:
    for name in ("newest-batch", "newest-csv", "newest-batch-canceled"):
        closed = Recording(name).closed
        assert not [fact for fact in BACKEND.read(FOLLOW, Closed(closed["code"])) if isinstance(fact, Ended)]
