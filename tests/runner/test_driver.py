"""The driver with a small lifecycle: the light of a staircase, which fades after a minute.

DARK -Press-> LIT -(60 s)-> FADING -(10 s)-> DARK        Press while LIT or FADING: the minute starts again
any state -Fuse-> BLOWN, where Press is forbidden        Close: DARK, except when BLOWN
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import NamedTuple, TypeAlias

import anyio
import pytest

from towline import ForbiddenRequest, UnexpectedFailure
from towline._tasks import Tasks
from towline.runner import Driver, Stepped, Steps, Taken

pytestmark = pytest.mark.anyio


class State(Enum):
    DARK = "dark"
    LIT = "lit"
    FADING = "fading"
    BLOWN = "blown"


class Press(NamedTuple):
    """Somebody presses the button."""


class Expired(NamedTuple):
    """A timer has expired."""

    timer: str
    ticket: int


class Fuse(NamedTuple):
    """The fuse has blown."""

    why: str


class Close(NamedTuple):
    """The building is closed."""


class Switch(NamedTuple):
    """Switch the lamp; only the newest generation may."""

    to: str


class Release(NamedTuple):
    """Release the button: always performed."""


class Arm(NamedTuple):
    timer: str
    ticket: int
    seconds: float


class Disarm(NamedTuple):
    """Always performed."""

    timer: str


Event: TypeAlias = Press | Expired | Fuse | Close
Effect: TypeAlias = Switch | Release | Arm | Disarm


class Snapshot(NamedTuple):
    state: State = State.DARK
    generation: int = 0
    ticket: int = 0
    why: str = ""


class Levels(NamedTuple):
    power: bool = True


Step: TypeAlias = Stepped[Snapshot, Effect, Levels, str]


def take(before: Snapshot, event: Event, levels: Levels) -> Taken[Snapshot, Effect, str]:
    """One step of the light; the entry says what happened and where."""
    state, generation, ticket, _ = before
    entry = f"{type(event).__name__} in {state.value}"
    match event:
        case Press() if state is State.BLOWN:
            return Taken(before, (), entry, ForbiddenRequest("press", state.value, "change the fuse"))
        case Press() if levels.power:
            after = Snapshot(State.LIT, generation + 1, ticket + 1)
            return Taken(after, (Disarm("fade"), Switch("lit"), Release(), Arm("light", after.ticket, 60.0)), entry)
        case Expired("light") if event.ticket == ticket:
            after = Snapshot(State.FADING, generation, ticket + 1)
            return Taken(after, (Switch("dim"), Arm("fade", after.ticket, 10.0)), entry)
        case Expired("fade") if event.ticket == ticket:
            return Taken(Snapshot(State.DARK, generation, ticket), (Switch("dark"),), entry)
        case Fuse(why):
            return Taken(
                Snapshot(State.BLOWN, generation + 1, ticket + 1, why), (Disarm("light"), Disarm("fade")), entry
            )
        case Close() if state is not State.BLOWN:
            after = Snapshot(State.DARK, generation + 1, ticket + 1)
            return Taken(after, (Disarm("light"), Disarm("fade"), Switch("dark")), entry)
    return Taken(before, (), entry)


class Light:
    """A light and its runner. `log` holds what happened, in order; `during` what else a performed effect does."""

    def __init__(self, tasks: Tasks, levels: Levels | None = None) -> None:
        self.log: list[str] = []
        self.during: dict[Effect, Callable[[], object]] = {}
        self.keeps_shining = False
        self.runner: Driver[Snapshot, Event, Effect, Levels, str] = Driver(
            Steps(Snapshot(), levels or Levels(), take),
            tasks,
            perform=self._perform,
            always=(Release, Disarm),
            took=lambda stepped: self.log.append(stepped.entry or "no event"),
            changed=self._changed,
            expired=self._expired,
            broke=lambda failure: Fuse(str(failure)),
        )

    @property
    def state(self) -> State:
        return self.runner.snapshot.state

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Arm():
                self.runner.arm(*effect)
            case Disarm():
                self.runner.disarm(effect.timer)
            case Switch():
                self.log.append(f"switched {effect.to}")
            case Release():
                self.log.append("released")
        act = self.during.pop(effect, None)
        if act is not None:
            act()

    def _changed(self, stepped: Step) -> None:
        self.log.append(f"{stepped.before.state.value} -> {stepped.after.state.value}")
        self.runner.note_change()

    def _expired(self, timer: str, ticket: int) -> Event | None:
        if self.keeps_shining and timer == "light":
            self.runner.arm(timer, ticket, 60.0)
            return None
        if timer == "broken":
            raise ZeroDivisionError
        return Expired(timer, ticket)


@asynccontextmanager
async def staircase(levels: Levels | None = None) -> AsyncIterator[Light]:
    """A light that is dark; after the block nothing runs."""
    async with Tasks() as tasks:
        light = Light(tasks, levels)
        yield light
    assert not tasks._running


LIT = ["Press in dark", "switched lit", "released", "dark -> lit"]


# --- run to completion -----------------------------------------------------------------------------------------------


async def test_a_change_is_reported_after_its_step_was_recorded_and_its_effects_performed() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        assert light.log == LIT


async def test_a_step_that_stays_in_its_state_is_recorded_and_reports_no_change() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        light.runner.post(Press())
        assert light.log == [*LIT, "Press in lit", "switched lit", "released"]
        assert light.runner.visits == {State.LIT: 1}


async def test_an_event_posted_while_an_effect_is_performed_is_processed_after_the_whole_step() -> None:
    async with staircase() as light:
        light.during[Switch("lit")] = lambda: (light.runner.post(Close()), light.log.append("posted"))
        light.runner.post(Press())
        assert light.log == [
            "Press in dark",
            "switched lit",
            "posted",
            "released",
            "dark -> lit",
            "Close in lit",
            "switched dark",
            "lit -> dark",
        ]


async def test_an_event_posted_by_the_report_of_a_change_is_not_nested() -> None:
    async with staircase() as light:
        light.during[Release()] = lambda: light.runner.post(Close())
        light.runner.post(Press())
        light.runner.post(Press())
        assert [entry for entry in light.log if " in " in entry] == ["Press in dark", "Close in lit", "Press in dark"]


async def test_calls_of_other_threads_are_made_on_the_loop_and_one_that_raises_breaks_the_light() -> None:
    async with staircase() as light:
        threads: list[threading.Thread] = []

        def act() -> None:
            threads.append(threading.current_thread())
            light.runner.note_change()

        def ask() -> None:
            light.runner.soon(act)

        other = threading.Thread(target=ask)
        other.start()
        other.join()
        assert threads == []
        await light.runner.wait_changed()
        assert threads == [threading.current_thread()]
        light.runner.soon(lambda: {}["nothing"])
        await light.runner.wait_changed()
        assert light.runner.snapshot.why == "the runner raised KeyError"


# --- requests --------------------------------------------------------------------------------------------------------


async def test_a_request_of_another_thread_has_changed_the_state_and_the_loop_performs_its_effects() -> None:
    async with staircase() as light:
        states: list[State] = []

        def press() -> None:
            light.runner.request(Press())
            states.append(light.state)

        other = threading.Thread(target=press)
        other.start()
        other.join()
        assert states == [State.LIT]
        assert light.log == [], "nothing but the state was touched"
        await light.runner.wait_changed()
        assert light.log == LIT


async def test_a_request_inside_an_effect_steps_at_once_and_makes_the_older_effects_stale() -> None:
    """What is left of the first step's effects belongs to an older generation: only what must always run does."""
    async with staircase() as light:

        def close() -> None:
            light.runner.request(Close())
            light.log.append(f"is {light.state.value}")

        light.during[Disarm("fade")] = close
        light.runner.post(Press())
        assert light.log == [
            "Press in dark",
            "is dark",
            "released",
            "dark -> lit",
            "Close in lit",
            "switched dark",
            "lit -> dark",
        ]
        await anyio.sleep(100)
        assert light.state is State.DARK, "the skipped effect was to start the timer"


