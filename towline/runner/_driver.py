"""Runs a lifecycle on the event loop: events in, effects out, in order.

- Run to completion. An event raised while effects are performed or a function of the program runs is queued, never
  nested.
- A request may come between any two bytecodes of any thread. It steps at once, before it returns, and touches nothing
  else; the loop is woken and performs its effects. Effects left by an older generation are then skipped, unless they
  release something.
- A timer's expiry carries the ticket of its arming, so that an expiry of an earlier arming is stale.
- Events that follow each other without end leave the loop its turn, so that the block can still be cancelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Final, Generic

import anyio

from .._exceptions import UnexpectedFailure
from .._tasks import Tasks, unexpected
from ._steps import E, F, L, N, S, Stepped, Steps
from ._timers import Timers

#: Steps and effects after which `pump` lets the loop run other tasks. No connection has that many at once.
_TURN: Final = 10_000


class Driver(Generic[S, E, F, L, N]):
    """Runs the steps of one lifecycle, as the table or the program defines them.

    - `perform` performs one effect. `always` are the types of effects that release something or report a fact: they are
      performed even if the state has changed since.
    - `took` gets every step with an event, in order, before its effects: to record and count it.
    - `changed` gets every step that changed the state, after the step's own effects.
    - `expired` turns the expiry of a timer into an event, or returns None if it handled it.
    - `broke` turns a failure that no code expected into an event, or returns None if it handled it.
    """

    def __init__(
        self,
        steps: Steps[S, E, F, L, N],
        tasks: Tasks,
        *,
        perform: Callable[[F], object],
        always: tuple[type, ...],
        took: Callable[[Stepped[S, F, L, N]], object],
        changed: Callable[[Stepped[S, F, L, N]], object],
        expired: Callable[[Any, int], E | None],
        broke: Callable[[UnexpectedFailure], E | None],
    ) -> None:
        self.steps = steps
        self.tasks = tasks
        self.clock = tasks.loop.time
        #: How often each state was entered, so that a wait for one does not miss a short visit.
        self.visits: Counter[Any] = Counter()
        self._perform = perform
        self._always = always
        self._took = took
        self._changed = changed
        self._expired = expired
        self._broke = broke
        self._timers = Timers(tasks, self._expiry)
        # The step that was processed last, the effects still to perform, and the events and calls waiting. They are
        # lists, because few wait, and three empty deques take 2 KiB. Other threads add to them, which is atomic.
        self._taken = steps.take_first()
        self._effects: list[tuple[int, F | Stepped[S, F, L, N]]] = []
        self._events: list[E] = []
        self._calls: list[Callable[[], object]] = []
        #: The thread that pumps, or 0.
        self._pumping = 0
        # Created when a task waits for a change, and set at the next change.
        self._change: anyio.Event | None = None
        tasks.unforeseen = self.broke

    @property
    def snapshot(self) -> S:
        """The current snapshot."""
        return self.steps.snapshot

    def begin_with(self, snapshot: S) -> bool:
        """Start with a stored snapshot; returns False if an event has changed the snapshot before."""
        return self.steps.begin_with(snapshot)

    # --- events in -------------------------------------------------------------------------------------------------

    def post(self, event: E) -> None:
        """Queue an event and process it in order. For tasks of the block."""
        self._events.append(event)
        self.pump()

    def take(self, event: E) -> None:
        """Process a request at once, on the loop; raises `ForbiddenRequest` if the state does not allow it."""
        try:
            self.steps.add(event)
        finally:
            self.pump()

    def request(self, event: E) -> None:
        """Step at once for a request; its effects follow. Safe from any thread, signal handler or finalizer.

        Raises `ForbiddenRequest` if the state does not allow it.
        """
        self.change(lambda levels: (levels, event))

    def change(self, news: Callable[[L], tuple[L, E | None]]) -> None:
        """Step at once for a change of the host's levels; otherwise like `request`."""
        try:
            self.steps.change(news)
        finally:
            self._wake()

    def soon(self, call: Callable[[], object]) -> None:
        """Have the loop make a call soon. Safe from any thread, signal handler or finalizer."""
        self._calls.append(call)
        self._wake()

    def _wake(self) -> None:
        # A pump of this thread performs it, or wakes the loop at its end. An effect that makes requests without end
        # would otherwise wake the loop for each of them.
        if self._pumping != get_ident():
            self.tasks.call_soon(self.pump)

    def broke(self, failure: UnexpectedFailure) -> None:
        """Post the event for a failure that no code expected."""
        event = self._broke(failure)
        if event is not None:
            self.post(event)

    # --- effects out -----------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Perform everything that is waiting: calls, effects of steps, events. Runs on the loop."""
        if self._pumping:
            return
        self._pumping = get_ident()
        try:
            for _ in range(_TURN):
                if self._calls:
                    self._make(self._calls.pop(0))
                elif self._effects:
                    generation, effect = self._effects.pop(0)
                    if isinstance(effect, Stepped):
                        self._make(self._changed, effect)
                    elif generation == self.snapshot.generation or isinstance(effect, self._always):
                        self._make(self._perform, effect)
                elif not self.process_steps():
                    if not self._events:
                        break
                    self.steps.add(self._events.pop(0))
        finally:
            self._pumping = 0
            # After a whole turn, or if a signal handler made a request just before.
            if self._calls or self._effects or self._events or self._taken.following is not None:
                self.tasks.call_soon(self.pump)

    def process_steps(self) -> bool:
        """Report the steps added since, and queue their effects; returns False if there are none."""
        before = self._taken
        while (stepped := self._taken.following) is not None:
            self._taken = stepped
            if stepped.entry is None:
                continue
            self._took(stepped)
            after = stepped.after
            self.queue_effects(after.generation, stepped.effects)
            if after.state is not stepped.before.state:
                self.visits[after.state] += 1
                self._effects.append((after.generation, stepped))
        return self._taken is not before

    def queue_effects(self, generation: int, effects: Iterable[F]) -> None:
        """Queue effects that belong to no step, such as those of the start."""
        self._effects.extend((generation, effect) for effect in effects)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Call the program's functions inside this block: their requests are performed after it."""
        outer, self._pumping = self._pumping, get_ident()
        try:
            yield
        finally:
            self._pumping = outer
        self.pump()

    def _make(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        except Exception as error:
            if not isinstance(error, UnexpectedFailure):
                error = unexpected(error, "the runner", self.tasks.log)
            self.broke(error)

    # --- timers ----------------------------------------------------------------------------------------------------

    def arm(self, timer: Any, ticket: int, seconds: float) -> None:
        """Start a timer, replacing one of the same name."""
        self._timers.arm(timer, ticket, seconds)

    def disarm(self, timer: Any) -> None:
        """Stop a timer if it runs."""
        self._timers.disarm(timer)

    def _expiry(self, timer: Any, ticket: int) -> None:
        # A failure must not reach the timers, whose other deadlines still count.
        self._make(self._process_expiry, timer, ticket)

    def _process_expiry(self, timer: Any, ticket: int) -> None:
        event = self._expired(timer, ticket)
        if event is not None:
            self.post(event)

    # --- waiting and stopping --------------------------------------------------------------------------------------

    async def wait_changed(self) -> None:
        """Wait until something has changed and conditions must be checked again."""
        if self._change is None:
            self._change = anyio.Event()
        await self._change.wait()

    def note_change(self) -> None:
        """Wake the tasks that wait for a change."""
        if self._change is not None:
            self._change.set()
            self._change = None

    async def stop(self, event: E, released: Callable[[], Awaitable[object]], *, seconds: float) -> None:
        """Process the request to stop, and wait until everything is released, for at most `seconds`.

        A cancellation of the caller waits until then.
        """
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + seconds):
            self.take(event)
            await released()
