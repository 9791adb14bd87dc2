# INVARIANT: an event stream, split in any way, gives what the standard says, up to the first typed limit.
"""Fuzz the parsers of event streams and lines; `make fuzz`. Two bytes choose the cut, the third the limits."""

import re

from towline._exceptions import MessageTooBig
from towline.transport import MAX_RETRY, EventParser, LineParser


def plain(wire: bytes, max_line: int, max_event: int) -> object:
    """The section "Interpreting an event stream" of the standard, word for word, with our limits."""
    text = wire.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(b"\r\n|\r|\n", text)
    events, last_id, retry, comments = [], "", None, 0
    kind, data, id_buffer, data_lines = "", "", "", 0
    for number, raw in enumerate(lines):
        if len(raw) > max_line:
            return events, last_id, retry, comments, "bytes in a line"
        if number == len(lines) - 1:
            break
        line = raw.decode("utf-8", "replace")
        if not line:
            last_id = id_buffer
            if data:
                events.append((kind or "message", data[:-1], last_id or None))
            kind, data, data_lines = "", "", 0
            continue
        if line.startswith(":"):
            comments += 1
            continue
        name, colon, value = line.partition(":")
        value = value[1:] if colon and value.startswith(" ") else value
        if name == "event":
            kind = value
        elif name == "data":
            data += f"{value}\n"
            data_lines += 1
            if data_lines > 1 and len(data.encode()) - 1 > max_event:
                return events, last_id, retry, comments, "bytes in an event"
        elif name == "id" and "\0" not in value:
            id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = min(int(value[-4000:]) / 1000, MAX_RETRY) if not value[:-4000].strip("0") else MAX_RETRY
    return events, last_id, retry, comments, None


def outcome(pieces: list[bytes], max_line: int, max_event: int) -> object:
    parser = EventParser(max_line=max_line, max_event=max_event)
    events: list[tuple[str, str, str | None]] = []
    problems: list[MessageTooBig] = []
    for piece in pieces:
        try:
            for event in parser.feed(piece):
                events.append((event.type, event.data, event.id))  # noqa: PERF401 - what came before the raise counts
        except MessageTooBig as error:
            problems.append(error)
    assert all(problem.__cause__ is problem.__context__ is None for problem in problems)
    assert len({problem.what for problem in problems}) <= 1
    return events, parser.last_id or "", parser.retry, parser.comments, problems[0].what if problems else None


def lines(pieces: list[bytes], max_line: int) -> object:
    parser = LineParser(max_line=max_line)
    got: list[str] = []
    try:
        for piece in pieces:
            for line in parser.feed(piece):
                got.append(line)  # noqa: PERF402 - what came before the raise counts
    except MessageTooBig as error:
        return got, error.what
    return got + list(parser.finish())


def check(data: bytes) -> None:
    place = int.from_bytes(data[:2], "big")
    max_line = (data[2] if len(data) > 2 else 0) or 1 << 20
    max_event = max_line + 20
    wire = data[3:]
    cuts = [[wire], [wire[:place], wire[place:]]]
    if len(wire) < 300 and place % 4 == 0:
        cuts.append([wire[i : i + 1] for i in range(len(wire))])
    expected = plain(wire, max_line, max_event)
    for pieces in cuts:
        assert outcome(pieces, max_line, max_event) == expected
        assert lines(pieces, max_line) == lines([wire], max_line)
