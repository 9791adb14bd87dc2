"""What the updates have shown so far, so that a snapshot delivers only news."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from ..._updates import AnyUpdate, Output, Paused, Progress, Update, without_place

#: How many outputs are remembered by their key.
OUTPUTS_REMEMBERED: Final = 256

#: The fields that say where an update stands, and nothing about the job.
_PLACE: Final = frozenset({"job", "pipeline", "timestamp", "seq", "epoch", "mark", "first_seq", "merged"})
_FIELDS: Final = tuple(name for name in Progress.__struct_fields__ if name not in _PLACE)


class Shown:
    """Remembers the last delivered update of each kind and key, and the largest count of this log."""

    def __init__(self) -> None:
        #: The largest `processed_count` delivered in this log.
        self.count: int | None = None
        #: The last progress delivered.
        self.progress: Progress | None = None
        # The last pause, and the progress before it: a later progress ends it.
        self._pause: tuple[str, str] | None = None
        self._before_pause: Progress | None = None
        # A live update may leave out fields that only snapshots have, so their last values are kept apart.
        self._from_snapshot: Progress | None = None
        self._others: dict[type[Update], Update] = {}
        self._outputs: dict[str, bytes | None] = {}

    def note(self, update: AnyUpdate) -> None:
        """Remember a delivered update. Any update but a pause means that the job goes on."""
        self._note_pause(update)
        if isinstance(update, Progress):
            self.progress = update
        elif isinstance(update, Output):
            self._outputs.pop(update.key, None)
            self._outputs[update.key] = _digest(update.value) if update.op == "replace" else None
            if len(self._outputs) > OUTPUTS_REMEMBERED:
                del self._outputs[next(iter(self._outputs))]
        elif not isinstance(update, Paused):
            self._others[type(update)] = without_place(update)

    def news_of(self, updates: Iterable[AnyUpdate]) -> list[AnyUpdate]:
        """Return the updates of a snapshot that say something new. A smaller count is not news."""
        return [update for update in updates if self._is_news(update, self._goes_on(updates))]

    def note_snapshot(self, updates: Iterable[AnyUpdate]) -> None:
        """Remember a snapshot, after its news were delivered and noted."""
        for update in updates:
            if isinstance(update, Progress):
                self._from_snapshot = update
            elif isinstance(update, Paused):
                self._note_pause(update)

    def _note_pause(self, update: AnyUpdate) -> None:
        self._pause = (update.kind, update.message) if isinstance(update, Paused) else None
        self._before_pause = self.progress

    @property
    def paused(self) -> tuple[str, str] | None:
        """Why the job waits, if no update came after the pause."""
        return self._pause if self.progress is self._before_pause else None

    def _goes_on(self, updates: Iterable[AnyUpdate]) -> bool:
        """Whether a snapshot ends the pause that was delivered last."""
        return self.paused is not None and not any(isinstance(update, Paused) for update in updates)

    def _is_news(self, update: AnyUpdate, goes_on: bool) -> bool:
        if isinstance(update, Paused):
            return (update.kind, update.message) != self.paused
        if isinstance(update, Progress):
            if update.processed_count is not None and self.count is not None and update.processed_count < self.count:
                return False
            return goes_on or self.progress is None or any(self._is_new_in(update, name) for name in _FIELDS)
        if isinstance(update, Output):
            known = self._outputs.get(update.key)
            return known is None or known != _digest(update.value)
        return self._others.get(type(update)) != without_place(update)

    def _is_new_in(self, update: Progress, name: str) -> bool:
        value = getattr(update, name)
        if value is None or value == "":
            return False  # the snapshot says nothing of it
        last: object = getattr(self.progress, name)
        if last is None or last == "":
            last = getattr(self._from_snapshot, name, None)
        return bool(last != value)


def _digest(value: object) -> bytes | None:
    """A short stand-in for a value of any size; None for a value that has no JSON."""
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return blake2b(text, digest_size=16).digest()
