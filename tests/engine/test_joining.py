"""Joining: the same text in fewer updates, nothing out of order, and no position that skips something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towline import JobComplete, JobStarted, Output, Paused, Progress, Resynced
from towline._facts import Numbered
from towline._updates import AnyUpdate
from towline.engine.delivery.delivery import Delivery, Subscription
from towline.engine.delivery.inbox import INBOX_LIMIT, Inbox
from towline.engine.delivery.joining import joined, size_of
from towline.testing import virtual_time, virtual_time_backends

END = JobComplete(job="j", seq=99_999, epoch="e")

#: Kinds of updates; an output also has a key.
KINDS = ("append a", "append a", "append b", "replace a", "value a", "progress", "paused", "started", "resynced")


def update_of(kind: str, seq: int) -> AnyUpdate:
    """An update with the number `seq`, which its text repeats."""
    place: dict[str, Any] = {"job": "j", "seq": seq, "epoch": "e"}
    match kind.split():
        case ["progress"]:
            return Progress(**place, fraction=0.5, first_seq=seq)
        case ["paused"]:
            return Paused(**place, kind="input")
        case ["started"]:
            return JobStarted(**place)
        case ["resynced"]:
            return Resynced(**place, kind="replay", missed=0)
        case ["value", key]:
            return Output(**place, key=key, value={"line": seq})
        case [op, key]:
            return Output(**place, key=key, value=f"<{seq}>", op=op)  # type: ignore[arg-type]
    raise AssertionError(kind)


def shown(updates: Sequence[AnyUpdate]) -> dict[str, str]:
    """What a program has of each output."""
    text: dict[str, str] = {}
    for update in updates:
        if isinstance(update, Output):
            text[update.key] = (text.get(update.key, "") if update.op == "append" else "") + str(update.value)
    return text


def others(updates: Sequence[AnyUpdate]) -> list[AnyUpdate]:
    """The updates that are never joined."""
    return [update for update in updates if not isinstance(update, Output | Progress)]


def is_superseded(update: Output, sent: Sequence[AnyUpdate]) -> bool:
    """Whether a later `replace` has taken the place of an output."""
    assert update.seq is not None
    return any(
        isinstance(later, Output) and later.op == "replace" and later.key == update.key for later in sent[update.seq :]
    )


def numbered(kinds: Sequence[str]) -> list[AnyUpdate]:
    return [update_of(kind, seq) for seq, kind in enumerate(kinds, 1)]


def test_text_is_joined_where_its_first_part_stood() -> None:
    a1, b2, progress3, a4, paused5, a6 = numbered(
        ["append a", "append b", "progress", "append a", "paused", "append a"]
    )
    first = Output(job="j", seq=1, epoch="e", key="a", value="<1><4>")
    assert joined([a1, b2, progress3, a4, paused5, a6]) == [first, b2, progress3, paused5, a6]


def test_text_with_nothing_between_has_the_last_position() -> None:
    parts = numbered(["append a"] * 3)
    assert joined(parts) == [Output(job="j", seq=3, epoch="e", key="a", value="<1><2><3>")]


def test_replace_takes_the_place_of_all_before_it() -> None:
    *_, paused, replaced, more = numbered(["append a", "value a", "replace a", "paused", "replace a", "append a"])
    assert isinstance(replaced, Output)
    both = Output(job="j", seq=6, epoch="e", key="a", value="<5><6>", op="replace")
    assert joined([*numbered(["append a", "value a", "replace a"]), paused, replaced, more]) == [paused, both]


def test_values_that_are_not_text_stay_apart() -> None:
    updates = numbered(["value a", "append a", "value a", "value a"])
    assert joined(updates) == updates


@pytest.mark.parametrize(
    ("value", "size"),
    [("abc", 3), ("äö", 4), ("\ud800", 1), ({"a": 1}, 7), (object(), 0), (None, 4)],
)
def test_the_size_of_an_output_is_in_bytes(value: object, size: int) -> None:
    assert size_of(Output(key="k", value=value)) == size
    assert size_of(Progress(fraction=0.5)) == 0


@given(st.lists(st.sampled_from(KINDS), max_size=60))
def test_joining_changes_neither_the_text_nor_the_order_of_the_rest(kinds: list[str]) -> None:
    sent = numbered(kinds)
    result = joined(sent)
    assert shown(result) == shown(sent)
    assert others(result) == others(sent)
    assert joined(result) == result
    for other in others(sent):
        # Text that comes before a pause is shown before it, and no later text.
        before, after = sent[: sent.index(other)], result[: result.index(other)]
        for key in "ab":
            outputs = [update for update in before if isinstance(update, Output) and update.key == key]
            if not any(is_superseded(update, sent) for update in outputs):
                assert shown(after).get(key) == shown(before).get(key)


@given(st.lists(st.sampled_from(KINDS), max_size=60))
def test_no_position_skips_what_was_not_shown(kinds: list[str]) -> None:
    """A process that stops after any update goes on behind its position."""
    sent = numbered(kinds)
    result = joined(sent)
    for place, update in enumerate(result, 1):
        assert update.seq is not None
        seen = shown(result[:place])
        for earlier in sent[: update.seq]:
            if isinstance(earlier, Output) and not is_superseded(earlier, sent):
                assert str(earlier.value) in seen[earlier.key]
        assert others(sent[: update.seq]) == [u for u in others(result[:place]) if (u.seq or 0) <= update.seq]


@pytest.mark.parametrize("backend", virtual_time_backends())
@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=120),
    repeat=st.integers(1, 12),
    together=st.sampled_from([1, 3, 50, 400]),
    delays=st.lists(st.sampled_from([0, 0, 0.001, 0.2, 5]), min_size=1, max_size=4),
    max_waiting=st.sampled_from([1, 50, 1000, 1 << 20]),
)
def test_consumers_of_any_speed_get_all_that_was_sent(
    backend: str, kinds: list[str], repeat: int, together: int, delays: list[float], max_waiting: int
) -> None:
    """The engine reads batches while there is room; two consumers take them, each in its own time."""
    sent = numbered(kinds * repeat)
    received: list[list[AnyUpdate]] = [[], []]

    async def consume(subscription: Subscription, got: list[AnyUpdate], waits: list[float]) -> None:
        async for update in subscription:
            got.append(update)
            await anyio.sleep(waits[len(got) % len(waits)])

    async def main() -> None:
        delivery = Delivery(
            catch_up=lambda: None,
            moved=lambda: None,
            end_taken=lambda: None,
            overflowed=lambda: None,
            soon=lambda call: call(),
            max_waiting=max_waiting,
        )
        delivery.begin(None)
        inboxes: list[Inbox] = []
        async with anyio.create_task_group() as tasks:
            for got, waits in zip(received, (delays, [0.0]), strict=True):
                subscription = delivery.subscribe(wait=False)
                assert subscription._inbox is not None
                inboxes.append(subscription._inbox)
                tasks.start_soon(consume, subscription, got, waits)
            for start in range(0, len(sent), together):
                while (room := delivery.room()) is not None:
                    await room.wait()
                batch = sent[start : start + together]
                delivery.publish(batch, Numbered(start + len(batch), "e"))
                size = sum(map(size_of, batch))
                for inbox in inboxes:
                    assert len(inbox.waiting) <= INBOX_LIMIT + len(batch)
                    assert inbox.size == sum(map(size_of, inbox.waiting)) <= max_waiting + size
            delivery.outcome = END
            delivery.end(Numbered(99_999, "e"))

    name, options = virtual_time(backend)
    anyio.run(main, backend=name, backend_options=options)
    for got in received:
        assert got[-1] is END
        assert others(got[:-1]) == others(sent)
        assert shown(got) == shown(sent)
        assert sum(u.merged for u in got if isinstance(u, Progress)) == len(
            [u for u in sent if isinstance(u, Progress)]
        )