async def test_requests_and_events_inside_a_turn_are_performed_after_it() -> None:
    async with staircase() as light:
        with light.runner.turn():
            light.runner.request(Press())
            assert light.state is State.LIT
            with light.runner.turn():
                light.runner.post(Close())
            assert light.state is State.LIT, "an event waits for its place"
            assert light.log == []
        assert light.log == [*LIT, "Close in lit", "switched dark", "lit -> dark"]


async def test_a_turn_while_an_effect_is_performed_does_not_nest_what_comes_of_it() -> None:
    async with staircase() as light:

        def turn() -> None:
            with light.runner.turn():
                light.runner.request(Press())
            light.log.append("turned")

        light.during[Switch("lit")] = turn
        light.runner.post(Press())
        assert light.log == [
            "Press in dark",
            "switched lit",
            "turned",
            "released",
            "dark -> lit",
            "Press in lit",
            "switched lit",
            "released",
        ]


async def test_a_turn_that_raises_leaves_the_runner_able_to_run() -> None:
    async with staircase() as light:
        with pytest.raises(KeyError), light.runner.turn():
            light.runner.post(Press())
            raise KeyError
        light.runner.pump()
        assert light.log == LIT


async def test_a_forbidden_request_is_recorded_and_raised_by_each_way_in() -> None:
    async with staircase() as light:
        light.runner.post(Fuse("too many lamps"))
        del light.log[:]
        for press in (light.runner.request, light.runner.take):
            with pytest.raises(ForbiddenRequest, match="change the fuse"):
                press(Press())
        await anyio.sleep(1)
        assert light.log == ["Press in blown"] * 2
        assert light.state is State.BLOWN


