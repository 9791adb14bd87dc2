"""Everything the machine knows between two events, as one frozen value."""

from __future__ import annotations

from msgspec import Struct

from ._events import Cause, Facts, Reason, State, Timer


class Snapshot(Struct, frozen=True, kw_only=True):
    """The lifecycle of one connection between two events.

    `generation` is raised by a new attempt, background, cancel, close and the end; `fetch` by each state fetch. Times
    are on the loop's clock, in seconds.
    """

    state: State = State.IDLE
    generation: int = 0
    fetch: int = 0

    # The budget of an outage: the retries made and the seconds spent. The clock stops while the path is down and in the
    # background.
    retries: int = 0
    outage_spent: float = 0.0
    outage_since: float | None = None

    # Counters that only `link_stable` and the user's `connect` or `retry` reset.
    free_restarts: int = 0
    rejections: int = 0
    fetch_rejections: int = 0
    refetches: int = 0
    violations: int = 0

    # The present attempt started although the path was down: its failure does not use up the budget.
    trial: bool = False
    # The latest time of an attempt while the path is down, and the time until which the server asked us to wait.
    hold_until: float | None = None
    advised_until: float | None = None

    # Facts about the server: a sync with it worked once; it accepted this token; it agreed to stop the job.
    peer_known: bool = False
    token_accepted: bool = False
    cancel_accepted: bool = False

    # The job's silence: the checks made, its seconds on earlier links, the time when this link became connected, and
    # whether we reconnected because of it. Reconnects keep all of this; a sign of the job resets it.
    stalls: int = 0
    silence: float = 0.0
    in_step_since: float | None = None
    silence_redialled: bool = False

    # The job waits for a person: its silence means nothing. Any other fact about it ends the pause.
    paused: bool = False

    # Which of the protocol's ways to follow the job is used, counted from 0. It never goes back.
    source: int = 0

    # A renewal of the token is in progress.
    renewing: bool = False

    # The times of past and planned dials, and of revivals: the newest last, bounded by the policy.
    dials: tuple[float, ...] = ()
    revivals: tuple[float, ...] = ()

    # The running timers with their tickets, and the last ticket issued.
    armed: tuple[tuple[Timer, int], ...] = ()
    tickets: int = 0

    # The results so far: the last failure, why the engine gave up, which fixed token was refused, how the job ended.
    cause: Cause | None = None
    reason: Reason | None = None
    refused_token: str | None = None
    outcome: str | None = None

    def ticket(self, timer: Timer) -> int | None:
        """The ticket of a running timer, or None."""
        return next((ticket for armed, ticket in self.armed if armed is timer), None)

    def outage_seconds(self, now: float) -> float:
        """How long the outage has lasted, without the time the path was down or in the background."""
        running = 0.0 if self.outage_since is None else max(0.0, now - self.outage_since)
        return self.outage_spent + running

    def silent_seconds(self, facts: Facts) -> float:
        """How long the job has been silent while this connection was connected."""
        if self.in_step_since is None:
            return self.silence
        if facts.last_sign is not None and facts.last_sign > self.in_step_since:
            return facts.now - facts.last_sign
        return self.silence + facts.now - self.in_step_since
