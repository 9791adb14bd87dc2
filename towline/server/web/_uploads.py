"""Taking an upload: the body of a request, raw or as a multipart form's first file, streamed to disk under a limit."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

_FORM: Final = b"multipart/form-data"
_MAX_NAME: Final = 255


class TooLarge(Exception):
    """The upload is over the limit."""


class Malformed(Exception):
    """The body is not the form its header says."""


class WrongMediaType(Exception):
    """The pipeline takes no such thing."""


@dataclass(frozen=True)
class Received:
    """A whole upload on disk: its SHA-256, its size in bytes, and the sender's name for it, if any."""

    digest: bytes
    size: int
    name: str | None


class _FirstFile:
    """What a multipart form's first file holds, picked out of its parts."""

    def __init__(self, boundary: bytes) -> None:
        self.name: str | None = None
        self.found = False
        self._chunks: list[bytes] = []
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._inside = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._more_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body, give those of the file."""
        self._parser.write(data)
        out = b"".join(self._chunks)
        self._chunks.clear()
        return out

    def finish(self) -> None:
        """Check that the form was whole."""
        self._parser.finalize()

    def _begin(self) -> None:
        self._disposition = self._header = self._value = b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _more_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if not self.found and b"filename" in options:
            self.found = self._inside = True
            self.name = _clean(options[b"filename"])

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._chunks.append(data[start:end])

    def _end(self) -> None:
        self._inside = False


async def receive_upload(request: Request, path: Path, *, limit: int, media_types: tuple[str, ...]) -> Received:
    """Stream the request's upload into a new file at `path`. Memory is bounded by one chunk of the server's.

    `media_types` are what a raw body may call itself; a form's file may call itself anything.
    Raises `TooLarge`, `Malformed`, `WrongMediaType`, `OSError` for what the disk does not take, and starlette's
    `ClientDisconnect` where the sender goes away; what is at `path` is then incomplete.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    form: _FirstFile | None = None
    if kind == _FORM:
        boundary = options.get(b"boundary")
        if not boundary:
            raise Malformed
        try:
            form = _FirstFile(boundary)
        except FormParserError as error:
            raise Malformed from error
    elif kind.decode("latin-1").lower() not in media_types:
        raise WrongMediaType
    elif announced_size(request) > limit:
        raise TooLarge
    try:
        return await _store(request.stream(), form, path, limit)
    except FormParserError as error:
        raise Malformed from error


async def _store(body: AsyncIterator[bytes], form: _FirstFile | None, path: Path, limit: int) -> Received:
    digest = hashlib.sha256()
    size = 0
    overhead = 0
    async with await anyio.open_file(path, "xb") as file:
        async for chunk in body:
            data = chunk if form is None else form.feed(chunk)
            size += len(data)
            overhead += len(chunk) - len(data)
            # What surrounds the file in a form is bounded too.
            if size > limit or overhead > limit:
                raise TooLarge
            digest.update(data)
            await file.write(data)
    if form is not None:
        form.finish()
        if not form.found:
            raise Malformed
    return Received(digest.digest(), size, None if form is None else form.name)


def announced_size(request: Request) -> int:
    """The bytes of a body by its Content-Length, 0 if it has none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def _clean(name: bytes) -> str | None:
    # A name is only shown, never used as a path; the folders that some browsers put before it are dropped.
    text = name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return text[:_MAX_NAME] or None
