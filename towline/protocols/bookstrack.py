"""The backend that Towline was made for: Towline's messages without a log, and calls at its own paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._facts import Follow, Promise, Request, Want
from .._secret import Secret
from .towline import Towline


@dataclass(frozen=True)
class Bookstrack(Towline):
    """Follows a job of the bookstrack backend.

    Its token goes into the query. Its state says `running` even after the end, and it keeps no messages for later.
    So only the end is exact, and the engine gives up after an hour of silence. The parameters are those of `Towline`.
    """

    token_in: str = "query"
    cancel_path: str = "/api/enrichment/cancel"
    events_path: str | None = None

    name: ClassVar[str] = "bookstrack"
    promise: ClassVar[Promise] = "end exact"
    stall_limit: ClassVar[float | None] = 3600

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`. The backend keeps no log and closes no older socket, so `ready` is bare."""
        return super().ask(Follow(want.via) if isinstance(want, Follow) else want, token)
