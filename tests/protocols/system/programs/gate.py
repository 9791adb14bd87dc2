"""The door of a server: it refuses every token but the one in the file `token`, if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Gate:
    """An ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        accepted = Path("token").read_text() if Path("token").exists() else None
        sent = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if scope["type"] != "http" or accepted is None or sent == f"Bearer {accepted}":
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
