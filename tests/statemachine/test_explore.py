"""The explorer: every invariant is broken on purpose, and is found with the shortest trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from connection_world import WORLDS as ALL
from connection_world import ConnectionWorld
from msgspec.structs import replace as changed

from towline._exceptions import InvalidArgument
from towline.statemachine import (
    LIFECYCLE,
    AbandonDial,
    AnyEvent,
    Arm,
    Cancel,
    Deliver,
    Dial,
    Draft,
    Facts,
    FetchState,
    History,
    Journey,
    Lost,
    Move,
    Named,
    Policy,
    Purpose,
    Snapshot,
    State,
    Step,
    Table,
    TableSnapshot,
    TableWorld,
    Timer,
    TimerRule,
    Trigger,
    Violation,
    action,
    explore,
    go,
    ignore,
    journey,
    replay,
    retrace,
    stay,
    step,
)
from towline.statemachine.lifecycle import _step

README = Path(__file__).parents[2] / "docs" / "machine" / "README.md"
WORLDS = {world.name: world for world in ALL}


@pytest.mark.parametrize("name", ["a token that expires", "sources"])
def test_a_world_has_the_counts_of_the_document_and_all_invariants_hold(name: str) -> None:
    found = explore(WORLDS[name])
    assert found.violations == []
    assert f"| {name} | {len(found.situations):,} | {found.moves:,} |" in README.read_text("utf-8").splitlines()


def test_the_document_names_every_world() -> None:
    rows = [line.split(" | ")[0] for line in README.read_text("utf-8").splitlines()]
    assert [name for name in WORLDS if f"| {name}" not in rows] == []


# --- the connection, broken on purpose ---------------------------------------------------------------------------

Change = Callable[[Snapshot, AnyEvent, Step], Step]


def small(changed_step: Callable[[Snapshot, AnyEvent, Facts, Policy], Step]) -> ConnectionWorld:
    policy = changed(WORLDS["sources"].start().policy, free_restarts=0)
    return ConnectionWorld("small", (), Facts(now=0.0), policy, changed_step)


def broken(change: Change) -> list[Violation]:
    """What the explorer finds in a small world, if a step's result is changed."""

    def changed_step(before: Snapshot, event: AnyEvent, facts: Facts, policy: Policy) -> Step:
        return change(before, event, step(before, event, facts, policy))

    return explore(small(changed_step)).violations


