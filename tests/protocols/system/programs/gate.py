"""The door of a server: it refuses every token but the one in the file `token`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _accepted() -> str:
    return Path("token").read_text()


class Gate:
    """An ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if scope["type"] != "http" or sent == f"Bearer {_accepted()}":
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
