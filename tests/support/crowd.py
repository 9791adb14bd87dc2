"""Simulates thousands of clients and one server: how a reconnect policy loads a server that restarts or flaps.

There are no sockets and no waiting, only one queue of virtual time. Towline's clients are the real state machine with
real policies; the others follow the algorithm that their documentation or source publishes. The same seed gives the
same run.

There are two scenes. In the **herd** all clients are dropped at second 0. The server is down for a while, then accepts
a number of connections per second and answers 503 to the rest. In the **flap** the server accepts every connection and
closes it at once. `python tests/support/crowd.py` prints both, for Towline's policies and for published algorithms.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from towline.statemachine import (
    EXPIRIES,
    Advice,
    AnyEvent,
    Arm,
    Cause,
    Connect,
    Dial,
    Facts,
    LinkStable,
    Lost,
    Opened,
    Policy,
    Snapshot,
    State,
    Synced,
    Timer,
    step,
)

#: Seconds until a connection attempt is answered; a flapping server also closes this long after accepting.
ROUND_TRIP: Final = 0.05

REFUSED: Final = Cause(code="connect", text="refused")
OVERLOAD: Final = Cause(code="http 503", text="too many connections at once", shared=True)


@dataclass(frozen=True)
class Scene:
    """The server's behavior: down for `outage` seconds, then `accepts` connections per second; or it flaps.

    `spread`: seconds over which the restarting server asks clients to spread out; only Towline understands it.
    """

    outage: float = 10.0
    accepts: int = 200
    spread: float | None = None
    flapping: bool = False
    horizon: float = 1800.0


@dataclass(frozen=True)
class Algorithm:
    """A reconnect algorithm.

    `delays` gives the wait before each attempt after a drop; when it ends, the client gives up. It starts again at each
    drop, as published clients do. `policy` uses Towline's state machine instead.
    """

    name: str
    source: str
    cap: float
    delays: Callable[[random.Random], Iterator[float]] | None = None
    policy: Policy | None = None
    spread: float | None = None


def _websockets(draw: random.Random) -> Iterator[float]:
    yield 0.0
    yield draw.random() * 5.0
    delay = 3.1
    while True:
        yield delay
        delay = min(delay * 1.618, 90.0)


def _socket_io(draw: random.Random) -> Iterator[float]:
    for n in itertools.count():
        delay = 1.0 * 2 ** min(n, 30)
        off = draw.random() * 0.5 * delay
        yield min(5.0, delay + off if draw.random() < 0.5 else delay - off)


def _signalr(draw: random.Random) -> Iterator[float]:
    yield from (0.0, 2.0, 10.0, 30.0)


def _grpc(draw: random.Random) -> Iterator[float]:
    yield 0.0
    delay = 1.0
    while True:
        yield delay * draw.uniform(0.8, 1.2)
        delay = min(delay * 1.6, 120.0)


def _full_jitter(draw: random.Random) -> Iterator[float]:
    for n in itertools.count():
        yield draw.random() * min(30.0, 2.0 ** min(n, 30))


ALGORITHMS: Final = (
    Algorithm("towline patient", "Backoff.patient()", 30.0, policy=Policy()),
    Algorithm("towline patient, spread", "with a spread sent by the server", 30.0, policy=Policy(), spread=50.0),
    Algorithm("towline original", "Policy.original()", 30.0, policy=Policy.original()),
    Algorithm("websockets", "at once, then 0 to 5 s, then 3.1 s × 1.618, cap 90", 90.0, _websockets),
    Algorithm("socket.io", "1 s × 2 ± 50 %, then cap 5", 5.0, _socket_io),
    Algorithm("SignalR", "0, 2, 10, 30 s", 30.0, _signalr),
    Algorithm("gRPC", "at once, then 1 s × 1.6, cap 120, then ± 20 %", 120.0, _grpc),
    Algorithm("AWS full jitter", "0 to min(30, 2ⁿ) s", 30.0, _full_jitter),
)


@dataclass(frozen=True)
class CrowdResult:
    """The result of a crowd's run.

    `dials` counts attempts per second; `busiest` is the largest second's share of the clients. `at_cap` is the share of
    late delays (from the sixth on) that were exactly the cap, None if there were none. `back_by` is when the last
    client was connected again, None if some never were. `dials_a_minute` is the 99th percentile, over all clients, of
    attempts in the client's busiest minute.
    """

    algorithm: str
    clients: int
    dials: dict[int, int]
    busiest: float
    back_by: float | None
    gave_up: int
    at_cap: float | None
    dials_a_minute: int


class _Client(Protocol):
    back_at: float | None
    dialled: list[float]
    late: list[float]

    @property
    def gave_up(self) -> bool: ...
    def drop(self, now: float, cause: Cause) -> None: ...
    def answer(self, now: float, failure: Cause | None) -> None: ...


class _Crowd:
    """The queue of virtual time, and the server."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._taken: Counter[int] = Counter()

    def at(self, when: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), do))

    def run(self, done: Callable[[], bool]) -> None:
        while self._queue and not done():
            when, _, do = heapq.heappop(self._queue)
            if when > self.scene.horizon:
                return
            self.now = when
            do(when)

    def dial(self, now: float, client: _Client) -> None:
        client.dialled.append(now)
        failure = self._failure(now)
        self.at(now + ROUND_TRIP, lambda then: self._answered(then, client, failure))

    def _failure(self, now: float) -> Cause | None:
        if self.scene.flapping:
            return None
        if now < self.scene.outage:
            return REFUSED
        second = int(now)
        if self._taken[second] >= self.scene.accepts:
            return OVERLOAD
        self._taken[second] += 1
        return None

    def _answered(self, now: float, client: _Client, failure: Cause | None) -> None:
        client.answer(now, failure)
        if failure is None and self.scene.flapping:
            self.at(now + ROUND_TRIP, lambda then: client.drop(then, Cause(code="close 1012", text="", shared=True)))


