"""How often something may happen, by key: a token bucket each, and the buckets that are full are forgotten."""

from __future__ import annotations

import math
from collections import OrderedDict


class Rate:
    """Lets `count` happen at once and `count` a `period` (seconds) in the long run, for each key by itself.

    Time comes in as an argument, in seconds. A bucket is one number: the moment at which it is full again.
    """

    def __init__(self, count: int, period: float) -> None:
        self._cost = period / count
        self._period = period
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """Take one; 0 if there was one, else how many seconds until there is, and nothing was taken."""
        self._forget(now)
        full_at = max(now, self._full_at.get(key, now)) + self._cost
        # A hair of slack: the sum of `count` costs is not `period` to the last bit.
        wait = full_at - now - self._period - self._cost * 1e-6
        if wait > 0:
            return wait
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        return 0

    def _forget(self, now: float) -> None:
        # Those used longest ago come first; two at a time, so the dictionary shrinks faster than it grows.
        for _ in range(2):
            if not self._full_at or next(iter(self._full_at.values())) > now:
                return
            self._full_at.popitem(last=False)


def whole_seconds(wait: float) -> str:
    """A wait as a Retry-After header wants it (RFC 9110 section 10.2.3): whole seconds, at least one."""
    return str(max(1, math.ceil(wait)))
