"""Every number of the lifecycle, as frozen and validated values.

All times are in seconds. No delay is drawn here: a policy gives the bounds, and the engine, which owns the random
generator, draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, get_args

from msgspec import Struct

from ..._exceptions import InvalidArgument

Jitter: TypeAlias = Literal["none", "equal", "full"]


def _positive(name: str, number: float) -> None:
    if not (math.isfinite(number) and number > 0):
        raise InvalidArgument(name, "must be a positive number")


def _not_negative(name: str, number: float) -> None:
    if not (math.isfinite(number) and number >= 0):
        raise InvalidArgument(name, "must be zero or a positive number")


class Delay(Struct, frozen=True):
    """The bounds of a random delay: uniform in `low`..`high`, at least `at_least`, plus uniform in 0..`extra`."""

    low: float
    high: float
    at_least: float = 0.0
    extra: float = 0.0

    def draw(self, random: Callable[[], float]) -> float:
        """Draw the delay in seconds; `random` returns numbers in 0..1."""
        delay = max(self.low + (self.high - self.low) * random(), self.at_least)
        return delay + self.extra * random() if self.extra else delay

    def moved_behind(self, least: float, width: float) -> Delay:
        """The same delay, but not before `least`, and still random: over its own width or `width`, if that is less."""
        if self.low >= least:
            return self
        high = max(self.high, least + min(self.high - self.low, width))
        return Delay(least, high, at_least=self.at_least, extra=self.extra)


def exactly(seconds: float) -> Delay:
    """A delay of exactly this many seconds."""
    return Delay(seconds, seconds)


class Advice(Struct, frozen=True, kw_only=True):
    """The server's advice about when to reconnect.

    `retry_after` (HTTP `Retry-After`) is the least wait. `retry_in` and `spread` come with a close for all clients:
    wait `retry_in`, then a random part of `spread`.
    """

    retry_after: float | None = None
    retry_in: float | None = None
    spread: float | None = None

    def least(self, limit: float) -> float:
        """The least wait that the server asked for, in seconds, capped at `limit`."""
        return min(self.retry_in if self.retry_in is not None else self.retry_after or 0.0, limit)


def advised(delay: Delay, least: float) -> Delay:
    """The delay, but at least `least`, plus a random part so that clients with the same advice do not coincide."""
    return Delay(delay.low, delay.high, at_least=least, extra=min(5.0, 0.1 * least))


class Backoff(Struct, frozen=True, kw_only=True):
    """The wait before retry n (0, 1, 2 ...) of an outage, and the number of retries.

    The window is `base * factor**n`, capped at `cap`, then jittered: `none` waits the whole window, `equal` at least
    half of it, `full` any time from `floor` to the whole window. `shared_window` is the least window for a cause that
    affects every client at once; it keeps 10,000 clients from reconnecting in one second. An outage ends with
    `exhausted` after `attempts` retries or `seconds`, whichever comes first.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 30.0
    floor: float = 0.25
    jitter: Jitter = "full"
    attempts: int = 20
    seconds: float = 600.0
    shared_window: float = 5.0

    def __post_init__(self) -> None:
        for name in ("cap", "seconds"):
            _positive(name, getattr(self, name))
        for name in ("base", "floor", "shared_window"):
            _not_negative(name, getattr(self, name))
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InvalidArgument("factor", "must be at least 1")
        if self.jitter not in get_args(Jitter):
            raise InvalidArgument("jitter", f"must be one of {', '.join(get_args(Jitter))}")
        if self.attempts < 0:
            raise InvalidArgument("attempts", "must not be negative")

    @classmethod
    def patient(cls) -> Backoff:
        """The default: up to 20 retries, within 10 minutes; each wait is random, so that clients do not come together.

        The first wait is 0.25 to 1 s (to 5 s for a cause that all clients share). The upper bound doubles up to 30 s.
        Together the 20 waits last 4 minutes on average (243 s), and almost 5 if each attempt fails at once, because
        attempts start at least 4 s apart (`Policy.dial_spacing`).
        """
        return cls()

    @classmethod
    def original(cls) -> Backoff:
        """Exactly 1, 2, 4, 8, 16 s, five retries, as the original system did.

        It is not the default: without jitter all clients dial in the same second, and with five retries most of them
        give up during a server restart that takes longer than 31 s.
        """
        return cls(jitter="none", attempts=5, floor=0.0, shared_window=0.0)

    def window(self, n: int, *, shared: bool = False) -> float:
        """The window of retry n, capped and not yet jittered."""
        # factor**n overflows a float for a large n; the cap applies long before that.
        grown = self.base * self.factor ** min(n, 64)
        return min(self.cap, max(self.shared_window if shared else self.base, grown))

    def delay(self, n: int, *, shared: bool = False, advice: Advice | None = None, limit: float = 900.0) -> Delay:
        """The delay before retry n; it respects the server's advice, capped at `limit`."""
        if advice is not None and advice.retry_in is not None:
            start = advice.least(limit)
            return Delay(start, start + min(advice.spread or 0.0, limit))
        window = self.window(n, shared=shared)
        low = {"none": window, "equal": window / 2, "full": min(self.floor, window)}[self.jitter]
        return advised(Delay(low, window), 0.0 if advice is None else advice.least(limit))


