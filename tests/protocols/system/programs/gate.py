"""The door of a server: it refuses tokens, and requests for a stream that it no longer keeps, as files tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _refusal(scope: Any) -> int | None:
    """The status of a refusal: the file `token` holds the one good token, `no-stream` says that streams are gone."""
    sent = dict(scope["headers"]).get(b"authorization", b"").decode()
    if sent != f"Bearer {Path('token').read_text()}":
        return 401
    return 400 if Path("no-stream").exists() and b"stream=true" in scope["query_string"] else None


class Gate:
    """An ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = _refusal(scope) if scope["type"] == "http" else None
        if status is None:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
