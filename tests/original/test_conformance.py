"""The protocol of the original backend passes the conformance kit on the recordings of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from recordings import JOB, STATE_PATH, Recording

from towline._facts import Answer, Closed, Follow, GetState, Message
from towline.protocols import Bookstrack
from towline.protocols._shared.recording import dump_line
from towline.testing import check_protocol, virtual_time_backends

#: The recordings with the end of the job, as messages.
ENDED = [
    "first-csv",
    "first-scan",
    "newest-batch",
    "newest-batch-dropped",
    "newest-batch-reconnect-true",
    "newest-csv",
    "newest-scan",
]


def lines_of(entries: tuple[dict[str, Any], ...]) -> Iterator[str]:
    """The lines that `towline watch --record` would have written."""
    for entry in entries:
        match entry:
            case {"kind": "http", "path": path} if path == STATE_PATH:
                yield dump_line(GetState(), Answer(entry["status"], entry["headers"], entry["body"].encode()))
            case {"kind": "received", "text": text}:
                yield dump_line(Follow("websocket"), Message(text))
            case {"kind": "closed", "code": code, "reason": reason}:
                yield dump_line(Follow("websocket"), Closed(code, reason))


@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize("name", ENDED)
def test_the_protocol_holds(name: str, backend: str) -> None:
    report = check_protocol(
        Bookstrack("ws://backend/ws/progress", JOB), lines_of(Recording(name).entries), backend=backend
    )
    report.raise_for_findings()
    assert report.runs > 50


@pytest.mark.parametrize("name", ["newest-batch-canceled", "newest-batch-ended-while-away"])
def test_a_recording_without_the_end_is_not_enough(name: str) -> None:
    report = check_protocol(Bookstrack("ws://backend/ws/progress", JOB), lines_of(Recording(name).entries))
    assert [finding.expected for finding in report.findings] == ["an end of the job (`Ended`)"]
