"""What the SVG pictures share: their style, for light and dark pages, and their first lines."""

from __future__ import annotations

from html import escape
from typing import Final

#: The colour of each class on a light page and on a dark one.
_COLOURS: Final = {
    "page": ("#ffffff", "#0d1117"),
    "box": ("#f6f8fa", "#1c2128"),
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#818b98", "#8b949e"),
    "c0,.moved": ("#0550ae", "#79c0ff"),
    "c1,.removed,.forbidden": ("#cf222e", "#ff7b72"),
    "c2,.changed,.stale": ("#8a4600", "#e3b341"),
    "c3,.added,.kept": ("#116329", "#56d364"),
    "c4": ("#8250df", "#d2a8ff"),
    "c5": ("#1b7c83", "#39c5cf"),
}
_LIGHT, _DARK = ("".join(f".{name}{{color:{shades[dark]}}}" for name, shades in _COLOURS.items()) for dark in (0, 1))
_STYLE: Final = (
    f"{_LIGHT}@media(prefers-color-scheme:dark){{{_DARK}}}"
    "text,tspan,.page,.fill,.head{fill:currentColor}"
    "text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:11px}"
    ".name{font-size:13px;font-weight:bold;text-anchor:middle}.partly{font-style:italic}"
    ".way,.edge,.frame{fill:none;stroke:currentColor;stroke-width:1.5}"
    ".frame{stroke-dasharray:2 4}.removed{stroke-dasharray:6 3}"
)


def opening(width: float, height: float, title: str) -> list[str]:
    """The first lines of a picture of this size in pixels: an SVG with the style and a page to draw on."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" class="ink">',
        f"<title>{escape(title)}</title>",
        "<desc>Generated; do not edit.</desc>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" class="page"/>',
    ]
