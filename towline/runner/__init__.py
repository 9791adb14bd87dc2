"""Runs a lifecycle: steps that any thread may add, effects in order, and timers with tickets.

It knows snapshots, events and effects of any lifecycle, but no socket, no job and no store.
"""

from ._runner import Runner
from ._steps import AnySnapshot, Stepped, Steps, Taken

__all__ = [
    "AnySnapshot",
    "Runner",
    "Stepped",
    "Steps",
    "Taken",
]