class _Published:
    """A client that follows a published algorithm."""

    def __init__(self, crowd: _Crowd, algorithm: Algorithm, draw: random.Random) -> None:
        self._crowd = crowd
        self._algorithm = algorithm
        self._draw = draw
        self._delays: Iterator[float] = iter(())
        self._n = 0
        self.back_at: float | None = 0.0
        self.gave_up = False
        self.dialled: list[float] = []
        self.late: list[float] = []

    def drop(self, now: float, cause: Cause) -> None:
        assert self._algorithm.delays is not None
        self.back_at, self._n = None, 0
        self._delays = self._algorithm.delays(self._draw)
        self._next(now)

    def answer(self, now: float, failure: Cause | None) -> None:
        if failure is None:
            self.back_at = now
        else:
            self._next(now)

    def _next(self, now: float) -> None:
        delay = next(self._delays, None)
        if delay is None:
            self.gave_up = True
            return
        self._n += 1
        if self._n > 5:
            self.late.append(delay)
        self._crowd.at(now + delay, lambda then: self._crowd.dial(then, self))


def _stable(policy: Policy) -> Snapshot:
    """A snapshot whose link has been stable for long."""
    snapshot, facts = Snapshot(), Facts(now=-1000.0)
    for event in (Connect(), Opened(), Synced()):
        snapshot = step(snapshot, event, facts, policy).snapshot
    ticket = snapshot.ticket(Timer.STABILITY)
    assert ticket is not None, "a link that has just synced waits to be stable"
    return step(snapshot, LinkStable(ticket=ticket), facts, policy).snapshot


