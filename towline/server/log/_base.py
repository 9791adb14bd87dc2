"""What the hub keeps of its jobs, and the one small interface behind which it is kept.

A job's log is its events, numbered 1, 2, 3 … within one epoch, together with the state those events add up to. An
engine writes both in one transaction: a reader of the state and its `seq` knows exactly which events it holds.

An engine knows nothing of sockets, pipelines or time: moments come in as milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType

from ...protocols.wire.messages import (
    TERMINAL_TYPES,
    VERSION,
    ErrorFrame,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    encode,
)
from ._bells import Bell
from ._clients import Arrival, Clients

Status: TypeAlias = Literal["running", "complete", "failed", "canceled"]

#: How a terminal event ends the state.
ENDS: Final[dict[str, Status]] = {"job_complete": "complete", "error": "failed", "job_canceled": "canceled"}

#: The type of the events that may be merged for a watcher that is behind.
PROGRESS: Final = "job_progress"
#: A job keeps so many tokens, those that expire last.
TOKENS_PER_JOB: Final = 32

# The payload is written whole before it is framed, so the frame types are used without their payload's type.
_FRAMES: Final[dict[str, Any]] = {
    "job_started": JobStartedFrame,
    PROGRESS: JobProgressFrame,
    "job_complete": JobCompleteFrame,
    "error": ErrorFrame,
    "job_canceled": JobCanceledFrame,
}


class Place(NamedTuple):
    """Where a job stands among its owner's jobs, which are in the order of their creation."""

    created: int
    id: str


class Missing(Enum):
    """Why there is no such job."""

    UNKNOWN = "unknown"
    GONE = "gone"


