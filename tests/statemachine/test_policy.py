"""The numbers: presets to the millisecond, bounds, jitter, advice, and what a policy refuses."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline._exceptions import InvalidArgument
from towline.statemachine import Advice, Backoff, Delay, Policy

seconds = st.floats(0, 1e6)


def test_original_waits_1_2_4_8_16_seconds_exactly() -> None:
    backoff = Backoff.original()
    for shared in (False, True):
        delays = [backoff.delay(n, shared=shared) for n in range(backoff.attempts)]
        assert delays == [Delay(number, number) for number in (1.0, 2.0, 4.0, 8.0, 16.0)]
        assert [delay.draw(random.random) for delay in delays] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert backoff.window(5) == 30.0


def test_patient_is_the_default_and_caps_before_it_jitters() -> None:
    backoff = Backoff.patient()
    assert backoff == Backoff() == Policy().backoff
    assert [backoff.window(n) for n in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [backoff.window(n, shared=True) for n in range(7)] == [5, 5, 5, 8, 16, 30, 30]
    assert backoff.delay(9) == Delay(0.25, 30.0)
    assert (backoff.attempts, backoff.seconds) == (20, 600.0)
    delays = [backoff.delay(n) for n in range(backoff.attempts)]
    assert sum((delay.low + delay.high) / 2 for delay in delays) == 243.0  # as its docstring says
    instant = Backoff(base=0.1, factor=3, shared_window=0.1)  # as docs/how-to/reconnect-a-websocket.md says
    assert [instant.delay(n, shared=True).high for n in range(3)] == pytest.approx([0.1, 0.3, 0.9])
    # Capped after the jitter, most late delays would be exactly the cap and all clients in step.
    drawn = [backoff.delay(12).draw(random.Random(1).random) for _ in range(1000)]
    assert 30.0 not in drawn


@pytest.mark.parametrize(("jitter", "low", "high"), [("none", 8.0, 8.0), ("equal", 4.0, 8.0), ("full", 0.25, 8.0)])
def test_each_jitter_by_its_bounds(jitter: Any, low: float, high: float) -> None:
    assert Backoff(jitter=jitter).delay(3) == Delay(low, high)


def test_every_field_has_its_effect() -> None:
    assert Backoff(base=3).window(0) == 3
    assert Backoff(factor=3).window(2) == 9
    assert Backoff(cap=5).window(9) == 5
    assert Backoff(floor=0.75).delay(2).low == 0.75
    assert Backoff(shared_window=12).window(0, shared=True) == 12
    assert Backoff(floor=9, cap=5).delay(9) == Delay(5, 5)


@given(st.integers(0, 10_000), st.booleans(), seconds, st.floats(1, 10), st.floats(0.001, 1e6))
def test_a_delay_stays_within_its_window(n: int, shared: bool, base: float, factor: float, cap: float) -> None:
    backoff = Backoff(base=base, factor=factor, cap=cap)
    delay = backoff.delay(n, shared=shared)
    assert 0 <= delay.low <= delay.high <= cap
    for number in (0.0, 0.5, 1.0):
        assert delay.low <= delay.draw(lambda number=number: number) <= delay.high  # type: ignore[misc]


def test_retry_after_is_the_least_wait_and_then_some() -> None:
    delay = Backoff().delay(0, advice=Advice(retry_after=20))
    assert delay == Delay(0.25, 1.0, at_least=20, extra=2.0)
    assert delay.draw(lambda: 0.0) == 20.0
    assert delay.draw(lambda: 1.0) == 22.0
    # Shorter than the backoff's own draw, it changes nothing but the spread.
    assert Backoff(jitter="none").delay(4, advice=Advice(retry_after=1)).draw(lambda: 0.0) == 16.0


def test_what_is_added_to_advice_is_a_tenth_and_at_most_five_seconds() -> None:
    assert Backoff().delay(0, advice=Advice(retry_after=30)).extra == 3.0
    assert Backoff().delay(0, advice=Advice(retry_after=600)).extra == 5.0


def test_a_told_spread_is_drawn_whole() -> None:
    assert Backoff().delay(7, advice=Advice(retry_in=3, spread=50)) == Delay(3, 53)


@given(advice=st.floats(0, 1e300) | st.just(float("inf")), n=st.integers(0, 30))
def test_advice_is_cut_at_fifteen_minutes(advice: float, n: int) -> None:
    assert Backoff().delay(n, advice=Advice(retry_after=advice)).draw(lambda: 1.0) <= 905.0
    assert Backoff().delay(n, advice=Advice(retry_in=advice, spread=advice)).high <= 1800.0
    assert Backoff().delay(n, advice=Advice(retry_in=advice, spread=advice)).low <= 900.0


def test_the_limit_of_advice_is_a_number_of_the_policy() -> None:
    assert Backoff().delay(0, advice=Advice(retry_after=500), limit=60).at_least == 60


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cap", 0),
        ("cap", float("inf")),
        ("seconds", -1),
        ("seconds", float("nan")),
        ("base", -0.1),
        ("floor", -1),
        ("floor", float("nan")),
        ("shared_window", -1),
        ("factor", 0.5),
        ("factor", float("inf")),
        ("attempts", -1),
        ("jitter", "some"),
    ],
)
def test_backoff_refuses(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Backoff(**{field: value})
    assert caught.value.name == field


@pytest.mark.parametrize("field", [name for name in Policy.__struct_fields__ if name != "backoff"])
def test_policy_refuses_what_cannot_be(field: str) -> None:
    default = getattr(Policy(), field)
    bad = (-1.0,) if isinstance(default, tuple) else -1
    with pytest.raises(InvalidArgument) as caught:
        Policy(**{field: bad})
    assert caught.value.name == field


def test_policy_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(InvalidArgument, match="lost_after"):
        Policy(ping_after=25, lost_after=25)
    with pytest.raises(InvalidArgument, match="stall_after"):
        Policy(stall_after=())


def test_the_defaults_are_the_documented_numbers() -> None:
    policy = Policy()
    assert (policy.dial_spacing, policy.dials_per_window, policy.dial_window) == (4, 60, 600)
    assert (policy.prompt, policy.restored_window, policy.hold, policy.free_restarts) == (0.25, 1, 60, 3)
    assert (policy.stable_after, policy.stall_after, policy.grace) == (30, (120, 240, 600), 30)
    assert (policy.violations, policy.refetch_waits) == (3, (0.5, 1, 2))
    assert (policy.revival_spacing, policy.revivals_per_window, policy.revival_window) == (30, 6, 3600)
    assert (policy.advice_limit, policy.connect_deadline, policy.token_deadline) == (900, 10, 30)
    assert (policy.ping_after, policy.lost_after, policy.probe) == (15, 25, 5)
    assert (policy.close_wait, policy.cancel_wait) == (2, 0.5)
    assert (policy.fetch_deadline, policy.fetch_waits, policy.status_deadline) == (10, (1, 2, 4), 5)


def test_the_original_s_policy_has_no_least_time_between_dials() -> None:
    assert Policy.original() == Policy(backoff=Backoff.original(), dial_spacing=0.0)


def test_a_draw_shorter_than_the_spacing_is_moved_behind_it_and_keeps_its_width() -> None:
    assert Delay(0.25, 2.25).moved_behind(4.0, 4.0) == Delay(4.0, 6.0)
    assert Delay(0.25, 8.25).moved_behind(4.0, 4.0) == Delay(4.0, 8.25)
    assert Delay(0.25, 30.0).moved_behind(4.0, 4.0) == Delay(4.0, 30.0)
    assert Delay(0.25, 2.0).moved_behind(-3.0, 4.0) == Delay(0.25, 2.0)
    assert Delay(1.0, 1.0).moved_behind(4.0, 4.0) == Delay(4.0, 4.0)
    assert Delay(0.25, 1.0, at_least=20, extra=2).moved_behind(4.0, 4.0) == Delay(4.0, 4.75, at_least=20, extra=2)
