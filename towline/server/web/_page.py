"""The page that shows the jobs live in a browser: three files, no build step."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from starlette.responses import Response

MEDIA_TYPES: Final = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
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
    """One of the page's files."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return Response(text, media_type=MEDIA_TYPES[name], headers=_HEADERS)
