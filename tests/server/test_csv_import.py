"""The csv_import pipeline on a real log, without sockets: what it accepts, rejects and fails on, and how it goes on."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from towline.server import JobContext, JobFailure, Upload
from towline.server._statistics import Counters
from towline.server.log._base import Event, Job
from towline.server.log._sqlite import SqliteLog
from towline.server.pipelines._csv_import import csv_import

pytestmark = pytest.mark.anyio

GOOD = "9780306406157"
EXAMPLE = Path(__file__).parents[2] / "towline" / "cli" / "books.csv"


class Killed(BaseException):
    """The process ends here."""


class CountedContext(JobContext):
    """A context whose process is killed after so many told rows."""

    left = -1

    async def progress(self, *args: Any, **options: Any) -> None:
        await super().progress(*args, **options)
        self.left -= 1
        if self.left == 0:
            raise Killed


async def run_import(
    tmp_path: Path, data: bytes, kill_after: tuple[int, ...] = (), **options: Any
) -> tuple[dict[str, Any], list[Event]]:
    upload = Upload(path=tmp_path / "upload.csv", size=len(data))
    upload.path.write_bytes(data)
    folder = tmp_path / "job"
    folder.mkdir()
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(Job(id="j", pipeline="csv_import", owner="", epoch="e", created=1), None)
        for left in (*kill_after, -1):
            job = await log.job("j")
            assert isinstance(job, Job)
            context = CountedContext(log, job, folder, 1, Counters(), lambda: 2)
            context.left = left
            async with context.writing():
                try:
                    result: object = await csv_import(**options)(context, upload)
                except Killed:
                    continue
                except JobFailure as failure:
                    result = failure
        if isinstance(result, JobFailure):
            return {"failed": result.code}, []
        assert isinstance(result, Path)
        return msgspec.json.decode(result.read_bytes()), list(await log.read("j", 0, 10_000))


async def test_the_example(tmp_path: Path) -> None:
    result, events = await run_import(tmp_path, EXAMPLE.read_bytes())
    assert result["successRate"] == "306/318"
    assert len(result["books"]) == 306
    problems = " ".join(entry["error"] for entry in result["errors"])
    for words in ("check digit", "title is missing", "author is missing", "8 columns", "4 columns", "neither 10 nor"):
        assert words in problems
    titles = {book["title"] for book in result["books"]}
    assert {"Les Misérables", "Война и мир", "吾輩は猫である", "Moby-Dick; or, The Whale"} <= titles
    assert [event.seq for event in events] == list(range(1, 320))


@pytest.mark.parametrize("kill_after", [(1,), (2, 3), (7, 1, 1, 1), (10,)])
async def test_a_restart_loses_and_repeats_nothing(tmp_path: Path, kill_after: tuple[int, ...]) -> None:
    data = b"title,author,isbn\n" + b"".join(
        b'"Book\n%d",A,%s\n' % (n, b"bad" if n % 3 == 0 else GOOD.encode()) for n in range(20)
    )
    result, events = await run_import(tmp_path, data, kill_after)
    assert [book["title"] for book in result["books"]] == [f"Book\n{n}" for n in range(20) if n % 3]
    assert [entry["title"] for entry in result["errors"]] == [f"Book\n{n}" for n in range(20) if n % 3 == 0]
    assert result["successRate"] == "13/20"
    counts = [msgspec.json.decode(event.payload).get("processedCount") for event in events]
    assert counts == [None, *range(1, 21)]


async def test_rows_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    """What reached the files but not the log is cut off."""
    folder = tmp_path / "job"
    data = b"title,author\n" + b"".join(b"Book %d,A\n" % n for n in range(5))

    upload = Upload(path=tmp_path / "upload.csv", size=len(data))
    upload.path.write_bytes(data)
    folder.mkdir()
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(Job(id="j", pipeline="csv_import", owner="", epoch="e", created=1), None)
        job = await log.job("j")
        assert isinstance(job, Job)
        first = CountedContext(log, job, folder, 1, Counters(), lambda: 2)
        first.left = 2
        async with first.writing():
            with pytest.raises(Killed):
                await csv_import()(first, upload)
        with (folder / "books").open("ab") as file:
            file.write(b',\n{"title":"never told"' * 100)
        job = await log.job("j")
        assert isinstance(job, Job)
        second = JobContext(log, job, folder, 2, Counters(), lambda: 2)
        async with second.writing():
            result = await csv_import()(second, upload)
        assert isinstance(result, Path)
        assert [b["title"] for b in msgspec.json.decode(result.read_bytes())["books"]] == [
            f"Book {n}" for n in range(5)
        ]


async def test_a_run_that_begins_anew_tells_nothing_twice(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(Job(id="j", pipeline="p", owner="", epoch="e", created=1), None)
        for last in (5, 3, 5, 8):
            job = await log.job("j")
            assert isinstance(job, Job)
            context = JobContext(log, job, tmp_path, 1, Counters(), lambda: 2)
            async with context.writing():
                await context.start(8)
                for done in range(1, last + 1):
                    await context.progress(done)
                if last == 8:
                    await context.progress(8, status="other words for the same count")
        counts = [msgspec.json.decode(event.payload).get("processedCount") for event in await log.read("j", 0, 100)]
        assert counts == [None, *range(1, 9), 8]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "CSV_EMPTY"),
        (b"\xef\xbb\xbf", "CSV_EMPTY"),
        (b"\n \r\n\n", "CSV_EMPTY"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "CSV_BINARY"),
        (b"title,author\n" + b"a,b\n" * 50_000 + b"a\0,b\n", "CSV_BINARY"),
        ("title,author\nzoé,é\n".encode("latin-1"), "CSV_ENCODING"),
        (b"title,author\n" + b"a,b\n" * 50_000 + b"\xff,b\n", "CSV_ENCODING"),
        ("title,author\na,b\n".encode("utf-16"), "CSV_ENCODING"),
        (b"one,two\n1,2\n", "CSV_HEADER"),
        (b"title\na\n", "CSV_HEADER"),
        (b"<!doctype html><html><body>Login</body></html>", "CSV_HEADER"),
    ],
)
async def test_a_file_that_is_no_list_of_books(tmp_path: Path, data: bytes, code: str) -> None:
    result, _ = await run_import(tmp_path, data)
    assert result == {"failed": code}


async def test_a_header_alone_is_an_empty_list(tmp_path: Path) -> None:
    result, _ = await run_import(tmp_path, b"title,author\n")
    assert result == {"pipeline": "csv_import", "books": [], "errors": [], "successRate": "0/0"}


@pytest.mark.parametrize(
    "header", ["Book Title,Author(s),ISBN/UID", "TITLE;AUTHOR;ISBN", "name\tauthors\tISBN-13", "title|writer|ean"]
)
async def test_headers_of_other_programs(tmp_path: Path, header: str) -> None:
    delimiter = next(mark for mark in ",;\t|" if mark in header)
    row = delimiter.join(['"T"', "A", f'"=""{GOOD}"""'])
    result, _ = await run_import(tmp_path, f"{header}\n{row}\n".encode())
    assert result["books"] == [{"title": "T", "author": "A", "isbn": GOOD}]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("0-306-40615-2", GOOD),
        ("080442957X", "9780804429573"),
        ("978 0 306 40615 7", GOOD),
        ("", None),
        ("9780306406158", "check digit"),
        ("0306406153", "check digit"),
        ("12345", "neither 10 nor 13"),
        ("9770306406157", "ISBN"),
        ("n/a", "ISBN"),
    ],
)
async def test_isbns(tmp_path: Path, written: str, kept: str | None) -> None:
    result, _ = await run_import(tmp_path, f"title,author,isbn\nT,A,{written}\n".encode())
    if result["books"]:
        assert result["books"][0].get("isbn") == kept
    else:
        assert kept is not None
        assert kept in result["errors"][0]["error"]
        assert "line 2" in result["errors"][0]["error"]


async def test_all_columns(tmp_path: Path) -> None:
    header = "title,author,isbn10,isbn13,publisher,year,cover url,other"
    rows = f"T,A,,{GOOD},P,1999,http://x/y.png,o,,\nU,B,,,,c. 1900,,\n"
    result, _ = await run_import(tmp_path, f"{header}\n{rows}".encode())
    assert result["books"] == [
        {
            "title": "T",
            "author": "A",
            "isbn": GOOD,
            "publisher": "P",
            "publicationYear": 1999,
            "coverUrl": "http://x/y.png",
        },
        {"title": "U", "author": "B", "publicationYear": "c. 1900"},
    ]


async def test_a_large_file_tells_its_progress_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towline.server.pipelines._csv_import._MOST_EVENTS", 50)
    data = b"title,author\n" + b"a,b\n" * 12_345
    result, events = await run_import(tmp_path, data)
    assert result["successRate"] == "12345/12345"
    assert 50 <= len(events) <= 60
    assert msgspec.json.decode(events[-1].payload)["processedCount"] == 12_345