class _Towline:
    """A client that runs Towline's state machine."""

    def __init__(self, crowd: _Crowd, policy: Policy, start: Snapshot, draw: random.Random) -> None:
        self._crowd = crowd
        self._policy = policy
        self._draw = draw.random
        self._snapshot = start
        self.back_at: float | None = 0.0
        self.dialled: list[float] = []
        self.late: list[float] = []

    @property
    def gave_up(self) -> bool:
        return self._snapshot.state is State.EXHAUSTED

    def drop(self, now: float, cause: Cause) -> None:
        self.back_at = None
        self._take(now, Lost(cause=cause))

    def answer(self, now: float, failure: Cause | None) -> None:
        if failure is not None:
            self._take(now, Lost(cause=failure))
            return
        self._take(now, Opened())
        self._take(now, Synced())
        self.back_at = now

    def _take(self, now: float, event: AnyEvent) -> None:
        self._snapshot, effects, _ = step(self._snapshot, event, Facts(now=now), self._policy)
        for effect in effects:
            if isinstance(effect, Dial):
                self._crowd.at(effect.not_before, lambda then: self._crowd.dial(then, self))
            elif isinstance(effect, Arm) and effect.timer in (Timer.BACKOFF, Timer.OUTAGE, Timer.STABILITY):
                delay = effect.delay.draw(self._draw)
                if effect.timer is Timer.BACKOFF and self._snapshot.retries > 5:
                    self.late.append(delay)
                self._crowd.at(now + delay, self._expiry(effect.timer, effect.ticket))

    def _expiry(self, timer: Timer, ticket: int) -> Callable[[float], None]:
        def expire(now: float) -> None:
            if self._snapshot.ticket(timer) == ticket:
                self._take(now, EXPIRIES[timer](ticket=ticket))

        return expire


def crowd(algorithm: Algorithm, scene: Scene, *, clients: int = 10_000, seed: int = 1) -> CrowdResult:
    """Run a crowd of clients through a scene."""
    draw = random.Random(seed)
    world = _Crowd(scene)
    crowd_clients: list[_Client]
    if algorithm.policy is not None:
        start = _stable(algorithm.policy)
        crowd_clients = [_Towline(world, algorithm.policy, start, draw) for _ in range(clients)]
    else:
        crowd_clients = [_Published(world, algorithm, draw) for _ in range(clients)]
    spread = scene.spread if scene.spread is not None else algorithm.spread
    advice = Advice(retry_in=scene.outage, spread=spread) if spread is not None and not scene.flapping else None
    for client in crowd_clients:
        client.drop(0.0, Cause(code="close 1012", text="the server restarts", shared=True, advice=advice))
    waiting = dict.fromkeys(range(clients))

    def done() -> bool:
        # Checked from the front only: a client that is connected again or has given up stays so in this scene.
        while waiting:
            client = crowd_clients[next(iter(waiting))]
            if client.back_at is None and not client.gave_up:
                return False
            del waiting[next(iter(waiting))]
        return True

    world.run((lambda: False) if scene.flapping else done)
    dials = Counter(int(at) for client in crowd_clients for at in client.dialled)
    late = [delay for client in crowd_clients for delay in client.late]
    gave_up = sum(client.gave_up for client in crowd_clients)
    back = [client.back_at for client in crowd_clients]
    minutes = sorted(_busiest_minute(client.dialled) for client in crowd_clients)
    return CrowdResult(
        algorithm=algorithm.name,
        clients=clients,
        dials=dict(sorted(dials.items())),
        busiest=max(dials.values(), default=0) / clients,
        back_by=None if None in back or gave_up else max(at for at in back if at is not None),
        gave_up=gave_up,
        at_cap=sum(delay == algorithm.cap for delay in late) / len(late) if late else None,
        dials_a_minute=minutes[min(len(minutes) - 1, int(len(minutes) * 0.99))],
    )


def _busiest_minute(dialled: list[float]) -> int:
    most = first = 0
    for place, at in enumerate(dialled):
        while dialled[first] <= at - 60:
            first += 1
        most = max(most, place - first + 1)
    return most


def main() -> None:
    print(f"{'herd':<24}{'busiest s':>10}{'all back':>10}{'gave up':>9}{'at cap':>8}")
    for algorithm in ALGORITHMS:
        result = crowd(algorithm, Scene())
        back = "never" if result.back_by is None else f"{result.back_by:.0f} s"
        cap = "–" if result.at_cap is None else f"{result.at_cap:.0%}"
        gave_up = result.gave_up / result.clients
        print(f"{algorithm.name:<24}{result.busiest:>10.1%}{back:>10}{gave_up:>9.0%}{cap:>8}")
    print(f"{'flap':<24}{'dials a minute, p99':>20}")
    for algorithm in ALGORITHMS:
        print(f"{algorithm.name:<24}{crowd(algorithm, Scene(flapping=True, horizon=300.0)).dials_a_minute:>20}")


if __name__ == "__main__":
    main()
