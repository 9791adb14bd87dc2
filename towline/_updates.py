"""The updates that a program receives while it follows a job, as frozen values.

`msgspec.json.encode` writes every update as JSON with a `type`. `seq` and `epoch` are the position in the server's log,
if it keeps one; `mark` is an opaque position. `timestamp` is the server's, in milliseconds since 1970. Text in an
update comes from the server: escape it before a terminal or a page shows it (`towline.escape`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ._exceptions import Damaged


class Update(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The fields that all updates share. A protocol may leave `job` and the position to the engine."""

    job: str = ""
    pipeline: str = ""
    timestamp: float = 0
    seq: int | None = None
    epoch: str | None = None
    mark: str | None = None


class JobStarted(Update, frozen=True, kw_only=True, tag="job_started"):
    """The job has started; `estimated_duration` is in seconds."""

    total_count: int | None = None
    estimated_duration: float | None = None


class Progress(Update, frozen=True, kw_only=True, gc=False, tag="progress"):
    """The job has made progress; `fraction` is a share of 1, None if the server gives only a count or a text.

    A slow consumer gets several updates merged into the newest; it then stands for `first_seq` to `seq`. Without a log
    `first_seq` is None, and only `merged` says how many there were.
    """

    fraction: float | None
    status: str = ""
    processed_count: int | None = None
    total_count: int | None = None
    current_item: str | None = None
    first_seq: int | None = None
    merged: int = 1


class Output(Update, frozen=True, kw_only=True, tag="output"):
    """A part of the job's output: text, a log line, a partial result, any JSON value.

    `key` names the output it belongs to. `append` adds `value` to what came before under this key, `replace` takes its
    place.
    """

    key: str
    value: Any
    op: Literal["append", "replace"] = "append"


class Paused(Update, frozen=True, kw_only=True, tag="paused"):
    """The job waits for `kind`, such as `input` or `auth`; a later update of another type means that it goes on."""

    kind: str
    message: str = ""


class Resynced(Update, frozen=True, kw_only=True, tag="resynced"):
    """The follower is up to date again, or (after the last attempt) has learned what it missed.

    `kind` is one of:

    - `replay`: the server resends everything missed.
    - `snapshot`: the server sent the job's current state.
    - `unavailable`: what was missed is not known: the server keeps no state of this job, or it was not needed.
    - `end`: the end arrived before the events between.

    The re-sync covers `from_seq` to `to_seq`. Of these events `missed` are not delivered one by one (None if the server
    keeps no log). `refused`: the snapshot was older than updates shown before, and was not used. `first`: nothing was
    shown before, so this is the start and not an interruption. What a snapshot shows follows in separate updates,
    such as a `Progress` without a fraction.
    """

    kind: Literal["replay", "snapshot", "unavailable", "end"]
    from_seq: int | None = None
    to_seq: int | None = None
    missed: int | None = None
    refused: bool = False
    first: bool = False


class Stalled(Update, frozen=True, kw_only=True, tag="stalled"):
    """The connection works, but the job has been silent for `seconds`: no message, and no change of its state.

    Reported at each check during a silence: after 120 s, 360 s, then every 600 s (`Policy.stall_after`).
    """

    seconds: float


class JobComplete(Update, frozen=True, kw_only=True, tag="job_complete"):
    """The job completed.

    `result` is plain JSON values, or has the type that the program gave for the pipeline. A result that does not fit
    its type is plain JSON too, and `problem` says why. For a large result `result_url` is set and
    `Connection.fetch_result()` fetches it; `result` then holds any other fields of the message. If the server sent no
    result, `problem` says so.
    """

    result: Any = None
    result_url: str | None = None
    problem: str | None = None


class JobFailed(Update, frozen=True, kw_only=True, tag="job_failed"):
    """The job failed; `retryable` is about a new job. `problem` says so if the server gave no reason."""

    code: str = ""
    message: str = ""
    details: Any = None
    retryable: bool | None = None
    problem: str | None = None


class JobCancelled(Update, frozen=True, kw_only=True, tag="job_canceled"):
    """The job was canceled on request.

    `assumed`: no message confirmed it. The server had accepted the cancel request, and then no longer knew the job or
    its token.
    """

    processed_count: int | None = None
    reason: str | None = None
    assumed: bool = False
    problem: str | None = None


