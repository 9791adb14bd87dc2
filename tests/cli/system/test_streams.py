"""Standard streams as systems have them: encodings that know few characters, streams that are closed or full."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from towline.cli._streams import encodable, prepare_streams

TITLE = "日本語 Łem 🐦"
ESCAPED = "\\u65e5\\u672c\\u8a9e \\u0141em \\ud83d\\udc26"

#: What an environment says of the encoding, and how the title then reads.
ENCODINGS = {
    "utf-8": ({"PYTHONIOENCODING": "utf-8"}, TITLE),
    "cp1252": ({"PYTHONIOENCODING": "cp1252"}, ESCAPED),
    "latin-1": ({"PYTHONIOENCODING": "latin-1"}, ESCAPED),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, ESCAPED),
    "LANG=C": ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, ESCAPED),
    "by choice": ({"PYTHONIOENCODING": "ascii:replace"}, "??? ?em ?"),
}

Call = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def call(environment: dict[str, str]) -> Call:
    """Call `towline` and get the bytes that it writes."""

    def call(
        *arguments: str, variables: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.run(
            [sys.executable, "-P", "-m", "towline", *arguments],
            env={**environment, **(variables or {})},
            timeout=50,
            check=False,
            **options,
        )

    return call


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_job_is_followed_whatever_the_pipe_can_encode(call: Call, job_server: Any, encoding: str) -> None:
    variables, shown = ENCODINGS[encoding]
    job_server.item = TITLE
    job_server.finish()
    plain = call("watch", "j1", "--url", job_server.url, variables=variables)
    assert (plain.returncode, plain.stderr) == (0, b"")
    lines = plain.stdout.decode("utf-8" if encoding == "utf-8" else "ascii").splitlines()
    assert any(line.endswith(shown) for line in lines)
    assert lines[-1] == "complete"

    as_json = call("watch", "j2", "--url", job_server.url, "--json", variables=variables)
    assert as_json.returncode == 0
    told = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [one["current_item"] for one in told if "current_item" in one] == [
        shown if encoding == "by choice" else TITLE
    ]


@pytest.mark.parametrize("encoding", ["cp1252"])
def test_what_developers_get_is_shown_too(call: Call, tmp_path: Path, encoding: str) -> None:
    """Arrows and the like."""
    variables, _ = ENCODINGS[encoding]
    for arguments in (
        ["diagram", "--format", "md"],
        ["tokens", "where"],
        ["--help"],
        ["watch", "--help"],
    ):
        answer = call(*arguments, variables=variables)
        assert (answer.returncode, answer.stderr) == (0, b""), arguments


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal is opened as POSIX does it")
@pytest.mark.parametrize("encoding", ["latin-1", "LANG=C"])
def test_a_terminal_that_cannot_encode_a_title(
    job_server: Any, open_terminal: Callable[..., Any], encoding: str
) -> None:
    job_server.item = TITLE
    terminal = open_terminal("watch", "j1", "--url", job_server.url, **ENCODINGS[encoding][0])
    terminal.wait_for(r"\d+% +connected +-+ " + ESCAPED.replace("\\", "\\\\"))
    job_server.finish()
    code, last_words = terminal.leave()
    assert code == 0
    assert "complete" in last_words


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes it with >&-")
@pytest.mark.parametrize("closed", [[1], [0, 1, 2]])
def test_a_stream_may_be_closed(call: Call, hub: str, tmp_path: Path, closed: list[int]) -> None:
    file = tmp_path / "books.csv"
    file.write_text("title,author,isbn\nEmma,Jane Austen,9780141439587\n")

    def close() -> None:
        for number in closed:
            os.close(number)

    answer = call("import", str(file), "--url", hub, preexec_fn=close)
    assert answer.returncode == 0
    assert (b"complete: 1/1" in answer.stdout) is (1 not in closed)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes it with <&-")
def test_a_token_from_a_stream_that_is_closed(call: Call) -> None:
    arguments = ["watch", "j1", "--url", "ws://127.0.0.1:1/ws/progress", "--token-file", "-"]
    answer = call(*arguments, preexec_fn=lambda: os.close(0))
    assert (answer.returncode, answer.stderr) == (
        2,
        b"towline: token_file: the file is empty; it must hold the token\n",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_no_failed_job(call: Call, hub: str, tmp_path: Path) -> None:
    file = tmp_path / "books.csv"
    file.write_text("title,author,isbn\nEmma,Jane Austen,9780141439587\n")
    for arguments in (["import", str(file), "--url", hub], ["tokens", "where"], ["diagram"]):
        with Path("/dev/full").open("wb") as full:
            answer = call(*arguments, stdout=full)
        assert answer.returncode == 5, arguments
        assert b"No space left" in answer.stderr


def test_a_pipe_that_nobody_reads_is_no_failed_job(call: Call) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        answer = call("diagram", stdout=pipe)
    assert (answer.returncode, answer.stderr) == (5, b"towline: [Errno 32] Broken pipe\n")


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"\xef\xbb\xbft1\r\n", 0, ""),
        ("t1\n".encode("utf-16"), 2, "printable ASCII"),
        (b"\xef\xbb\xbf\n", 2, "token_file: the file is empty"),
    ],
    ids=["a mark and a line end of Windows", "UTF-16", "nothing"],
)
def test_a_token_file_as_editors_write_it(
    call: Call, job_server: Any, tmp_path: Path, content: bytes, code: int, words: str
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    job_server.finish()
    answer = call("watch", "j1", "--url", job_server.url, "--token-file", str(file))
    assert answer.returncode == code
    assert words in answer.stderr.decode()


def test_a_token_file_that_cannot_be_read_is_a_wrong_use(call: Call, tmp_path: Path) -> None:
    answer = call("watch", "j1", "--url", "ws://127.0.0.1:1/", "--token-file", str(tmp_path / "none"))
    assert answer.returncode == 2
    assert f"token_file: {tmp_path / 'none'} cannot be read: No such file" in answer.stderr.decode()


def test_escapes_are_those_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="cp1252", write_through=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        prepare_streams()
        assert encodable("é🐦") == "é\\ud83d\\udc26"
        text = json.dumps({"a\ud800": TITLE}, ensure_ascii=False)
        stream.write(text)
        assert json.loads(raw.getvalue().decode("cp1252")) == json.loads(text)
        monkeypatch.undo()
