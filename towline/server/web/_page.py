"""The page that shows the jobs live in a browser, and the module for other pages: files as they are, no build step."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from starlette.responses import Response

STATIC_FILES: Final = {"page.css": "text/css", "page.js": "text/javascript", "towline.js": "text/javascript"}
_HEADERS: Final = {
    # Nothing but its own script, style and hub; and no other page may put it into a frame.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_file(name: str) -> Response:
    """One of the static files, or `page.html`."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return Response(text, media_type=STATIC_FILES.get(name, "text/html"), headers=_HEADERS)
