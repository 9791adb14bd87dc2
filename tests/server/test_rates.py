"""Rates: never more than was allowed, never less for who waits as told, nothing remembered for ever."""

from hypothesis import given
from hypothesis import strategies as st

from towline.server.web._rates import Rate, whole_seconds


@given(st.integers(1, 20), st.floats(0.5, 100), st.lists(st.floats(0, 50), max_size=100))
def test_no_window_holds_more_than_twice_the_count(count: int, period: float, pauses: list[float]) -> None:
    rate = Rate(count, period)
    now, taken = 1000.0, []
    for pause in pauses:
        now += pause
        if not rate.take("k", now):
            taken.append(now)
    for start in taken:
        # A full bucket, and what flows in during the period.
        assert sum(start <= moment < start + period for moment in taken) <= 2 * count + 1


@given(st.integers(1, 20), st.floats(0.5, 100))
def test_a_burst_then_a_wait_that_is_enough(count: int, period: float) -> None:
    rate = Rate(count, period)
    assert [rate.take("k", 5.0) for _ in range(count)] == [0] * count
    wait = rate.take("k", 5.0)
    assert 0 < wait <= period / count * 1.001
    assert rate.take("k", 5.0 + wait * 0.9) > 0
    assert rate.take("k", 5.0 + wait * 1.01) == 0


def test_keys_do_not_touch_each_other_and_are_forgotten() -> None:
    rate = Rate(1, 10)
    for number in range(1000):
        assert rate.take(f"k{number}", 0) == 0
    assert rate.take("k5", 1) > 0
    for number in range(600):
        assert rate.take("other", 100 + 20 * number) == 0
    assert len(rate._full_at) == 1


def test_whole_seconds() -> None:
    assert [whole_seconds(wait) for wait in (0.01, 1, 1.2, 59.9)] == ["1", "1", "2", "60"]
