"""What a program that follows a job is told, as frozen values.

Every update is JSON with a `type` through `msgspec.json.encode`. `seq` and `epoch` place it in the server's log where
the server keeps one; `timestamp` is the server's, in milliseconds since 1970. Text in an update is the server's: escape
it before a terminal or a page shows it (`towline.escape`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ._exceptions import Damaged
from .statemachine import Cause, State
from .transport import PIPELINES


class Update(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What all updates share."""

    job: str
    pipeline: str = ""
    timestamp: float = 0
    seq: int | None = None
    epoch: str | None = None


class JobStarted(Update, frozen=True, kw_only=True, tag="job_started"):
    """The job has begun; `estimated_duration` is in seconds."""

    total_count: int | None = None
    estimated_duration: float | None = None


class Progress(Update, frozen=True, kw_only=True, gc=False, tag="progress"):
    """The job has come further; `progress` is a share of 1, None where the server gives only a count or a text.

    A consumer that is slow gets several of them merged into the newest: `first_seq` to `seq` is then what it stands
    for. Without a log `first_seq` is None, and `merged` alone tells how many there were.
    """

    progress: float | None
    status: str = ""
    processed_count: int | None = None
    current_item: str | None = None
    first_seq: int | None = None
    merged: int = 1


class Resynced(Update, frozen=True, kw_only=True, tag="resynced"):
    """The follower came back into step, or (after the last attempt) learnt what it had missed.

    `kind`: `replay` (the server sends again all that was missed), `snapshot` (it told where the job stands now),
    `unavailable` (it keeps no state of this job), `end` (the end came before what lies between). `from_seq` to
    `to_seq` is what the re-sync covers; `missed` of these events are not delivered one by one, None where the server
    keeps no log. `refused`: the snapshot was older than what had been shown, and was not used. `first`: nothing was
    shown before, so this is the beginning and no interruption. The other fields are the snapshot's.
    """

    kind: Literal["replay", "snapshot", "unavailable", "end"]
    from_seq: int | None = None
    to_seq: int | None = None
    missed: int | None = None
    refused: bool = False
    first: bool = False
    processed_count: int | None = None
    total_count: int | None = None
    current_item: str | None = None


class Stalled(Update, frozen=True, kw_only=True, tag="stalled"):
    """The link is alive, and the job gave no sign for `seconds`: no message, and no state that differs from the last.

    Reported at each look into a silence: after 120 s, 360 s, then every 600 s (`Policy.stall_after`).
    """

    seconds: float


class JobComplete(Update, frozen=True, kw_only=True, tag="job_complete"):
    """The job ended well.

    `result` is of the pipeline's type, or plain JSON values where it has none. Where the result does not fit that type
    it is plain JSON as well, and `problem` says why. A large result is not in the message: then `result_url` is set,
    `Connection.fetch_result()` gets it, and `result` is what the message says beside the URL, if anything. Where the
    server sent no result at all, `problem` says so.
    """

    result: Any = None
    result_url: str | None = None
    problem: str | None = None


class JobFailed(Update, frozen=True, kw_only=True, tag="job_failed"):
    """The job failed; `retryable` speaks of a new job. `problem` says so where the server gave no reason."""

    code: str = ""
    message: str = ""
    details: Any = None
    retryable: bool | None = None
    problem: str | None = None


class JobCanceled(Update, frozen=True, kw_only=True, tag="job_canceled"):
    """The job was stopped on request.

    `assumed`: no message said so. The server had agreed to stop the job, and then no longer knew it or its token.
    """

    processed_count: int | None = None
    reason: str | None = None
    assumed: bool = False
    problem: str | None = None


class StateChange(Struct, frozen=True, kw_only=True, tag_field="type", tag="state"):
    """The connection went from one state to another; `cause` where a failure led to it, `at` on the loop's clock."""

    previous: State
    state: State
    cause: Cause | None
    at: float


#: How a job ended.
Outcome: TypeAlias = JobComplete | JobFailed | JobCanceled
AnyUpdate: TypeAlias = JobStarted | Progress | Resynced | Stalled | JobComplete | JobFailed | JobCanceled

#: The machine's word for each end.
OUTCOME_KINDS: Final[dict[type[Update], Literal["complete", "failed", "canceled"]]] = {
    JobComplete: "complete",
    JobFailed: "failed",
    JobCanceled: "canceled",
}


def merge(older: Progress, newer: Progress) -> Progress | None:
    """One progress that stands for both, or None where the newer does not come after the older in the same log.

    Numbers between them are those of events that show nothing (heartbeats): what is missing is told by a `Resynced`.
    """
    return _joined([older, newer]) if _follows(older, newer) else None


def merge_runs(updates: Iterable[AnyUpdate]) -> list[AnyUpdate]:
    """The same updates in order, with each run of progress as `merge` makes it of two: one that stands for all."""
    merged: list[AnyUpdate] = []
    run: list[Progress] = []
    for update in updates:
        if run and not (isinstance(update, Progress) and _follows(run[-1], update)):
            merged.append(_joined(run))
            run = []
        if isinstance(update, Progress):
            run.append(update)
        else:
            merged.append(update)
    if run:
        merged.append(_joined(run))
    return merged


def _follows(older: Progress, newer: Progress) -> bool:
    if older.epoch != newer.epoch:
        return False
    return older.seq is None or newer.first_seq is None or newer.first_seq > older.seq


def _joined(run: list[Progress]) -> Progress:
    if len(run) == 1:
        return run[0]
    first = None if any(update.first_seq is None for update in run) else run[0].first_seq
    progress = next((update.progress for update in reversed(run) if update.progress is not None), None)
    merged = sum(update.merged for update in run)
    return msgspec.structs.replace(run[-1], progress=progress, first_seq=first, merged=merged)


#: Most characters of a server's text in a record that would be too large otherwise.
_TEXT_KEPT: Final = 500


def dump_outcome(outcome: Outcome, limit: int) -> str:
    """An outcome as JSON text of at most `limit` bytes; a larger one without its result, and with a word about it."""
    try:
        text = msgspec.json.encode(outcome)
    except RecursionError:
        text = b""  # it is nested too deep to be written here
    if not 0 < len(text) <= limit:
        kept: dict[str, Any] = {name: None for name in ("result", "details") if hasattr(outcome, name)}
        for name in outcome.__struct_fields__:
            value = getattr(outcome, name)
            if isinstance(value, str):
                kept.setdefault(name, value[:_TEXT_KEPT])
        kept["problem"] = "the result was too large to be kept beside the token"
        text = msgspec.json.encode(msgspec.structs.replace(outcome, **kept))
    return text.decode()


def load_outcome(text: str, pipelines: Mapping[str, type]) -> Outcome:
    """Read what `dump_outcome` wrote; the result gets its pipeline's type again, where it still fits that.

    Raises `Damaged` for what is no outcome.
    """
    outcome: Outcome
    try:
        outcome = msgspec.json.decode(text, type=Outcome)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Damaged("the end on record cannot be read") from error
    if isinstance(outcome, JobComplete) and outcome.result is not None and outcome.result_url is None:
        shape = {**PIPELINES, **pipelines}.get(outcome.pipeline)
        if shape is not None:
            try:
                outcome = msgspec.structs.replace(outcome, result=msgspec.convert(outcome.result, shape))
            except msgspec.ValidationError as error:
                problem = f"the result on record does not fit its pipeline's type: {error}"
                outcome = msgspec.structs.replace(outcome, problem=problem)
    return outcome