async def test_a_change_of_the_levels_counts_for_the_events_after_it() -> None:
    async with staircase(Levels(power=False)) as light:
        light.runner.post(Press())
        assert light.state is State.DARK
        light.runner.change(lambda levels: (levels._replace(power=True), None))
        assert light.runner.steps.last.levels.power
        light.runner.change(lambda levels: (levels, Press()))
        assert light.state is State.LIT
        await light.runner.wait_changed()
        assert light.log == ["Press in dark", *LIT]


# --- the beginning ---------------------------------------------------------------------------------------------------


async def test_a_stored_snapshot_is_the_beginning_and_no_step_of_the_lifecycle() -> None:
    async with staircase() as light:
        assert light.runner.begin_with(Snapshot(State.FADING, generation=7, ticket=3))
        light.runner.pump()
        assert light.log == []
        assert light.runner.visits == {}
        light.runner.post(Expired("fade", 3))
        assert light.log == ["Expired in fading", "switched dark", "fading -> dark"]


@pytest.mark.parametrize("performed", [False, True])
async def test_a_request_that_came_first_keeps_a_stored_snapshot_away(performed: bool) -> None:
    async with staircase() as light:
        light.runner.request(Press())
        if performed:
            light.runner.pump()
        assert not light.runner.begin_with(Snapshot(State.FADING))
        assert light.state is State.LIT


# --- timers ----------------------------------------------------------------------------------------------------------


async def test_timers_lead_through_the_states_in_their_time() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        await anyio.sleep(59)
        assert light.state is State.LIT
        await anyio.sleep(2)
        assert light.state is State.FADING
        await anyio.sleep(10)
        assert light.log == [
            *LIT,
            "Expired in lit",
            "switched dim",
            "lit -> fading",
            "Expired in fading",
            "switched dark",
            "fading -> dark",
        ]


async def test_a_timer_that_is_armed_again_expires_once_with_its_new_ticket() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        await anyio.sleep(50)
        light.runner.post(Press())
        await anyio.sleep(50)
        assert light.state is State.LIT
        await anyio.sleep(11)
        assert light.state is State.FADING
        assert light.log.count("Expired in lit") == 1


async def test_an_expiry_that_comes_after_a_newer_arming_is_stale() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        with light.runner.turn():
            light.runner.post(Expired("light", 1))
            light.runner.request(Press())
        assert light.state is State.LIT
        assert light.log[-1] == "Expired in lit", "recorded, and without a consequence"


async def test_a_timer_whose_state_was_left_is_stopped() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        light.runner.post(Close())
        await anyio.sleep(100)
        assert light.log[len(LIT) :] == ["Close in lit", "switched dark", "lit -> dark"]


async def test_an_expiry_may_be_handled_without_an_event_and_arm_its_timer_again() -> None:
    async with staircase() as light:
        light.keeps_shining = True
        light.runner.post(Press())
        await anyio.sleep(150)
        assert light.log == LIT
        light.keeps_shining = False
        await anyio.sleep(31)
        assert light.state is State.FADING, "the third minute is over"


# --- failures --------------------------------------------------------------------------------------------------------


async def test_an_effect_that_raises_becomes_an_event_after_the_effects_beside_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with staircase() as light:
        light.during[Switch("lit")] = lambda: 1 / 0
        light.runner.post(Press())
        assert light.log == [*LIT, "Fuse in lit", "lit -> blown"]
        assert light.runner.snapshot.why == "the runner raised ZeroDivisionError"
        await anyio.sleep(100)
        assert light.state is State.BLOWN
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None, "with its traceback"