def without(kind: type[Any], when: Callable[[Any], bool] = lambda _: True) -> Change:
    def change(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
        return taken._replace(effects=tuple(one for one in taken.effects if not (isinstance(one, kind) and when(one))))

    return change


def dials_beside_a_link(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    again = event.trigger is Trigger.WOKE and before.state is State.CONNECTED
    return taken._replace(effects=(*taken.effects, Dial(generation=1, not_before=1e9))) if again else taken


def delivers_twice(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    return taken._replace(effects=(*taken.effects, *(one for one in taken.effects if isinstance(one, Deliver))))


def loses_the_end_while_waiting(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    lost = event.trigger is Trigger.JOB_ENDED and before.state is State.RECONNECTING
    return taken._replace(snapshot=before, effects=()) if lost else taken


def forgets_the_end(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    return taken._replace(snapshot=changed(taken.snapshot, outcome="failed")) if before.outcome else taken


def fetches_after_cancel(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    fetch = FetchState(purpose=Purpose.STATUS, generation=0, fetch=0)
    return taken._replace(effects=(fetch, *taken.effects)) if isinstance(event, Cancel) else taken


def ignores_cancel_in_the_background(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    ignored = isinstance(event, Cancel) and before.state is State.BACKGROUNDED
    return taken._replace(snapshot=before, effects=()) if ignored else taken


def never_waits_for_an_attempt(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    armed = tuple(pair for pair in taken.snapshot.armed if pair[0] not in (Timer.BACKOFF, Timer.OUTAGE))
    return taken._replace(snapshot=changed(taken.snapshot, armed=armed))


def charges_nothing(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    spared = changed(taken.snapshot, retries=before.retries, outage_since=None, outage_spent=0.0)
    return taken._replace(snapshot=spared) if isinstance(event, Lost) and event.generation is None else taken


def waits_ten_times_longer(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    effects = (
        changed(one, delay=changed(one.delay, high=one.delay.high * 100)) if isinstance(one, Arm) else one
        for one in taken.effects
    )
    return taken._replace(effects=tuple(effects))


def dials_at_once(before: Snapshot, event: AnyEvent, taken: Step) -> Step:
    effects = (changed(one, not_before=0.0) if isinstance(one, Dial) else one for one in taken.effects)
    return taken._replace(effects=tuple(effects))


@pytest.mark.parametrize(
    ("change", "invariant", "events"),
    [
        (without(AbandonDial), "one_link", ["connect", "lost"]),
        (dials_beside_a_link, "one_link", ["connect", "opened", "synced", "woke"]),
        (delivers_twice, "one_end", ["connect", "job_ended"]),
        (without(Deliver), "one_end", ["connect", "job_ended"]),
        (loses_the_end_while_waiting, "one_end", ["connect", "lost", "job_ended"]),
        (forgets_the_end, "one_end", ["connect", "job_ended", "job_ended"]),
        (fetches_after_cancel, "quiet_after_cancel", ["cancel"]),
        (ignores_cancel_in_the_background, "one_step_to_the_end", ["background", "connect", "cancel"]),
        (waits_ten_times_longer, "delays_within_policy", ["connect", "lost"]),
        (dials_at_once, "delays_within_policy", ["connect", "lost", "retry"]),
        (never_waits_for_an_attempt, "way_out", ["connect", "lost"]),
    ],
)
def test_a_broken_step_is_found_with_the_shortest_trace(change: Change, invariant: str, events: list[str]) -> None:
    found = {violation.invariant: violation for violation in broken(change)}
    taken = journey(History.from_json(found[invariant].trace))
    assert len(taken.passages) == len(events), taken
    assert [passage.event for passage in taken.passages][-1] == events[-1]
    assert sorted(passage.event for passage in taken.passages) == sorted(events)


def test_an_attempt_that_repeats_without_a_charge_is_found() -> None:
    (violation,) = broken(charges_nothing)
    assert violation.invariant == "no_endless_work"
    events = [passage.event for passage in journey(History.from_json(violation.trace)).passages]
    assert events == ["connect", "lost", "backoff_elapsed", "lost"]


def test_a_stale_event_that_is_handled_is_found() -> None:
    def careless(before: Snapshot, event: AnyEvent, facts: Facts, policy: Policy) -> Step:
        return step(before, changed(event, generation=None), facts, policy)

    (violation,) = explore(small(careless)).violations
    assert violation.invariant == "stale_changes_nothing"
    assert len(History.from_json(violation.trace).entries) == 2


def test_a_state_that_is_never_reached_is_found() -> None:
    def brave(before: Snapshot, event: AnyEvent, facts: Facts, policy: Policy) -> Step:
        taken = step(before, event, changed(facts, foreground=True), policy)
        armed = tuple(pair for pair in taken.snapshot.armed if pair[0] is not Timer.GRACE)
        kept = tuple(one for one in taken.effects if not (isinstance(one, Arm) and one.timer is Timer.GRACE))
        return taken._replace(snapshot=changed(taken.snapshot, armed=armed), effects=kept)

    (violation,) = explore(small(brave)).violations
    assert (violation.invariant, violation.wrong) == ("every_state", "never reached: backgrounded")


def test_a_broken_table_is_found_and_its_trace_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that reopens a link for free, again and again."""

    @action()
    def reopen_for_free(draft: Any) -> None:
        """Open the link again, and count nothing."""

    cells = {**LIFECYCLE.cells, Trigger.LOST: {**LIFECYCLE.cells[Trigger.LOST]}}
    cells[Trigger.LOST][State.SYNCING] = go(State.CONNECTING, reopen_for_free)
    monkeypatch.setattr(_step, "LIFECYCLE", replace(LIFECYCLE, cells=cells))
    (violation,) = explore(small(step)).violations
    assert violation.invariant == "no_endless_work"
    history = History.from_json(violation.trace)
    assert [entry.event.trigger.value for entry in history.entries] == ["connect", "opened", "lost", "opened"]
    assert replay(history) is None


# --- any table ---------------------------------------------------------------------------------------------------


class At(Named):
    OFF = "off", "Nothing runs."
    ON = "on", "The lamp is lit."
    DEAD = "dead", "Final: the lamp is broken."


class On(Named):
    PRESS = "press", "Somebody presses the button."
    TICK = "tick", "A minute is over."
    FUSE = "fuse", "The fuse blows."


class Clock(Named):
    MINUTE = "minute", "How long the lamp is lit."


@dataclass(frozen=True)
class Lamp:
    presses: int = 0


def is_worn(draft: Draft[At, Lamp]) -> bool:
    """It was lit three times."""
    return draft.data.presses >= 3


@action(arms=(Clock.MINUTE,))
def light(draft: Draft[At, Lamp]) -> None:
    """Light the lamp for a minute."""
    draft.set(presses=draft.data.presses + 1)


def lamp(seconds: float = 60.0, blows: Any = None) -> Table[At, On, Draft[At, Lamp], Clock]:
    rest = dict.fromkeys(At, ignore("nothing happens"))
    return Table(
        name="lamp",
        states=At,
        events=On,
        initial=At.OFF,
        final=frozenset({At.DEAD}),
        cells={
            On.PRESS: {**rest, At.OFF: (go(At.DEAD, when=is_worn), go(At.ON, light)), At.ON: stay()},
            On.TICK: {**rest, At.ON: go(At.OFF) if seconds else go(At.ON, light)},
            On.FUSE: {**rest, At.ON: blows or go(At.DEAD)},
        },
        timers={Clock.MINUTE: TimerRule(frozenset({At.ON}), On.TICK, seconds=seconds)},
        waits={At.OFF: "waits for a button"},
    )


def test_a_bare_table_is_explored_with_either_answer_of_every_guard() -> None:
    found = explore(TableWorld(lamp()))
    assert found.violations == []
    assert [situation.state for situation in found.situations] == [At.OFF, At.DEAD, At.ON]
    assert found.moves == 5


def test_a_table_with_data_is_explored_by_its_own_step() -> None:
    found = explore(TableWorld(lamp(), Lamp(), cut=lambda data: min(data.presses, 3)))
    assert found.violations == []
    assert sorted((one.state.value, one.data.presses) for one in found.situations) == [
        *(("dead", 1), ("dead", 2), ("dead", 3)),
        *(("off", 0), ("off", 1), ("off", 2), ("off", 3)),
        *(("on", 1), ("on", 2), ("on", 3)),
    ]


def test_an_invariant_of_your_own_is_found_broken_with_a_trace_that_the_table_allows() -> None:
    def lit_twice_at_most(before: TableSnapshot[At, Lamp], move: Move[TableSnapshot[At, Lamp]]) -> str | None:
        return "lit a third time" if move.after.data.presses > 2 else None

    world = TableWorld(lamp(), Lamp(), cut=lambda data: data.presses, invariants=(lit_twice_at_most,))
    (violation,) = explore(world).violations
    assert violation[:2] == ("lit_twice_at_most", "lit a third time")
    taken = Journey.from_json(violation.trace)
    assert [passage.event for passage in taken.passages] == ["press", "tick", "press", "tick", "press"]
    assert retrace(lamp(), taken) is None


@action(arms=(Clock.MINUTE,))
def burn(draft: Draft[At, Lamp]) -> None:
    """Stay lit for a minute."""


def test_a_timer_that_runs_from_the_start_leads_out_of_the_first_state() -> None:
    rest = dict.fromkeys(At, ignore("nothing happens"))
    lit = Table(
        name="lit",
        states=At,
        events=On,
        initial=At.ON,
        final=frozenset({At.DEAD}),
        cells={On.PRESS: rest, On.TICK: {**rest, At.ON: go(At.OFF)}, On.FUSE: {**rest, At.OFF: go(At.DEAD)}},
        timers={Clock.MINUTE: TimerRule(frozenset({At.ON}), On.TICK, seconds=60.0)},
        enters={At.ON: (burn,)},
        waits={At.OFF: "waits for the fuse"},
    )
    assert explore(TableWorld(lit)).violations == []


def test_a_timer_that_takes_no_time_and_goes_round_is_found() -> None:
    stuck, violation = explore(TableWorld(lamp(seconds=0.0))).violations
    assert (stuck.invariant, violation.invariant) == ("way_out", "no_endless_work")
    assert [one.event for one in Journey.from_json(violation.trace).passages] == ["press", "tick"]


def test_a_key_that_is_not_finite_is_said() -> None:
    world = TableWorld(lamp(), Lamp(), cut=lambda data: object())
    with pytest.raises(InvalidArgument, match="over 50 situations"):
        explore(world, limit=50)


def test_a_situation_without_a_way_out_is_found_though_its_state_has_one() -> None:
    """The step loses the timer when the button is pressed twice; the table's own checks cannot see it."""

    class Forgetful(TableWorld):
        def moves(self, situation: Any) -> Any:
            for move in super().moves(situation):
                pressed = move.what[0] == "press" and situation.state is At.ON
                yield move._replace(after=replace(move.after, armed=())) if pressed else move

    (violation,) = explore(Forgetful(lamp())).violations
    assert violation.invariant == "way_out"
    assert [one.event for one in Journey.from_json(violation.trace).passages] == ["press", "press"]
