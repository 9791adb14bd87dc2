"""The audit finds what it is for: each way in which updates can be wrong, alone."""

from typing import Any

import pytest

from towline import JobComplete, JobFailed, JobStarted, Progress, Resynced
from towline.testing import LoggedEvent, audit_updates


def logged(seq: int, type: str = "job_progress", epoch: str = "e1", text: str = "{}") -> LoggedEvent:  # noqa: A002
    return LoggedEvent(epoch, seq, 0.0, type, text)


LOG = [logged(1, "job_started"), *(logged(seq) for seq in range(2, 6)), logged(6, "job_complete")]


def progress(seq: int, count: int | None = None, *, first: int | None = None, epoch: str = "e1") -> Progress:
    return Progress(job="j", epoch=epoch, seq=seq, first_seq=first, fraction=0.5, processed_count=count)


def resynced(to: int, missed: int, epoch: str = "e1", **more: Any) -> Resynced:
    return Resynced(job="j", epoch=epoch, kind="snapshot", from_seq=1, to_seq=to, missed=missed, **more)


STARTED = JobStarted(job="j", epoch="e1", seq=1)
END = JobComplete(job="j", epoch="e1", seq=6)
MIDDLE = [progress(seq, seq) for seq in range(2, 6)]


@pytest.mark.parametrize(
    "updates",
    [
        [STARTED, *MIDDLE, END],
        [STARTED, progress(5, 5, first=2), END],
        [STARTED, resynced(4, 3), progress(5), END],
        [STARTED, resynced(4, 3), progress(4, 4), progress(5), END],
        [STARTED, Resynced(job="j", epoch="e1", kind="replay", from_seq=2, to_seq=3, missed=0), *MIDDLE, END],
        [STARTED, Resynced(job="j", kind="unavailable"), progress(5), END],
    ],
)
def test_what_is_right(updates: list[Any]) -> None:
    assert audit_updates(updates, LOG) == []


@pytest.mark.parametrize(
    ("updates", "finding"),
    [
        ([STARTED, *MIDDLE], "no end"),
        ([STARTED, *MIDDLE, END, END], "2 ends"),
        ([STARTED, *MIDDLE, END, progress(5)], "Progress after the end"),
        ([STARTED, *MIDDLE, JobFailed(job="j", epoch="e1", seq=6)], "the end is error"),
        ([STARTED, *MIDDLE[1:], END], "3 to 3 follows 1"),
        ([STARTED, *MIDDLE[:2], *MIDDLE[1:], END], "3 to 3 follows 3"),
        ([STARTED, progress(5, first=3), END], "3 to 5 follows 1"),
        ([STARTED, resynced(4, 2), progress(5), END], "2 missed up to 4, but 1 were applied"),
        ([STARTED, resynced(4, 3), progress(4), progress(4), progress(5), END], "4 to 4 follows 4"),
        ([STARTED, resynced(4, 3), progress(5), progress(4), END], "4 to 4 follows 5"),
        ([STARTED, *MIDDLE, resynced(5, 0), progress(5), END], "5 to 5 follows 5"),
        ([STARTED, progress(2, 9), progress(3, 8), *MIDDLE[2:], END], "shows 8 after 9"),
        ([progress(1), *MIDDLE, END], "at 1, where the server's log has job_started"),
        ([STARTED, progress(1, epoch="e2"), progress(2)], "of the former epoch 'e1'"),
    ],
)
def test_what_is_wrong(updates: list[Any], finding: str) -> None:
    assert any(finding in found for found in audit_updates(updates, LOG))


def test_giving_up_needs_no_end() -> None:
    assert audit_updates([STARTED], LOG, ended=False) == []


def test_heartbeats_are_not_shown() -> None:
    log = [*LOG[:2], logged(3, text='{"keepAlive":true}'), *LOG[3:]]
    assert audit_updates([STARTED, progress(2), progress(4), progress(5), END], log) == []
    assert audit_updates([STARTED, progress(2), resynced(5, 2), END], log) == []
