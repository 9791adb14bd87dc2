"""The updates that are ready to be delivered, and those that wait until the link is in step."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from ..._facts import Snapshot
from ..._updates import AnyUpdate, Progress, Resynced
from .shown import Shown


class Outlet:
    """Collects the updates of one job in order, and remembers what they have shown. No count ever gets smaller."""

    def __init__(self, job: str, *, has_shown: bool) -> None:
        self.shown = Shown()
        #: The updates to deliver now.
        self.ready: list[AnyUpdate] = []
        #: Whether an update was delivered, in this process or in one before.
        self.has_shown = has_shown
        self._job = job
        self._resynced: Resynced | None = None
        # What to deliver after it: the news of a snapshot, and the whole snapshot, to be remembered.
        self._news: list[AnyUpdate] = []
        self._snapshot: tuple[AnyUpdate, ...] = ()

    def take(self) -> list[AnyUpdate]:
        """Return the updates to deliver now, in order."""
        ready, self.ready = self.ready, []
        return ready

    def emit(self, update: AnyUpdate) -> None:
        """Add an update."""
        if not update.job:
            update = replace(update, job=self._job)
        if type(update) is Progress and update.processed_count is not None:
            count = self.shown.count
            if count is not None and update.processed_count < count:
                # It has a position, so it is delivered; but the count never decreases.
                update = replace(update, processed_count=count)
            self.shown.count = update.processed_count
        if not isinstance(update, Resynced):
            self.shown.note(update)
        self.has_shown = True
        self.ready.append(update)

    def emit_news(self, snapshot: Snapshot) -> None:
        """Add the updates of a snapshot that say something new."""
        for update in self.shown.news_of(snapshot.updates):
            self.emit(update)
        self.shown.note_snapshot(snapshot.updates)

    def hold(self, resynced: Resynced | None, news: Iterable[AnyUpdate] = (), snapshot: Snapshot | None = None) -> None:
        """Keep the report of a sync, and the news of its snapshot, until `release`."""
        self._resynced, self._news = resynced, list(news)
        self._snapshot = () if snapshot is None else snapshot.updates

    def snapshot_report(
        self,
        last: int | None = None,
        epoch: str | None = None,
        first: int | None = None,
        missed: int | None = None,
        *,
        refused: bool = False,
    ) -> Resynced:
        """The report of a snapshot that covers the events `first` to `last`."""
        return Resynced(
            seq=last,
            epoch=epoch,
            kind="snapshot",
            from_seq=first,
            to_seq=last,
            missed=missed,
            refused=refused,
            first=not self.has_shown,
        )

    def release(self) -> None:
        """Show the snapshot that `hold` kept: its report, then its updates."""
        resynced, news, snapshot = self._resynced, self._news, self._snapshot
        self.hold(None)
        if resynced is not None:
            self.emit(resynced)
        for update in news:
            self.emit(update)
        self.shown.note_snapshot(snapshot)
