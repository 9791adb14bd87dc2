"""What the sequencer finds in the facts, apart from the updates, and how it handles the next one."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeAlias

from ..._updates import AnyUpdate, Outcome


class Gap(NamedTuple):
    """A fact does not follow the delivered updates; facts are buffered from here until the next `release`."""

    problem: str


class Synced(NamedTuple):
    """The link is in step: call `release` after handling it."""


class End(NamedTuple):
    """The job has ended: deliver `before`, then `outcome`."""

    before: tuple[AnyUpdate, ...]
    outcome: Outcome


Finding: TypeAlias = Gap | Synced | End | None


class Phase(Enum):
    """How the next fact is handled."""

    STARTING = "starting"
    """The first fact brings the link in step."""
    HOLDING = "holding"
    """Buffered until a snapshot arrives."""
    REPLAYING = "replaying"
    """Part of a replay: delivered if it comes next."""
    COMPLETE = "complete"
    """The link is in step but not released: buffered."""
    LIVE = "live"
    """Delivered if it comes next."""