#: The end of a job.
Outcome: TypeAlias = JobComplete | JobFailed | JobCancelled
AnyUpdate: TypeAlias = (
    JobStarted | Progress | Output | Paused | Resynced | Stalled | JobComplete | JobFailed | JobCancelled
)

#: The state machine's name for each end.
OUTCOME_KINDS: Final[dict[type[Update], Literal["complete", "failed", "canceled"]]] = {
    JobComplete: "complete",
    JobFailed: "failed",
    JobCancelled: "canceled",
}


def merge(older: Progress, newer: Progress) -> Progress | None:
    """Merge two progress updates into one; None if the newer does not follow the older in the same log.

    Events numbered between them had nothing to show (heartbeats), or are delivered apart: a `Resynced` reports events
    that were missed.
    """
    merged = merge_runs((older, newer))
    return merged[0] if len(merged) == 1 and isinstance(merged[0], Progress) else None


def merge_runs(updates: Iterable[AnyUpdate]) -> list[AnyUpdate]:
    """Merge each run of progress updates into one, as `merge` does; the order stays the same."""
    merged: list[AnyUpdate] = []
    run: list[Progress] = []
    for update in updates:
        if type(update) is Progress:
            if run:
                last, first_seq = run[-1], update.first_seq
                if last.epoch == update.epoch and (last.seq is None or first_seq is None or first_seq > last.seq):
                    run.append(update)
                    continue
                merged.append(_joined(run))
            run = [update]
            continue
        if run:
            merged.append(_joined(run))
            run = []
        merged.append(update)
    if run:
        merged.append(_joined(run))
    return merged


def _joined(run: list[Progress]) -> Progress:
    if len(run) == 1:
        return run[0]
    first = None if None in [update.first_seq for update in run] else run[0].first_seq
    fraction = next((update.fraction for update in reversed(run) if update.fraction is not None), None)
    merged = sum([update.merged for update in run])
    return msgspec.structs.replace(run[-1], fraction=fraction, first_seq=first, merged=merged)


def without_place(update: Update) -> Update:
    """What an update says about the job, without its job, place and time."""
    if isinstance(update, Progress):
        return msgspec.structs.replace(update, job="", timestamp=0, seq=None, epoch=None, mark=None, first_seq=None)
    return msgspec.structs.replace(update, job="", timestamp=0, seq=None, epoch=None, mark=None)


#: The most characters of a server's text to keep in a record that would otherwise be too large.
_TEXT_KEPT: Final = 500


def dump_outcome(outcome: Outcome, limit: int) -> str:
    """Encode an outcome as JSON of at most `limit` bytes; if it is larger, drop the result and say so in `problem`."""
    try:
        text = msgspec.json.encode(outcome)
    except RecursionError:
        text = b""  # nested too deep to be encoded
    if not 0 < len(text) <= limit:
        kept: dict[str, Any] = {name: None for name in ("result", "details") if hasattr(outcome, name)}
        for name in outcome.__struct_fields__:
            value = getattr(outcome, name)
            if isinstance(value, str):
                kept.setdefault(name, value[:_TEXT_KEPT])
        kept["problem"] = "the result was too large to be stored with the token"
        text = msgspec.json.encode(msgspec.structs.replace(outcome, **kept))
    return text.decode()


def load_outcome(text: str, pipelines: Mapping[str, type] | None = None) -> Outcome:
    """Read the text of `dump_outcome`; the result gets its pipeline's type again if it still fits.

    Raises `Damaged` if the text is not an outcome.
    """
    outcome: Outcome
    try:
        outcome = msgspec.json.decode(text, type=Outcome)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Damaged("the stored end of the job cannot be read") from error
    if isinstance(outcome, JobComplete) and outcome.result is not None and outcome.result_url is None:
        shape = (pipelines or {}).get(outcome.pipeline)
        if shape is not None:
            try:
                outcome = msgspec.structs.replace(outcome, result=msgspec.convert(outcome.result, shape))
            except msgspec.ValidationError as error:
                problem = f"the stored result does not fit its pipeline's type: {error}"
                outcome = msgspec.structs.replace(outcome, problem=problem)
    return outcome
