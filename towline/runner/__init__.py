"""Runs a lifecycle: steps that any thread may add, effects in order, and timers with tickets.

`Runner` runs any table, on asyncio and trio. `Driver`, its base, runs the steps of any function: the connection is one,
whose step knows more than its table. This package knows snapshots, events and effects of any lifecycle, but no socket,
no job and no store.
"""

from ._driver import Driver
from ._runner import Runner
from ._steps import AnySnapshot, Stepped, Steps, Taken

__all__ = [
    "AnySnapshot",
    "Driver",
    "Runner",
    "Stepped",
    "Steps",
    "Taken",
]
