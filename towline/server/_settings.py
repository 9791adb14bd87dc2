"""The settings of a hub and its pipelines, as frozen values; the settings check themselves."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .._exceptions import InvalidArgument


@dataclass(frozen=True)
class Pipeline:
    """A kind of job, and the HTTP call that starts it, if it has one."""

    name: str
    path: str | None
    media_types: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise InvalidArgument("name", f"{self.name!r} is not printable text: logs and messages show it")


@dataclass(frozen=True, kw_only=True)
class HubLimits:
    """Bounds of one hub. Sizes are in bytes, times in seconds.

    Raises `InvalidArgument` for a bound that is not above zero.
    """

    upload: int = 1024**3
    inline_result: int = 256 * 1024  #: a larger result goes by URL
    running_jobs: int = 8  #: further ones wait their turn
    jobs_of_owner: int = 1000  #: jobs of one owner that have not ended
    starts: int = 600  #: jobs one owner may start a minute
    calls: int = 600  #: HTTP calls and upgrades one job may get a minute
    reports: int = 6000  #: reports by HTTP that one job may get a minute
    report: int = 1024**2  #: one report by HTTP
    sockets: int = 10_000  #: and event streams
    watchers: int = 64  #: sockets and event streams of one job
    client_message: int = 4096
    client_messages: int = 100  #: messages of one socket, besides its first `ready`
    behind: float = 5  #: how long a socket or event stream may be behind before its progress is merged
    send_wait: float = 30  #: how long a socket or event stream may not take what is sent before it is let go
    heartbeat: float = 20  #: how long a socket is silent before a `ping` is sent
    comment_every: float = 15  #: how long an event stream is silent before a comment is sent
    ready_wait: float = 2  #: how long a new socket may stay silent before it gets everything from the first event
    idle_attempts: int = 20  #: runs of a job in which its log did not move, before it counts as failed

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """How long tokens and results live, in seconds.

    A token lives `token` from when it is given; it may be refreshed in its last `refresh_window`, and until `grace`
    after it ran out. A token refreshed away still holds for `grace` after its successor was first used. Results,
    events and the tokens that were valid at the job's end live `result` from the end; word that the job was there,
    another `trace`. Where hubs share a log, a job whose hub is gone is continued by another after `lease`.

    Raises `InvalidArgument` for a time that is not above zero.
    """

    token: float = 24 * 3600
    refresh_window: float = 6 * 3600
    grace: float = 600
    result: float = 7 * 24 * 3600
    trace: float = 30 * 24 * 3600
    lease: float = 15

    def __post_init__(self) -> None:
        _check_positive(self)


def _check_positive(settings: HubLimits | Lifetimes) -> None:
    for item in fields(settings):
        if not getattr(settings, item.name) > 0:
            raise InvalidArgument(item.name, "must be above zero")
