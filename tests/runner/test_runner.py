"""`Runner` with a table of one's own: an upload that is tried three times, with a pause between the requests."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from towline import ForbiddenRequest, InvalidArgument, StateUnreachable, TableError, UnexpectedFailure
from towline.runner import Runner
from towline.runner._file import SnapshotFile
from towline.statemachine import (
    Action,
    Draft,
    Named,
    Table,
    TableSnapshot,
    TimerRule,
    action,
    forbid,
    go,
    ignore,
    restore,
    retrace,
    save,
    stay,
    timeline,
)
from towline.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


class State(Named):
    READY = "ready"
    SENDING = "sending"
    WAITING = "waiting"
    DONE = "done"


class Event(Named):
    START = "start"
    SENT = "sent"
    FAILED = "failed"
    PAUSE_OVER = "pause_over"
    NOTE = "note"
    GIVE_UP = "give_up"


class Timer(Named):
    PAUSE = "pause"


class Do(Enum):
    SEND = "send"
    LOG = "log"


@dataclass(frozen=True)
class Upload:
    tries: int = 0
    why: str = ""


Step: TypeAlias = Draft[State, Upload]
Snapshot: TypeAlias = TableSnapshot[State, Upload]


def tries_left(step: Step) -> bool:
    """Fewer than three requests were made."""
    return step.data.tries < 3


@action()
def send(step: Step) -> None:
    """Send a request."""
    step.set(tries=step.data.tries + 1)
    step.do(Do.SEND)


@action(arms=(Timer.PAUSE,))
def pause(step: Step) -> None:
    """Wait a little longer each time."""


@action()
def keep_why(step: Step) -> None:
    """Keep the reason."""
    step.set(why=str(step.value))
    step.do(Do.LOG)


@action(disarms=(Timer.PAUSE,))
def stop_pause(step: Step) -> None:
    """Stop the pause."""


def longer_each_time(snapshot: Snapshot) -> float:
    """2, 4 s."""
    return float(2**snapshot.data.tries)


OVER = ignore("the upload is over")
NO_REQUEST = ignore("no request is in progress")


def upload(
    note: Action[Any, Any] = keep_why, seconds: Any = longer_each_time, **options: Any
) -> Table[State, Event, Step, Timer]:
    given: dict[str, Any] = {
        "name": "upload",
        "states": State,
        "events": Event,
        "initial": State.READY,
        "final": frozenset({State.DONE}),
        "enters": {State.SENDING: (send,), State.WAITING: (pause,)},
        "cells": {
            Event.START: {
                State.READY: go(State.SENDING),
                State.SENDING: stay(),
                State.WAITING: go(State.SENDING),
                State.DONE: forbid("the upload is over: make a new one"),
            },
            Event.SENT: dict.fromkeys(State, NO_REQUEST) | {State.SENDING: go(State.DONE)},
            Event.FAILED: dict.fromkeys(State, NO_REQUEST)
            | {State.SENDING: (go(State.WAITING, keep_why, when=tries_left), go(State.DONE, keep_why))},
            Event.PAUSE_OVER: dict.fromkeys(State, NO_REQUEST) | {State.WAITING: go(State.SENDING)},
            Event.NOTE: dict.fromkeys(State, stay(note)) | {State.DONE: OVER},
            Event.GIVE_UP: dict.fromkeys(State, go(State.DONE)) | {State.DONE: OVER},
        },
        "timers": {Timer.PAUSE: TimerRule(frozenset({State.WAITING}), Event.PAUSE_OVER, seconds=seconds)},
        "waits": {State.READY: "waits for the user", State.SENDING: "a request has a deadline"},
    }
    return Table(**{**given, **options})


UPLOAD = upload()
Function: TypeAlias = Callable[[Upload], object]


def runner(
    send: Function, table: Table[State, Event, Step, Timer] = UPLOAD, log: Function = lambda data: None, **options: Any
) -> Runner[State, Event, Upload]:
    effects: Mapping[Do, Function] = {Do.SEND: send, Do.LOG: log}
    return Runner(table, effects, **{"data": Upload(), "failed": Event.FAILED, **options})


async def answer(data: Upload) -> Event:
    await anyio.sleep(1)
    return Event.SENT


async def fail(data: Upload) -> Event:
    await anyio.sleep(1)
    raise OSError(f"no {data.tries}")


async def never(data: Upload) -> None:
    await anyio.sleep_forever()


def way(run: Runner[State, Event, Upload]) -> list[tuple[str, str]]:
    return [(passage.event, passage.target) for passage in run.journey().passages]


# --- the run -----------------------------------------------------------------------------------------------------


async def test_a_result_is_an_event_and_the_run_is_recorded() -> None:
    start = anyio.current_time()
    async with runner(answer) as run:
        assert run.snapshot.state is State.READY
        run.request(Event.START)
        assert run.snapshot.state is State.SENDING, "a request steps at once"
        snapshot = await run.wait_for(State.DONE)
    assert (snapshot.data, anyio.current_time() - start) == (Upload(1), 1)
    assert timeline(run.journey()).splitlines()[-1].split() == ["1.000", "s", "sent", "sending", "→", "done"]
    assert retrace(UPLOAD, run.journey()) is None


async def test_failures_are_events_and_the_timer_follows_the_snapshot() -> None:
    start = anyio.current_time()
    async with runner(fail) as run:
        run.request(Event.START)
        snapshot = await run.wait_for(State.DONE)
    assert snapshot.data == Upload(3, "no 3")
    assert anyio.current_time() - start == 3 * 1 + 2 + 4
    assert [event for event, _ in way(run)] == ["start", *["failed", "pause_over"] * 2, "failed"]


async def test_a_plain_function_may_return_an_event_with_a_value_or_raise() -> None:
    results: list[Any] = [(Event.FAILED, "busy"), OSError("broken"), Event.SENT]

    def send(data: Upload) -> object:
        result = results.pop(0)
        if isinstance(result, OSError):
            raise result
        return result

    whys = []
    async with runner(send, log=lambda data: whys.append(data.why)) as run:
        run.request(Event.START)
        await run.wait_for(State.DONE)
    assert whys == ["busy", "broken"]


async def test_leaving_a_state_cancels_its_work_and_stops_its_timers() -> None:
    ended = []

    async def send(data: Upload) -> Event:
        try:
            if data.tries == 1:
                return Event.FAILED
            await anyio.sleep_forever()
        finally:
            ended.append(data.tries)
        raise AssertionError

    async with runner(send) as run:
        run.request(Event.START)
        await run.wait_for(State.WAITING)
        run.request(Event.START)  # before the pause is over
        await anyio.sleep(60)
        assert (run.snapshot.state, ended) == (State.SENDING, [1])
        run.request(Event.GIVE_UP)
        await anyio.lowlevel.checkpoint()
        await run.wait_for(State.DONE)
        await anyio.sleep(1)
        assert ended == [1, 2]
    assert "pause_over" not in dict(way(run))


async def test_a_result_that_comes_too_late_is_stale() -> None:
    async def send(data: Upload) -> Event:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        return Event.SENT

    async with runner(send) as run:
        run.request(Event.START)
        await anyio.sleep(1)
        run.request(Event.GIVE_UP)
        await anyio.sleep(10)
    assert [(passage.event, passage.verdict) for passage in run.journey().passages] == [
        ("start", "moved"),
        ("give_up", "moved"),
        ("sent", "stale"),
    ]


async def test_an_action_may_stop_a_timer_and_an_old_expiry_does_nothing() -> None:
    reasons = {State.WAITING: "may wait", State.READY: "so", State.SENDING: "so"}
    async with runner(fail, upload(note=stop_pause, waits=reasons)) as run:
        run.request(Event.START)
        await run.wait_for(State.WAITING)
        run.request(Event.NOTE)
        assert run.snapshot.armed == ()
        await anyio.sleep(60)
        assert run.snapshot.state is State.WAITING


async def test_an_expiry_of_an_earlier_arming_is_stale() -> None:
    async with runner(lambda data: Event.FAILED) as run:
        run.request(Event.START)
        await run.wait_for(State.WAITING)
        # As if another thread's request had armed the timer again just when it expired.
        (timer, ticket), *_ = run.snapshot.armed
        run._driver.post(run._expired_event(timer, ticket - 1))
        assert run.snapshot.state is State.WAITING
        assert run.journey().passages[-1].verdict == "stale"


async def test_leaving_the_block_cancels_everything_and_forbids_requests() -> None:
    async with runner(never) as run:
        run.request(Event.START)
        await anyio.sleep(1)
    for make in (run.request, run.post):
        with pytest.raises(ForbiddenRequest, match="start is not possible while sending: the runner's block was left"):
            make(Event.START)


async def leave_by_an_error(run: Runner[State, Event, Upload]) -> None:
    raise OSError


async def fail_a_save(run: Runner[State, Event, Upload]) -> None:
    run.request(Event.NOTE, "unsaved")
    await anyio.sleep_forever()


async def test_a_result_while_the_block_is_left_starts_no_timer() -> None:
    async def send(data: Upload) -> Event:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        return Event.FAILED

    async with runner(send) as run:
        run.request(Event.START)
        await anyio.sleep(1)
    assert run.snapshot.state is State.WAITING
    left = weakref.ref(run)
    del run
    await anyio.lowlevel.checkpoint()
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("leave", [anyio.sleep, leave_by_an_error, fail_a_save])
async def test_a_wait_outside_the_block_ends_when_the_block_is_left(leave: Callable[[Any], Any]) -> None:
    problems = []

    def keep(saved: bytes) -> None:
        if b"unsaved" in saved:
            raise OSError

    async def watch(run: Runner[State, Event, Upload]) -> None:
        for _ in range(2):
            with pytest.raises(StateUnreachable) as caught:
                await run.wait_for(State.DONE)
            problems.append(str(caught.value))
        assert (await run.wait_for(State.SENDING)).state is State.SENDING

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            with suppress(OSError, UnexpectedFailure):
                async with runner(never, save=keep) as run:
                    run.request(Event.START)
                    tasks.start_soon(watch, run)
                    await anyio.sleep(1)
                    await leave(1 if leave is anyio.sleep else run)
    assert problems == ["cannot reach done while sending: the runner's block was left"] * 2


async def test_an_effect_that_waits_for_a_state_does_not_keep_the_block_open() -> None:
    async def send(data: Upload) -> None:
        with anyio.CancelScope(shield=True):
            await runs[0].wait_for(State.DONE)

    runs: list[Runner[State, Event, Upload]] = []
    with anyio.fail_after(60):
        async with runner(send) as run:
            runs.append(run)
            run.request(Event.START)
            await anyio.sleep(1)
    assert way(run) == [("start", "sending"), ("failed", "waiting")]


async def test_what_comes_before_the_block_waits_for_it() -> None:
    performed = []
    start = anyio.current_time()

    def send(data: Upload) -> Event:
        performed.append(data.tries)
        return Event.FAILED

    run = runner(send)
    run.post(Event.START)
    with pytest.raises(ForbiddenRequest, match="waiting is not possible while not entered: use `async with`"):
        await run.wait_for(State.DONE)
    assert (run.snapshot.state, performed) == (State.READY, [])
    async with run:
        assert (await run.wait_for(State.DONE)).data.tries == 3
    assert performed == [1, 2, 3]
    assert anyio.current_time() - start == 2 + 4, "the timers ran"


async def test_a_request_of_another_thread() -> None:
    async with runner(answer) as run:
        await anyio.to_thread.run_sync(run.request, Event.START)
        await run.wait_for(State.DONE)
        with pytest.raises(ForbiddenRequest, match="make a new one"):
            await anyio.to_thread.run_sync(run.request, Event.START)
        run.post(Event.START)
    assert [passage.verdict for passage in run.journey().passages][-2:] == ["forbidden", "forbidden"]


async def test_waiting_for_a_state() -> None:
    seen = []
    async with runner(fail) as run, anyio.create_task_group() as tasks:

        async def watch() -> None:
            seen.append((await run.wait_for(State.WAITING)).state)

        tasks.start_soon(watch)
        await anyio.sleep(1)
        run.request(Event.START)
        await anyio.sleep(1.5)
        run.request(Event.GIVE_UP)
        with pytest.raises(StateUnreachable, match="cannot reach ready or waiting while done: the state is final"):
            await run.wait_for(State.READY, State.WAITING)
    assert seen == [State.WAITING]


async def test_a_short_visit_is_not_missed() -> None:
    async with runner(lambda data: Event.FAILED) as run, anyio.create_task_group() as tasks:

        async def hurry() -> None:
            run.post(Event.START)
            run.post(Event.GIVE_UP)

        tasks.start_soon(hurry)
        assert (await run.wait_for(State.WAITING)).state is State.DONE


async def test_many_runs_share_one_table_and_keep_a_bounded_history() -> None:
    async with runner(answer, history=2) as one, runner(never) as other:
        for run in (one, other):
            run.request(Event.START)
        one.request(Event.NOTE, "so")
        await one.wait_for(State.DONE)
        assert other.snapshot.state is State.SENDING
    assert [event for event, _ in way(one)] == ["note", "sent"]
    assert one.snapshot.data.why == "so"


# --- saving ------------------------------------------------------------------------------------------------------


async def test_a_saved_run_enters_its_state_again() -> None:
    files: list[bytes] = []
    async with runner(fail, save=files.append) as run:
        run.request(Event.START)
        await run.wait_for(State.WAITING)
        await anyio.sleep(1)
    states = [restore(UPLOAD, saved, Upload) for saved in files]
    assert [snapshot.state for snapshot in states] == [State.READY, State.SENDING, State.WAITING]
    assert files[-1] == save(UPLOAD, run.snapshot)

    sent = []
    async with runner(lambda data: sent.append(data.tries), saved=files[1], data=Upload(9)) as run:
        await anyio.sleep(0.1)
        assert (run.snapshot.state, run.snapshot.data.tries, sent) == (State.SENDING, 2, [2])
    start = anyio.current_time()
    async with runner(answer, saved=files[2]) as run:
        await run.wait_for(State.SENDING)
        assert anyio.current_time() - start == pytest.approx(2), "the pause starts again"
        await run.wait_for(State.DONE)


async def test_a_run_in_a_file_goes_on_after_its_end_and_belongs_to_one_runner(tmp_path: Path) -> None:
    file = tmp_path / "upload.json"
    async with runner(never, file=file) as run:
        run.request(Event.START)
        await anyio.sleep(1)
        with pytest.raises(InvalidArgument, match=r"file: another runner uses .*upload\.json"):
            runner(never, file=file)
    async with runner(answer, file=str(file)) as run:
        snapshot = await run.wait_for(State.DONE)
        assert snapshot.data.tries == 2
    file.write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"file: .*upload\.json cannot be resumed: .*; move it away"):
            runner(never, file=file)
    with pytest.raises(InvalidArgument, match="file: pass either file= or saved= and save="):
        runner(never, file=file, saved=b"")
    assert await anyio.Path(tmp_path, "upload.json.lock").read_bytes() == b""
    assert not await anyio.Path(tmp_path, "upload.json.new").exists()


@pytest.mark.parametrize(
    ("saved", "problem"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`"),
        (b'{"version":2,"table":"upload","state":"ready","data":{}}', "version 2 is unknown; use 1"),
        (b'{"version":1,"table":"door","state":"ready","data":{}}', "belongs to the table door, not to upload"),
        (b'{"version":1,"table":"upload","state":"ajar","data":{}}', "the table upload has no state ajar"),
        (b'{"version":1,"table":"upload","state":"ready","data":{"tries":"x"}}', "Expected `int`, got `str`"),
        (b'{"version":1,"table":"upload","state":"ready","data":' + b"[" * 9999, "recursion"),
    ],
)
async def test_what_is_no_saved_snapshot_is_refused_and_its_file_is_kept(
    saved: bytes, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        runner(never, saved=saved)
    file = tmp_path / "upload.json"
    file.write_bytes(saved)
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=problem):
            runner(never, file=file)
    assert file.read_bytes() == saved


def use_in_another_process(file: Path) -> str:
    program = f"from towline.runner._file import SnapshotFile; SnapshotFile({str(file)!r})"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=file.parent, capture_output=True, text=True, check=False
    )
    return found.stderr


async def test_a_second_runner_on_a_snapshot_is_refused_and_the_first_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "upload.json"
    async with runner(never, file=file) as run:
        run.request(Event.START)
        await run.wait_for(State.SENDING)
        saved = await anyio.Path(file).read_bytes()
        with pytest.raises(InvalidArgument, match="another runner uses"):
            runner(answer, file=file)
        assert "upload.json; wait for its end" in use_in_another_process(file)
        assert await anyio.Path(file).read_bytes() == saved
        run.request(Event.SENT)
        await run.wait_for(State.DONE)
    assert restore(UPLOAD, file.read_bytes(), Upload) == TableSnapshot(State.DONE, Upload(1))
    assert use_in_another_process(file) == ""
    # Copies of a snapshot are runs of their own.
    async with runner(answer, saved=saved) as one, runner(never, saved=saved) as other:
        await one.wait_for(State.DONE)
        assert other.snapshot.state is State.SENDING


# --- bad input ---------------------------------------------------------------------------------------------------


async def test_what_a_table_or_its_effects_lack_is_named() -> None:
    with pytest.raises(InvalidArgument, match="table: the timer pause has no seconds"):
        runner(never, upload(seconds=None))
    with pytest.raises(InvalidArgument, match="effects: Do has no function for LOG"):
        Runner(UPLOAD, {Do.SEND: never}, data=Upload())
    async with runner(never) as run:
        with pytest.raises(InvalidArgument, match="states: pass at least one state"):
            await run.wait_for()


@pytest.mark.parametrize("send", [fail, lambda data: 1 / 0])
async def test_an_effect_that_raises_without_an_event_for_it_ends_the_block(send: Function) -> None:
    with pytest.raises(UnexpectedFailure) as caught:
        async with runner(send, failed=None) as run:
            run.request(Event.START)
            await anyio.sleep_forever()
    assert isinstance(caught.value.__cause__, OSError | ZeroDivisionError)


async def test_an_effect_that_no_function_performs_ends_the_block() -> None:
    with pytest.raises(UnexpectedFailure, match=r"effect Do\.SEND") as caught:
        async with Runner(UPLOAD, {}, data=Upload()) as run:
            run.request(Event.START)
            await anyio.sleep_forever()
    assert str(caught.value.__cause__) == "effects: there is no function for Do.SEND"


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "soon", lambda snapshot: 1 / 0])
async def test_a_timer_without_a_usable_time_ends_the_block(seconds: Any) -> None:
    with pytest.raises(UnexpectedFailure, match="the runner of upload"):
        async with runner(fail, upload(seconds=seconds if callable(seconds) else lambda snapshot: seconds)) as run:
            run.request(Event.START)
            await anyio.sleep_forever()


async def test_a_snapshot_that_cannot_be_saved_ends_the_block() -> None:
    def fail_to_save(saved: bytes) -> None:
        raise OSError("the disk is full")

    with pytest.raises(UnexpectedFailure):
        async with runner(never, save=fail_to_save):
            await anyio.sleep_forever()


@action()
def break_down(step: Step) -> None:
    """Fail."""
    raise ZeroDivisionError


async def test_an_action_that_raises_changes_nothing() -> None:
    with pytest.raises(UnexpectedFailure, match="the table upload for note"):
        async with runner(never, upload(note=break_down)) as run:
            before = run.snapshot
            with pytest.raises(UnexpectedFailure, match="the table upload for note"):
                run.request(Event.NOTE)
            assert run.snapshot is before
            run.post(Event.NOTE)
    assert run.snapshot is before
    assert run.journey().passages == ()


def broken_guard(step: Step) -> bool:
    """Fails."""
    raise ZeroDivisionError


def with_broken_guard(event: Event, state: State) -> Table[State, Event, Step, Timer]:
    cell = (go(State.DONE, when=broken_guard), *UPLOAD.cell(event, state))
    return upload(cells={**UPLOAD.cells, event: {**UPLOAD.cells[event], state: cell}})


async def test_a_guard_that_raises_for_a_request_changes_nothing() -> None:
    with pytest.raises(UnexpectedFailure, match="the table upload for note"):
        async with runner(never, with_broken_guard(Event.NOTE, State.READY)) as run:
            before = run.snapshot
            for _ in range(2):
                with pytest.raises(UnexpectedFailure, match="the table upload for note") as caught:
                    run.request(Event.NOTE)
                assert isinstance(caught.value.__cause__, ZeroDivisionError)
                assert run.snapshot is before
            run.post(Event.NOTE)
            await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("send", "event", "state"),
    [
        (answer, Event.SENT, State.SENDING),
        (fail, Event.FAILED, State.SENDING),
        (fail, Event.PAUSE_OVER, State.WAITING),
    ],
    ids=["result", "failure", "expiry"],
)
async def test_a_guard_that_raises_for_what_happens_ends_the_block_and_saves_the_state_before(
    send: Function, event: Event, state: State
) -> None:
    files: list[bytes] = []
    with pytest.raises(UnexpectedFailure, match=f"the table upload for {event.value}") as caught, anyio.fail_after(60):
        async with runner(send, with_broken_guard(event, state), save=files.append) as run:
            run.request(Event.START)
            await anyio.sleep_forever()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert restore(UPLOAD, files[-1], Upload).state is state


async def test_an_effect_that_never_returns_ends_with_its_state_or_with_the_block() -> None:
    ended = []

    async def send(data: Upload) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(data.tries)

    with anyio.fail_after(10_000):
        async with runner(send) as run:
            run.request(Event.START)
            await anyio.sleep(3600)
            assert (run.snapshot.state, ended) == (State.SENDING, [])
            run.request(Event.FAILED)
            run.request(Event.START)
            await anyio.sleep(3600)
            assert (run.snapshot.state, ended) == (State.SENDING, [1])
    assert ended == [1, 2]


async def test_a_step_of_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = itertools.cycle([0.0, 1e9, -1e9])
    monkeypatch.setattr(time, "time", lambda: next(steps))
    start = anyio.current_time()
    async with runner(fail) as run:
        run.request(Event.START)
        await run.wait_for(State.DONE)
    assert anyio.current_time() - start == 3 * 1 + 2 + 4


async def test_a_clock_that_jumps_ahead_expires_a_timer_once() -> None:
    """A monotonic clock may count the time that the computer slept, or not."""
    async with runner(lambda data: Event.FAILED) as run:
        run.request(Event.START)
        await run.wait_for(State.WAITING)
        jump(86_400)
        await anyio.sleep(0.001)
        assert way(run) == [
            ("start", "sending"),
            ("failed", "waiting"),
            ("pause_over", "sending"),
            ("failed", "waiting"),
        ]
        left = anyio.current_time()
        await run.wait_for(State.DONE)
        assert anyio.current_time() - left == pytest.approx(4, abs=0.01), "the next pause has its whole time"


def jump(seconds: float) -> None:
    """Have the virtual clock skip some time, as after a sleep of the computer."""
    loop = anyio.lowlevel.current_token().native_token
    if isinstance(loop, VirtualTimeLoop):
        loop._jumping.now += seconds
    else:
        import trio

        clock: Any = trio.lowlevel.current_clock()
        clock.jump(seconds)


async def test_an_action_that_makes_requests_is_refused() -> None:
    runs: list[Runner[State, Event, Upload]] = []

    @action()
    def nest(step: Step) -> None:
        """Make a request inside the step."""
        runs[0].request(Event.NOTE)

    async with runner(never, upload(note=nest)) as run:
        runs.append(run)
        with pytest.raises(TableError, match="note: a guard or an action makes requests"):
            run.request(Event.NOTE)
        assert run.snapshot == TableSnapshot(State.READY, Upload(), generation=1)
        run.request(Event.START)
        assert run.snapshot.state is State.SENDING


async def post_again(run: Runner[State, Event, Upload]) -> Event | None:
    run.post(Event.NOTE)
    return None


@pytest.mark.parametrize("how", ["return", "post", "request", "task"])
async def test_effects_that_post_without_end_leave_the_loop_its_turn(how: str) -> None:
    turns = 0

    def log(data: Upload) -> object:
        match how:
            case "return":
                return Event.NOTE
            case "post":
                run.post(Event.NOTE)
            case "request":
                run.request(Event.NOTE)
            case _:
                return post_again(run)
        return None

    with anyio.fail_after(60):
        async with runner(never, log=log) as run:
            run.request(Event.NOTE)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
                turns += 1
            assert len(anyio.get_running_tasks()) < 20, "the loop is not woken for each of them"
    assert turns == 3
    assert len(run.journey().passages) > 1


async def test_a_partial_of_a_coroutine_function_is_awaited() -> None:
    async def answer_with(event: Event, data: Upload) -> Event:
        return event

    async with runner(partial(answer_with, Event.SENT)) as run:
        run.request(Event.START)
        await run.wait_for(State.DONE)


async def test_an_awaitable_that_a_plain_callable_returns_is_awaited() -> None:
    async with runner(lambda data: answer(data)) as run:
        run.request(Event.START)
        await run.wait_for(State.DONE)


@pytest.mark.parametrize("result", [True, (Event.SENT, 1, 2), "sent"])
async def test_an_effect_that_returns_no_event_ends_the_block(result: object) -> None:
    with pytest.raises(UnexpectedFailure, match=r"effect Do\.SEND") as caught:
        async with runner(lambda data: result) as run:
            run.request(Event.START)
            await anyio.sleep_forever()
    assert "return None, an event" in str(caught.value.__cause__)


async def test_a_foreign_cancellation_is_a_failure_of_the_effect() -> None:
    async def send(data: Upload) -> None:
        raise asyncio.CancelledError

    with anyio.fail_after(60):
        async with runner(send) as run:
            run.request(Event.START)
            assert (await run.wait_for(State.DONE)).data.tries == 3


async def test_effects_of_a_step_that_was_not_saved_are_not_performed() -> None:
    performed = []

    def keep(saved: bytes) -> None:
        if b"sending" in saved:
            raise OSError

    with pytest.raises(UnexpectedFailure, match="the runner of upload"):
        async with runner(lambda data: performed.append(data), save=keep) as run:
            run.request(Event.START)
            await anyio.sleep_forever()
    assert performed == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot force a folder's entries")
async def test_a_write_forces_the_file_and_then_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced, force = [], os.fsync

    def note(descriptor: int) -> None:
        forced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        force(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    file = SnapshotFile(tmp_path / "upload.json")
    file.write(b"{}")
    file.close()
    assert forced == [False, True]
