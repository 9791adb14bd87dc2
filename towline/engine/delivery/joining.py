"""Joins updates that wait for a slow consumer, so that few wait and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from ..._updates import AnyUpdate, Output, Progress, merge_runs


def size_of(update: object) -> int:
    """The bytes of an output: its text as UTF-8, another value as JSON. Other updates and values count 0."""
    if not isinstance(update, Output):
        return 0
    value = update.value
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    try:
        return len(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError):
        return 0  # not JSON, so it came from the program's own protocol; the number of updates bounds it


def joined(updates: Iterable[AnyUpdate]) -> list[AnyUpdate]:
    """Join output of the same key and progress; the result says the same in fewer updates.

    - Text that is appended to a key is joined and stands where the first of it stood. So it may come before progress
      and output of other keys that stood between, but not before an update of another kind. Values that are not text
      stay apart.
    - `replace` removes everything before it of its key, wherever it stands.
    - Each run of progress is merged.

    The position of joined text is one that skips nothing: the last of its parts up to the first update between.
    """
    kept: list[AnyUpdate | None] = []
    places: dict[str, list[int]] = {}
    # By key: where its text stands that more may be joined to. By place: the parts of a text.
    last: dict[str, int] = {}
    parts: dict[int, list[str]] = {}
    for update in updates:
        if isinstance(update, Output):
            key, value = update.key, update.value
            before = places.setdefault(key, [])
            if update.op == "replace":
                for place in before:
                    kept[place] = None
                before.clear()
            elif isinstance(value, str) and key in last:
                place = last[key]
                parts[place].append(value)
                if place == len(kept) - 1 and isinstance(text := kept[place], Output):
                    kept[place] = replace(update, op=text.op)
                continue
            last.pop(key, None)
            before.append(len(kept))
            if isinstance(value, str):
                last[key] = len(kept)
                parts[len(kept)] = [value]
        elif not isinstance(update, Progress):
            last.clear()
        kept.append(update)
    for place, values in parts.items():
        if len(values) > 1 and (text := kept[place]) is not None:
            kept[place] = replace(text, value="".join(values))
    return merge_runs(update for update in kept if update is not None)
