"""Everything the machine knows between two events, as one frozen value."""

from __future__ import annotations

from msgspec import Struct

from ._events import Cause, Facts, Reason, State, Timer


class Snapshot(Struct, frozen=True, kw_only=True):
    """One connection's lifecycle at rest.

    `generation` is raised by a new attempt, background, cancel, close and the end; `fetch` by each state fetch. Times
    are on the loop's clock, in seconds.
    """

    state: State = State.IDLE
    generation: int = 0
    fetch: int = 0

    # The budget of an outage: retries made, and seconds of it that have run (a hold and the background stop the clock).
    retries: int = 0
    outage_spent: float = 0.0
    outage_since: float | None = None

    # What only `link_stable` and a user's `connect` or `retry` reset.
    free_restarts: int = 0
    rejections: int = 0
    refetches: int = 0
    violations: int = 0

    # The attempt under way was begun although the path was down: its failure is not charged.
    trial: bool = False
    # Until when the waiting attempt may be held for the path, and until when the server asked us to stay away.
    hold_until: float | None = None
    advised_until: float | None = None

    # What is known of the other side: it was in step once; it accepted this token; it agreed to stop the job.
    peer_known: bool = False
    token_accepted: bool = False
    cancel_accepted: bool = False

    # The job's silence: looks made into it, seconds of it that earlier links saw, when this link came in step, and
    # whether a reconnect was made because of it. Reconnects keep all of this; a sign of the job resets it.
    stalls: int = 0
    silence: float = 0.0
    in_step_since: float | None = None
    silence_redialled: bool = False

    # When dials opened (or are to open), and when revivals were made: the newest last, bounded by the policy.
    dials: tuple[float, ...] = ()
    revivals: tuple[float, ...] = ()

    # Which timers run, with the ticket of each, and the last ticket given.
    armed: tuple[tuple[Timer, int], ...] = ()
    tickets: int = 0

    # How it stands: the last failure, why it gave up, which fixed token was refused, how the job ended.
    cause: Cause | None = None
    reason: Reason | None = None
    refused_token: str | None = None
    outcome: str | None = None

    def ticket(self, timer: Timer) -> int | None:
        """The ticket of a running timer, or None."""
        return next((ticket for armed, ticket in self.armed if armed is timer), None)

    def outage_seconds(self, now: float) -> float:
        """How long the outage has lasted, holds and background left out."""
        running = 0.0 if self.outage_since is None else max(0.0, now - self.outage_since)
        return self.outage_spent + running

    def silent_seconds(self, facts: Facts) -> float:
        """How long the job has been silent while this connection was in step to hear it."""
        if self.in_step_since is None:
            return self.silence
        if facts.last_sign is not None and facts.last_sign > self.in_step_since:
            return facts.now - facts.last_sign
        return self.silence + facts.now - self.in_step_since
