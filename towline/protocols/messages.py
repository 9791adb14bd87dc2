"""A job on a server of your own that sends JSON messages over a WebSocket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from .._exceptions import InvalidArgument
from .._facts import Answer, Fact, Follow, GetState, Message, Promise, Received, Request, Text, Via, Want
from .._headers import check_subprotocols
from .._secret import Secret
from ._shared.generic import OwnServer, parsed


@dataclass(frozen=True)
class Messages(OwnServer):
    """Follows JSON messages over a WebSocket; `each` turns one into an update or an outcome.

    - `subprotocols`, `opening`: what to offer in the upgrade, and the messages to send right after it.
    - `state`: the URL of a call that answers the job's state as JSON, which `each` reads too. With it the end is exact,
      and a reconnect shows the latest state. Without it there is only what arrives.

    Example:

        def each(message):
            match message:
                case {"event": "progress", "percent": percent}:
                    return towline.Progress(fraction=percent / 100)
                case {"event": "done", "result": result}:
                    return towline.JobComplete(result=result)

        Messages("wss://api.example/jobs/7", each)
    """

    subprotocols: tuple[Text, ...] = ()
    opening: tuple[Text, ...] = ()
    state: str | None = None

    name: ClassVar[str] = "messages"
    sources: ClassVar[tuple[Via, ...]] = ("websocket",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subprotocols", check_subprotocols(self.subprotocols))
        self.check_state(self.state)
        if isinstance(cast(object, self.opening), str):
            raise InvalidArgument("opening", "must be a tuple of messages, not a single text")

    @property
    def promise(self) -> Promise:
        """What the updates are worth."""
        return "what arrives" if self.state is None else "end exact"

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None if the server has none."""
        match want:
            case Follow():
                sent = self.placed(token, self.url)
                return Request(
                    via="websocket",
                    url=sent.url,
                    headers=sent.headers,
                    subprotocols=(*self.subprotocols, *sent.subprotocols),
                    opening=self.opening,
                    in_step="open" if self.state is None else "state",
                )
            case GetState():
                return None if self.state is None else self.call(self.state, token)
        return self.ask_result(want, token)

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what a message or an answer means; raises `MalformedMessage` if it is not JSON."""
        match received:
            case Message(data):
                return self.meant(parsed(data, "message"))
            case Answer() if not isinstance(want, Follow):
                return self.read_call(want, received)
        return ()
