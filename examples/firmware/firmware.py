"""A firmware update as a lifecycle: upload, verify, activate, watch the new version on probation, else roll back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from towline.statemachine import Branch, Draft, Named, Table, TableSnapshot, TimerRule, action, do, go, ignore, stay


class State(Named):
    IDLE = "idle", "Nothing was sent yet."
    UPLOADING = "uploading", "The image goes to the device."
    PAUSED = "paused", "The last request failed; the upload starts again when the timer expires."
    VERIFYING = "verifying", "The device computes the digest of what it has."
    ACTIVATING = "activating", "The device starts the new version."
    PROBATION = "probation", "The new version runs, and its health is asked until the timer expires."
    ROLLING_BACK = "rolling_back", "The device returns to the old version."
    INSTALLED = "installed", "Final: the new version runs."
    KEPT = "kept", "Final: the old version runs."


class Event(Named):
    INSTALL = "install", "The user wants the image installed."
    DONE = "done", "The device did what was asked."
    FAILED = "failed", "A request failed, or the device has another image."
    UNHEALTHY = "unhealthy", "The new version does not answer that it works."
    RETRY_DUE = "retry_due", "The pause is over."
    PROBATION_OVER = "probation_over", "The new version worked long enough."
    TRUST = "trust", "The user needs no further probation."
    GIVE_UP = "give_up", "The user wants the old version."


class Timer(Named):
    RETRY = "retry", "The pause before the next try."
    PROBATION = "probation", "How long the new version is watched."


class Do(Named):
    UPLOAD = "upload", "Send the image."
    VERIFY = "verify", "Compare the digests."
    ACTIVATE = "activate", "Start the new version."
    WATCH = "watch", "Ask for the health, again and again."
    ROLL_BACK = "roll_back", "Start the old version."


@dataclass(frozen=True)
class Update:
    device: str
    image: str
    pause: float = 1.0
    probation: float = 30.0
    tries: int = 0
    why: str = ""


def tries_left(step: Draft[State, Update]) -> bool:
    """Fewer than five tries failed."""
    return step.data.tries < 5


@action()
def count(step: Draft[State, Update]) -> None:
    """Count the failure and keep its reason."""
    step.set(tries=step.data.tries + 1, why=str(step.value))


@action(arms=(Timer.RETRY,))
def pause(step: Draft[State, Update]) -> None:
    """Wait for the next try."""


def growing_pause(snapshot: TableSnapshot[State, Update]) -> float:
    """The pause, doubled with each failure."""
    return snapshot.data.pause * 2.0 ** (snapshot.data.tries - 1)


Way: TypeAlias = Branch[State, Draft[State, Update], Timer]
LATE: Way = ignore("this state asked for nothing of the kind")
TRY_AGAIN: Final = (go(State.PAUSED, count, when=tries_left), go(State.KEPT, count))
BACK: Way = go(State.ROLLING_BACK, count)
KEEP: Way = go(State.KEPT)
TRUST: Way = go(State.INSTALLED)
UP, CHECK, ACT, WAIT, ROLL = State.UPLOADING, State.VERIFYING, State.ACTIVATING, State.PROBATION, State.ROLLING_BACK
REST: Final = dict.fromkeys(State, LATE)

ENTERS: Final = {
    UP: (do(Do.UPLOAD),),
    State.PAUSED: (pause,),
    CHECK: (do(Do.VERIFY),),
    ACT: (do(Do.ACTIVATE),),
    WAIT: (do(Do.WATCH, arms=(Timer.PROBATION,)),),
    ROLL: (do(Do.ROLL_BACK),),
}
FIRMWARE: Final = Table(
    name="firmware",
    states=State,
    events=Event,
    initial=State.IDLE,
    final=frozenset({State.INSTALLED, State.KEPT}),
    enters=ENTERS,
    cells={
        Event.INSTALL: {**REST, State.IDLE: go(UP)},
        Event.DONE: {**REST, UP: go(CHECK), CHECK: go(ACT), ACT: go(WAIT), ROLL: KEEP},
        Event.FAILED: {**REST, UP: TRY_AGAIN, CHECK: TRY_AGAIN, ACT: BACK, WAIT: BACK, ROLL: stay(count, pause)},
        Event.UNHEALTHY: {**REST, WAIT: BACK},
        Event.RETRY_DUE: {**REST, State.PAUSED: go(UP), ROLL: go(ROLL)},
        Event.PROBATION_OVER: {**REST, WAIT: TRUST},
        Event.TRUST: {**REST, WAIT: TRUST},
        Event.GIVE_UP: {**REST, State.IDLE: KEEP, UP: KEEP, State.PAUSED: KEEP, CHECK: KEEP, ACT: BACK, WAIT: BACK},
    },
    timers={
        Timer.RETRY: TimerRule(frozenset({State.PAUSED, ROLL}), Event.RETRY_DUE, seconds=growing_pause),
        Timer.PROBATION: TimerRule(
            frozenset({WAIT}), Event.PROBATION_OVER, "the probation", seconds=lambda now: now.data.probation
        ),
    },
    waits={State.IDLE: "waits for the user", **dict.fromkeys((UP, CHECK, ACT, ROLL), "the request has a deadline")},
)