class Event(Struct, frozen=True, dict=True):
    """One event of a job's log. `payload` is JSON with its type repeated, `timestamp` milliseconds since 1970.

    `first` is set in a progress that stands for all progress from that `seq` on.
    """

    job_id: str
    pipeline: str
    epoch: str
    seq: int
    type: str
    timestamp: int
    payload: bytes
    first: int | None = None

    @cached_property
    def terminal(self) -> bool:
        """Whether the job sends nothing after this."""
        return self.type in TERMINAL_TYPES

    @cached_property
    def text(self) -> str:
        """The text frame, made once however many sockets it goes to."""
        merged = {} if self.first is None else {"first_seq": self.first}
        return encode(
            _FRAMES[self.type](
                job_id=self.job_id,
                pipeline=self.pipeline,
                timestamp=self.timestamp,
                version=VERSION,
                seq=self.seq,
                epoch=self.epoch,
                payload=Raw(self.payload),
                **merged,
            )
        ).decode()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job and its state as of event `seq`. Moments are milliseconds since 1970, `outcome` and `checkpoint` JSON.

    `outcome` is the terminal payload without its type. `attempts` counts the runs of the job since its last event.
    """

    id: str
    pipeline: str
    owner: str
    epoch: str
    created: int
    seq: int = 0
    status: Status = "running"
    total: int | None = None
    processed: int | None = None
    current_item: str | None = None
    updated: int | None = None
    ended: int | None = None
    attempts: int = 0
    outcome: bytes | None = None
    checkpoint: bytes | None = None

    @property
    def running(self) -> bool:
        """Whether no terminal event has been written."""
        return self.status == "running"


class Change(Struct, frozen=True, kw_only=True):
    """What an event changes in the state; what is UNSET stays as it is."""

    total: int | UnsetType | None = UNSET
    processed: int | UnsetType = UNSET
    current_item: str | UnsetType | None = UNSET
    checkpoint: bytes | UnsetType = UNSET
    outcome: bytes | UnsetType = UNSET


class Entry(Struct, frozen=True):
    """An event that is to be written; `payload` and `at` as in `Event`. With a `number`, only as the event with it."""

    type: str
    payload: bytes
    at: int
    change: Change | None = None
    number: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request that started a job: the same `key` of the same owner means the same job, if `digest` agrees."""

    key: bytes
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token as it is kept: by digest only. `replaces` is the digest of the one it was refreshed from."""

    digest: bytes
    job_id: str
    expires: int
    replaces: bytes | None = None


class RequestMismatch(Exception):
    """The owner has used this key for another request; nothing was created."""


class EventLog(AbstractAsyncContextManager[Any, bool | None], Protocol):
    """Where jobs are kept: entered before use, once. Every call raises `HubStorageError` where the engine fails;
    nothing is then half done. In a `shared` log all of it may be: the answer was lost.
    """

    async def check(self) -> None:
        """Raise `HubStorageError` unless the log takes writes, and its readers hear of them, as far as it knows."""

    @property
    def shared(self) -> bool:
        """Whether other hubs work on the same log, so that who runs a job must be agreed on."""

    async def note(self, name: str) -> str | None:
        """Read a short text that hubs keep about the log itself."""

    async def keep_note(self, name: str, value: str, *, replace: bool) -> str:
        """Keep such a text, unless there is one and it is not to be replaced. Returns the one that is kept."""

    async def is_empty(self) -> bool:
        """Whether the log holds no job, not even an ended one."""

    async def create(self, job: Job, request: Request | None) -> Job:
        """Write a new job, or give the one the same request has made before.

        Raises `RequestMismatch` where the request's key was used for something else.
        """

    async def requested(self, owner: str, key: bytes) -> bool:
        """Whether there is a job that a request of the owner's with this key has made."""

    async def job(self, job_id: str) -> Job | Missing:
        """Read a job's state and its `seq`, as of one moment."""

    async def append(
        self,
        job_id: str,
        event_type: str,
        payload: bytes,
        at: int,
        change: Change | None = None,
    ) -> Event | None:
        """Write one event and what it changes, and number it; a terminal type ends the job.

        None: the job had ended before (or is not there), and nothing was written. So of several that want to end a
        job exactly one wins. A count below the state's is not written either: progress never goes back. The same
        holds for a `job_started` that is not the first event: it may be repeated if the answer was lost.
        """

    async def append_all(self, job_id: str, entries: Sequence[Entry]) -> int:
        """Write several events in order, as `append` does, in one transaction; how many of them were written."""

    async def touch(self, job_id: str, at: int) -> None:
        """Note a sign of life of a running job as its `updated`, without an event."""

    async def read(self, job_id: str, after: int, limit: int) -> Sequence[Event]:
        """Read up to `limit` events with a `seq` above `after`, in order.

        An event may be in the state a moment before it can be read; the bell rings when it can.
        """

    def subscribe(self, job_id: str, *, ends_only: bool = False) -> AbstractContextManager[Bell]:
        """Give a bell that rings after each new event of any hub or worker, or only when the job may have ended."""

    @property
    def clients(self) -> Clients:
        """The sockets of this hub, by client."""

    async def arrive(self, arrival: Arrival) -> int:
        """Let every hub on this log know that a client has a new socket, so that its earlier ones are let go.

        The answer is the highest number of a socket that the client is known to have had of late.
        """

    async def unfinished(self) -> Sequence[Job]:
        """Read the jobs that have not ended, oldest first."""

    async def count_running(self, owner: str) -> int:
        """Count the owner's jobs that have not ended."""

    async def newest(self, owner: str, limit: int, before: Place | None = None) -> Sequence[Job]:
        """Read the owner's newest jobs, ended or not, newest first; with `before`, those that follow it in this order.

        What may be large is left out: checkpoints, and the outcome of a complete job.
        """

    async def count_attempt(self, job_id: str) -> int:
        """Note that the job's function is called, and say how many times it was since the log last moved."""

    async def claim(self, job_id: str, seconds: float) -> bool:
        """Take or keep the right to run a job for so long; 0 lets it go. False: another hub has it."""

    async def add_token(self, token: Token) -> None:
        """Keep a token's digest; of one job only the 32 that expire last are kept."""

    async def token(self, digest: bytes) -> Token | None:
        """Find a token by its digest."""

    async def limit_token(self, digest: bytes, expires: int) -> None:
        """Let a token expire at `expires`, if that is earlier than before."""

    async def remove_ended(self, before: int) -> Sequence[str]:
        """Remove the jobs that ended before that moment, leaving only word that they are gone; give their ids."""

    async def remove_traces(self, before: int) -> None:
        """Forget even that jobs were there, where they went before that moment."""
