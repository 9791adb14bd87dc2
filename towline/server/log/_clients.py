"""The sockets of a hub by client, and which of a client's sockets is its latest.

A client is one follower: a `Connection`, a row of the page. It draws a random identity, counts its sockets, and sends
both in `ready`. The token says nothing of this: a page and a terminal may share one, and a refresh changes it.

The socket with the highest number stays, in whatever order the hub hears of them: a `ready` that was stuck on the way
does not cut the socket that came after it, and two programs that share an identity by mistake do not replace each other
forever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: The close code of a socket whose client has a later one: to the engine, a refusal and no reason to come back.
REPLACED: Final = 4509


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A client of a job has opened its socket of this number."""

    job_id: str
    client: str
    socket: int


class Clients:
    """The sockets here whose clients have said who they are."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[str, str], list[tuple[int, Callable[[], None]]]] = {}

    def add(self, arrival: Arrival, let_go: Callable[[], None]) -> None:
        """Keep a socket; `let_go` is called when its client has a later one."""
        self._sockets.setdefault((arrival.job_id, arrival.client), []).append((arrival.socket, let_go))

    def remove(self, arrival: Arrival, let_go: Callable[[], None]) -> None:
        """Forget a socket that was added."""
        sockets = self._sockets[arrival.job_id, arrival.client]
        sockets.remove((arrival.socket, let_go))
        if not sockets:
            del self._sockets[arrival.job_id, arrival.client]

    def arrived(self, arrival: Arrival) -> int:
        """Let the client's earlier sockets here go; the highest number among those that are here, or has arrived."""
        latest = arrival.socket
        for number, let_go in tuple(self._sockets.get((arrival.job_id, arrival.client), ())):
            latest = max(latest, number)
            if number < arrival.socket:
                let_go()
        return latest