_POSITIVE: Final = (
    *("dial_window", "hold", "stable_after", "revival_window", "advice_limit"),
    *("connect_deadline", "token_deadline", "ping_after", "lost_after", "probe", "fetch_deadline", "status_deadline"),
)
_NOT_NEGATIVE: Final = (
    *("dial_spacing", "prompt", "restored_window", "free_restarts"),
    *("grace", "revival_spacing", "close_wait", "cancel_wait"),
)


class Policy(Struct, frozen=True, kw_only=True):
    """All other numbers of a connection. The defaults suit a desktop or terminal program.

    Dialling: dials are at least `dial_spacing` apart, and at most `dials_per_window` happen within `dial_window`, even
    after successful ones. `prompt` is the longest wait after a user's action, a wake-up or a return to the foreground;
    `restored_window` is the longest wait after the path came back. While the path is down the engine delays a dial by
    `hold`, then tries once without using the budget. `free_restarts` is how many attempts of an outage may restart for
    free because the path changed.

    Links: a link counts as stable after `stable_after` in `connected`. In the background the engine closes everything
    after `grace` (0 on phones). After `violations` broken streams without a stable link in between it gives up.

    Silence: the engine fetches the state after `stall_after[0]` without a sign of the job, again after `stall_after[1]`
    and so on; the last number repeats. After the second check without a sign it reconnects once. After a silence of
    `stall_limit` it gives up with the reason `stalled`. None, the default, sets no limit, because a job may be silent
    for hours. Set a limit for a server whose state says "running" for a job that no longer exists. While the job is
    paused, `pause_looks` replace these: the first look, and the time between the later ones. A link that ends meanwhile
    is opened again after a wait between the two.

    Revivals from `exhausted` are at least `revival_spacing` apart, at most `revivals_per_window` in `revival_window`.
    """

    backoff: Backoff = Backoff()
    dial_spacing: float = 4.0
    dials_per_window: int = 60
    dial_window: float = 600.0
    prompt: float = 0.25
    restored_window: float = 1.0
    hold: float = 60.0
    free_restarts: int = 3
    stable_after: float = 30.0
    stall_after: tuple[float, ...] = (120.0, 240.0, 600.0)
    stall_limit: float | None = None
    pause_looks: tuple[float, float] = (15.0, 60.0)
    grace: float = 30.0
    violations: int = 3
    refetch_waits: tuple[float, ...] = (0.5, 1.0, 2.0)
    revival_spacing: float = 30.0
    revivals_per_window: int = 6
    revival_window: float = 3600.0
    advice_limit: float = 900.0
    #: The deadline of a whole attempt: DNS, TCP, TLS, upgrade. Before it, the token provider has `token_deadline`.
    connect_deadline: float = 10.0
    token_deadline: float = 30.0
    #: Liveness: ping after `ping_after` without received bytes; the link is lost after `lost_after`, or `probe` after
    #: a probe.
    ping_after: float = 15.0
    lost_after: float = 25.0
    probe: float = 5.0
    #: How long the closing handshake may take: `close_wait` at the job's end and in `aclose()`, `cancel_wait` in
    #: `cancel()`.
    close_wait: float = 2.0
    cancel_wait: float = 0.5
    #: The state fetch while syncing: the deadline of each try and the waits between tries. Other fetches try once, with
    #: `status_deadline`. A link that is in step at its first fact has as long as one try before the state is fetched.
    fetch_deadline: float = 10.0
    fetch_waits: tuple[float, ...] = (1.0, 2.0, 4.0)
    status_deadline: float = 5.0

    @classmethod
    def original(cls) -> Policy:
        """The numbers of the original system: `Backoff.original()`, and no least time between two dials."""
        return cls(backoff=Backoff.original(), dial_spacing=0.0)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            _positive(name, getattr(self, name))
        for name in _NOT_NEGATIVE:
            _not_negative(name, getattr(self, name))
        for name in ("dials_per_window", "revivals_per_window", "violations"):
            if getattr(self, name) < 1:
                raise InvalidArgument(name, "must be at least 1")
        if not self.stall_after:
            raise InvalidArgument("stall_after", "needs at least one number")
        if not 0 < self.pause_looks[0] <= self.pause_looks[1] < math.inf:
            raise InvalidArgument("pause_looks", "needs two numbers above 0, the smaller one first")
        if self.stall_limit is not None:
            _positive("stall_limit", self.stall_limit)
        for name in ("stall_after", "refetch_waits", "fetch_waits"):
            for number in getattr(self, name):
                _positive(name, number)
        if self.lost_after <= self.ping_after:
            raise InvalidArgument("lost_after", "must be greater than ping_after, which leaves time to answer a ping")

    def next_look(self, looks: int) -> float:
        """The length of the silence, in seconds, at which the next check is due after `looks` checks."""
        waits = self.stall_after
        due = sum(waits[: looks + 1]) + max(0, looks + 1 - len(waits)) * waits[-1]
        return due if self.stall_limit is None else min(due, self.stall_limit)