async def test_a_report_of_a_change_that_raises_becomes_an_event_too(caplog: pytest.LogCaptureFixture) -> None:
    async with Tasks() as tasks:
        changes: list[State] = []

        def changed(stepped: Step) -> None:
            changes.append(stepped.after.state)
            if stepped.after.state is State.LIT:
                raise OSError(5, "the display is gone")

        runner: Driver[Snapshot, Event, Effect, Levels, str] = Driver(
            Steps(Snapshot(), Levels(), take),
            tasks,
            perform=lambda effect: None,
            always=(),
            took=lambda stepped: None,
            changed=changed,
            expired=lambda timer, ticket: None,
            broke=lambda failure: Fuse(str(failure)),
        )
        runner.post(Press())
        assert changes == [State.LIT, State.BLOWN]
        assert runner.snapshot.why == "the runner raised OSError (the display is gone)"
    assert "the display is gone" in caplog.text


async def test_a_task_that_fails_becomes_an_event_and_the_block_goes_on() -> None:
    async with Tasks() as tasks:
        light = Light(tasks)
        light.runner.post(Press())

        async def burn(error: Exception) -> None:
            await anyio.sleep(1)
            raise error

        tasks.start_soon(burn, ValueError("a secret"), name="the lamp")
        await anyio.sleep(2)
        assert light.state is State.BLOWN
        assert light.runner.snapshot.why == "the lamp raised ValueError"
        tasks.start_soon(burn, UnexpectedFailure("the socket", "OSError"), name="the lamp")
        await anyio.sleep(2)
        assert light.runner.snapshot.why == "the socket raised OSError", "it has a name already"


async def test_an_expiry_that_raises_becomes_an_event_and_the_other_timers_go_on() -> None:
    async with staircase() as light:
        light.runner.arm("broken", 0, 5.0)
        light.runner.post(Press())
        await anyio.sleep(6)
        assert light.runner.snapshot.why == "the runner raised ZeroDivisionError"
        light.runner.arm("broken", 0, 5.0)
        light.runner.arm("other", 0, 10.0)
        await anyio.sleep(11)
        assert light.log[-1] == "Expired in blown"


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_visits_count_a_state_that_was_left_at_once() -> None:
    async with staircase() as light:
        light.during[Release()] = lambda: light.runner.request(Close())
        light.runner.post(Press())
        assert light.state is State.DARK
        assert light.runner.visits == {State.LIT: 1, State.DARK: 1}


async def test_every_task_that_waits_for_a_change_is_woken_and_must_ask_again() -> None:
    async with staircase() as light:
        woken: list[str] = []

        async def watch(name: str) -> None:
            while light.state is not State.FADING:
                await light.runner.wait_changed()
                woken.append(f"{name} saw {light.state.value}")

        light.runner.note_change()  # without anyone who waits
        async with anyio.create_task_group() as watching:
            watching.start_soon(watch, "a")
            watching.start_soon(watch, "b")
            await anyio.sleep(1)
            assert woken == []
            light.runner.post(Press())
        assert sorted(woken) == ["a saw fading", "a saw lit", "b saw fading", "b saw lit"]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_stopping_performs_its_effects_and_waits_until_everything_is_released() -> None:
    async with staircase() as light:
        light.runner.post(Press())

        async def released() -> None:
            light.log.append("releasing")
            await anyio.sleep(2)
            light.log.append("all released")

        await light.runner.stop(Close(), released, seconds=5)
        assert light.log[len(LIT) :] == ["Close in lit", "switched dark", "lit -> dark", "releasing", "all released"]
        assert anyio.current_time() == pytest.approx(2)


async def test_stopping_waits_no_longer_than_its_deadline() -> None:
    async with staircase() as light:
        await light.runner.stop(Close(), anyio.sleep_forever, seconds=5)
        assert anyio.current_time() == pytest.approx(5)


async def test_a_cancellation_of_the_caller_waits_until_everything_is_released() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        ended: list[float] = []

        async def released() -> None:
            await anyio.sleep(2)
            ended.append(anyio.current_time())

        with anyio.move_on_after(1) as leaving:
            await light.runner.stop(Close(), released, seconds=5)
            await anyio.sleep_forever()
        assert leaving.cancelled_caught
        assert light.state is State.DARK
        assert ended == [pytest.approx(2)]
        assert anyio.current_time() == pytest.approx(2)


async def test_stopping_in_a_scope_that_is_cancelled_already_is_as_thorough() -> None:
    async with staircase() as light:
        light.runner.post(Press())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await light.runner.stop(Close(), lambda: anyio.sleep(2), seconds=5)
        assert light.state is State.DARK
        assert anyio.current_time() == pytest.approx(2)


async def test_after_its_block_a_runner_only_steps() -> None:
    """A request of another thread may come late: it is answered, and nothing is started or raised."""
    async with staircase() as light:
        light.runner.post(Press())
    light.runner.request(Close())
    assert light.state is State.DARK
    await anyio.sleep(100)
    assert light.log == LIT
