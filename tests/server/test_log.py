"""The contract of an event log, kept by every engine."""

import uuid
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from towline import InvalidArgument
from towline.server.log._base import (
    Change,
    Entry,
    Event,
    EventLog,
    Job,
    Missing,
    Place,
    Request,
    RequestMismatch,
    Token,
)
from towline.server.log._clients import Arrival
from towline.server.log._sqlite import SqliteLog

pytestmark = pytest.mark.anyio

OpenLog = Callable[[], EventLog]


@pytest.fixture(params=["sqlite", "redis"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> OpenLog:
    """Opens the same log each time."""
    if request.param == "redis":
        from towline.server.log._redis import RedisLog

        url, prefix = request.getfixturevalue("redis_url"), uuid.uuid4().hex
        return lambda: RedisLog(url, prefix=prefix)
    return lambda: SqliteLog(tmp_path / "hub.db")


def job(job_id: str = "j", **fields: object) -> Job:
    return Job(**({"id": job_id, "pipeline": "p", "owner": "o", "epoch": "e", "created": 5} | fields))  # type: ignore[arg-type]


async def test_events_are_numbered_by_job(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job("a"), None)
        await log.create(job("b"), None)
        for job_id in ("a", "b", "a", "a"):
            await log.append(job_id, "job_progress", b"{}", 7)
        assert [event.seq for event in await log.read("a", 0, 100)] == [1, 2, 3]
        assert [event.seq for event in await log.read("b", 0, 100)] == [1]
        assert (await log.read("a", 0, 1))[0] == Event("a", "p", "e", 1, "job_progress", 7, b"{}")


async def test_an_entry_with_a_number_is_written_as_that_event_only(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        for number, written in ((2, 0), (1, 1), (1, 0), (2, 1), (None, 1), (3, 0), (4, 1)):
            assert await log.append_all("j", [Entry("job_progress", b"{}", 7, None, number)]) == written
        assert [event.seq for event in await log.read("j", 0, 9)] == [1, 2, 3, 4]


async def test_a_sign_of_life_is_no_event(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        await log.touch("j", 9)
        await log.touch("nope", 9)
        assert await log.job("j") == job(updated=9)
        assert await log.job("nope") is Missing.UNKNOWN
        await log.append("j", "error", b"{}", 10)
        await log.touch("j", 11)
        ended = await log.job("j")
        assert isinstance(ended, Job)
        assert ended.updated == 10


async def test_reading_goes_on_after_a_place(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        for number in range(300):
            await log.append("j", "job_progress", b"%d" % number, 7)
        for after, limit in ((0, 10), (5, 64), (171, 64), (172, 64), (290, 64), (300, 64), (999, 64)):
            expected = list(range(after + 1, min(300, after + limit) + 1))
            assert [event.seq for event in await log.read("j", after, limit)] == expected
    async with open_log() as log:
        assert [event.payload for event in await log.read("j", 250, 2)] == [b"250", b"251"]


async def test_state_and_events_change_together(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        await log.append("j", "job_started", b"{}", 6, Change(total=3, processed=0))
        await log.append("j", "job_progress", b"{}", 7, Change(processed=1, current_item="x", checkpoint=b"[1]"))
        kept = await log.job("j")
        assert kept == job(seq=2, total=3, processed=1, current_item="x", checkpoint=b"[1]", updated=7)
        await log.append("j", "job_progress", b"{}", 8, Change(processed=2))
        kept = await log.job("j")
        assert isinstance(kept, Job)
        assert (kept.seq, kept.processed, kept.current_item, kept.checkpoint) == (3, 2, "x", b"[1]")


@pytest.mark.parametrize(
    ("event_type", "status"), [("job_complete", "complete"), ("error", "failed"), ("job_canceled", "canceled")]
)
async def test_an_end_is_the_end(open_log: OpenLog, event_type: str, status: str) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        event = await log.append("j", event_type, b"{}", 9, Change(outcome=b"{}"))
        assert event is not None
        assert event.terminal
        for later in ("job_progress", "job_complete", "error", "job_canceled"):
            assert await log.append("j", later, b"{}", 10, Change(processed=5, outcome=b"other")) is None
        kept = await log.job("j")
        assert isinstance(kept, Job)
        assert (kept.status, kept.seq, kept.ended, kept.outcome, kept.processed) == (status, 1, 9, b"{}", None)
        assert len(await log.read("j", 0, 100)) == 1


async def test_of_many_ends_one_wins(open_log: OpenLog) -> None:
    async with open_log() as log:
        for number in range(10):
            job_id = f"j{number}"
            await log.create(job(job_id), None)
            won: list[Event] = []

            async def end(job_id: str, event_type: str, won: list[Event]) -> None:
                if (event := await log.append(job_id, event_type, b"{}", 9)) is not None:
                    won.append(event)

            async with anyio.create_task_group() as tasks:
                for event_type in ("job_complete", "error", "job_canceled") * 5:
                    tasks.start_soon(end, job_id, event_type, won)
            assert len(won) == 1
            kept = await log.read(job_id, 0, 100)
            assert [event.type for event in kept] == [won[0].type]


async def test_many_writers_leave_no_hole(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        seen: list[int] = []

        async def write() -> None:
            for _ in range(20):
                event = await log.append("j", "job_progress", b"{}", 7)
                assert event is not None
                seen.append(event.seq)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(write)
        assert sorted(seen) == list(range(1, 401))
        assert [event.seq for event in await log.read("j", 0, 1000)] == list(range(1, 401))


async def test_the_state_is_of_its_seq(open_log: OpenLog) -> None:
    """Whenever it is read, the state holds the events up to its seq and no other."""
    async with open_log() as log:
        await log.create(job(), None)

        async def write() -> None:
            for number in range(1, 101):
                await log.append("j", "job_progress", b"{}", 7, Change(processed=number))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while True:
                kept = await log.job("j")
                assert isinstance(kept, Job)
                assert (kept.processed or 0) == kept.seq
                if kept.seq == 100:
                    break


async def test_a_reader_between_replay_and_live_misses_nothing(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)

        async def follow(seen: list[int]) -> None:
            with log.subscribe("j") as bell:
                while not seen or seen[-1] < 200:
                    events = await log.read("j", seen[-1] if seen else 0, 7)
                    seen += [event.seq for event in events]
                    if not events:
                        await bell.wait_ring()

        readers: list[list[int]] = [[] for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for number, seen in enumerate(readers):
                tasks.start_soon(follow, seen)
                for _ in range(40):
                    await log.append("j", "job_progress", b"{}", number)
        assert readers == [list(range(1, 201))] * 5


async def test_everything_outlives_a_restart(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job("a"), None)
        await log.create(job("b", created=6), None)
        await log.append("a", "job_progress", b"1", 7, Change(processed=1))
        await log.append("b", "error", b"2", 8)
        await log.add_token(Token(digest=b"d", job_id="a", expires=100))
    async with open_log() as log:
        assert [kept.id for kept in await log.unfinished()] == ["a"]
        event = await log.append("a", "job_progress", b"3", 9)
        assert event is not None
        assert (event.seq, event.epoch) == (2, "e")
        assert [event.payload for event in await log.read("a", 0, 10)] == [b"1", b"3"]
        assert await log.token(b"d") == Token(digest=b"d", job_id="a", expires=100)


async def test_the_same_request_is_the_same_job(open_log: OpenLog) -> None:
    request = Request(key=b"k", digest=b"d")
    async with open_log() as log:
        first = job("a")
        assert not await log.requested("o", b"k")
        assert await log.create(first, request) is first
        assert await log.requested("o", b"k")
        assert not await log.requested("another", b"k")
        assert (await log.create(job("b"), request)).id == "a"
        assert await log.job("b") is Missing.UNKNOWN
        with pytest.raises(RequestMismatch):
            await log.create(job("c"), Request(key=b"k", digest=b"other"))
        assert (await log.create(job("d", owner="another"), request)).id == "d"
        assert (await log.create(job("e"), None)).id == "e"


async def test_the_same_request_at_the_same_time(open_log: OpenLog) -> None:
    async with open_log() as log:
        made: list[str] = []

        async def create(number: int) -> None:
            made.append((await log.create(job(f"j{number}"), Request(key=b"k", digest=b"d"))).id)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(create, number)
        assert len(set(made)) == 1


async def test_a_count_never_goes_back(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        for processed in (3, 2, 3, 10, 9):
            await log.append("j", "job_progress", b"%d" % processed, 7, Change(processed=processed))
        await log.append("j", "job_progress", b"words", 7, Change(current_item="x"))
        assert [event.payload for event in await log.read("j", 0, 10)] == [b"3", b"3", b"10", b"words"]


async def test_a_job_begins_once(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        started = Entry("job_started", b"{}", 6, Change(total=3, processed=0))
        assert await log.append_all("j", [started, started]) == 1
        await log.append("j", "job_progress", b"{}", 7, Change(processed=0))
        assert await log.append("j", started.type, started.payload, 8, started.change) is None
        assert [(event.seq, event.type) for event in await log.read("j", 0, 9)] == [
            (1, "job_started"),
            (2, "job_progress"),
        ]


async def test_what_is_none_is_forgotten(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        await log.append("j", "job_progress", b"{}", 7, Change(total=5, current_item="x", checkpoint=b"1"))
        await log.append("j", "job_progress", b"{}", 8, Change(total=None, current_item=None))
        kept = await log.job("j")
        assert isinstance(kept, Job)
        assert (kept.total, kept.current_item, kept.checkpoint) == (None, None, b"1")


async def test_a_job_is_run_by_one_hub(open_log: OpenLog) -> None:
    async with open_log() as log:
        if not log.shared:
            assert await log.claim("j", 1)
            return
        async with open_log() as other:
            assert await log.claim("j", 60)
            assert await log.claim("j", 60)
            assert not await other.claim("j", 60)
            assert not await other.claim("j", 0)
            assert await log.claim("j", 0)
            assert await other.claim("j", 0.02)
            await anyio.sleep(0.05)
            assert await log.claim("j", 60)


async def test_events_of_another_hub_are_heard(open_log: OpenLog) -> None:
    async with open_log() as log:
        if not log.shared:
            pytest.skip("one hub owns this log")
        async with open_log() as other:
            await log.create(job(), None)
            with other.subscribe("j") as bell:
                seen: list[int] = []
                for number in range(1, 6):
                    await log.append("j", "job_progress", b"{}", 7)
                    while len(seen) < number:
                        events = await other.read("j", number - 1, 10)
                        seen += [event.seq for event in events]
                        if not events:
                            await bell.wait_ring()
                assert seen == [1, 2, 3, 4, 5]


async def test_an_owners_newest_jobs(open_log: OpenLog) -> None:
    async with open_log() as log:
        for number in range(5):
            await log.create(job(f"j{number}", created=number), None)
        await log.create(job("other", owner="another", created=9), None)
        await log.append("j3", "job_complete", b"{}", 7)
        assert [kept.id for kept in await log.newest("o", 3)] == ["j4", "j3", "j2"]
        assert [kept.status for kept in await log.newest("o", 3)] == ["running", "complete", "running"]
        await log.remove_ended(100)
        assert [kept.id for kept in await log.newest("o", 10)] == ["j4", "j2", "j1", "j0"]
        assert list(await log.newest("nobody", 10)) == []


async def test_a_list_of_jobs_goes_on_where_it_stopped(open_log: OpenLog) -> None:
    async with open_log() as log:
        for number in range(7):
            await log.create(job(f"j{number}", created=number // 3), None)  # three in the same millisecond
        listed: list[str] = []
        place = None
        while jobs := await log.newest("o", 2, place):
            listed += [kept.id for kept in jobs]
            place = Place(jobs[-1].created, jobs[-1].id)
        assert listed == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]
        # The place of a job that is no longer there is still a place; nothing behind it is lost.
        await log.append("j3", "job_complete", b"{}", 7)
        await log.remove_ended(100)
        rest = {kept.id for kept in await log.newest("o", 10, Place(1, "j3"))}
        assert {"j2", "j1", "j0"} <= rest <= {"j5", "j4", "j2", "j1", "j0"}
        assert [kept.id for kept in await log.newest("o", 10, Place(0, "j1"))] == ["j0"]


async def test_a_list_of_jobs_leaves_out_what_may_be_large(open_log: OpenLog) -> None:
    async with open_log() as log:
        for number, end in enumerate(("job_complete", "error", "job_canceled")):
            await log.create(job(f"j{number}", created=number), None)
            await log.append(f"j{number}", "job_progress", b"{}", 7, Change(processed=1, checkpoint=b"[1]"))
            await log.append(f"j{number}", end, b"{}", 7, Change(outcome=b'{"x":1}'))
        assert [kept.outcome for kept in await log.newest("o", 3)] == [b'{"x":1}', b'{"x":1}', None]
        assert {(kept.checkpoint, kept.processed, kept.seq) for kept in await log.newest("o", 3)} == {(None, 1, 2)}


async def test_attempts_count_while_the_log_stands_still(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        assert [await log.count_attempt("j") for _ in range(3)] == [1, 2, 3]
        await log.append("j", "job_progress", b"{}", 7)
        assert await log.count_attempt("j") == 1


async def test_tokens(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        await log.add_token(Token(digest=b"a", job_id="j", expires=100))
        await log.add_token(Token(digest=b"b", job_id="j", expires=200, replaces=b"a"))
        await log.limit_token(b"a", 50)
        await log.limit_token(b"b", 500)
        assert await log.token(b"a") == Token(digest=b"a", job_id="j", expires=50)
        assert await log.token(b"b") == Token(digest=b"b", job_id="j", expires=200, replaces=b"a")
        assert await log.token(b"c") is None
        for number in range(40):
            await log.add_token(Token(digest=b"n%d" % number, job_id="j", expires=1000 + number))
        assert await log.token(b"b") is None
        assert await log.token(b"n0") is None
        assert await log.token(b"n39") is not None


async def test_what_has_outlived_its_time_is_removed(open_log: OpenLog) -> None:
    async with open_log() as log:
        for job_id, ended in (("old", 10), ("new", 20), ("running", None)):
            await log.create(job(job_id), Request(key=job_id.encode(), digest=b"d"))
            await log.add_token(Token(digest=job_id.encode(), job_id=job_id, expires=10**6))
            await log.append(job_id, "job_progress", b"{}", 5)
            if ended is not None:
                await log.append(job_id, "job_complete", b"{}", ended)
        assert list(await log.remove_ended(15)) == ["old"]
        assert list(await log.remove_ended(15)) == []
        assert await log.job("old") is Missing.GONE
        assert list(await log.read("old", 0, 10)) == []
        assert await log.token(b"old") is None
        assert await log.append("old", "job_progress", b"{}", 30) is None
        assert isinstance(await log.job("new"), Job)
        assert isinstance(await log.job("running"), Job)
        assert len(await log.read("new", 0, 10)) == 2
        # The key is free again: its job is no more.
        assert (await log.create(job("again"), Request(key=b"old", digest=b"other"))).id == "again"
        await log.remove_traces(15)
        assert await log.job("old") is Missing.GONE
        await log.remove_traces(16)
        assert await log.job("old") is Missing.UNKNOWN


async def test_a_later_socket_lets_the_earlier_ones_of_its_client_go(open_log: OpenLog) -> None:
    async with open_log() as log:
        gone: list[int] = []
        for number in (1, 2):
            log.clients.add(Arrival(job_id="j", client="c", socket=number), lambda number=number: gone.append(number))
        log.clients.add(Arrival(job_id="other", client="c", socket=1), lambda: gone.append(-1))
        log.clients.add(Arrival(job_id="j", client="other", socket=1), lambda: gone.append(-2))
        assert await log.arrive(Arrival(job_id="j", client="c", socket=2)) == 2
        assert set(gone) == {1}
        # What the earlier one said was stuck on the way: it takes no place, and hears that there is a later one.
        assert await log.arrive(Arrival(job_id="j", client="c", socket=1)) == 2
        assert set(gone) == {1}


async def test_hubs_that_share_a_log_hear_of_each_others_clients(open_log: OpenLog) -> None:
    async with open_log() as one:
        if not one.shared:
            pytest.skip("no other hub works on this log")
        async with open_log() as two:
            let_go = anyio.Event()
            assert await one.arrive(Arrival(job_id="j", client="c", socket=1)) == 1
            one.clients.add(Arrival(job_id="j", client="c", socket=1), let_go.set)
            with anyio.fail_after(10):
                while not let_go.is_set():  # until each listens, what is told is heard by nobody
                    assert await two.arrive(Arrival(job_id="j", client="c", socket=2)) == 2
                    await anyio.sleep(0.01)
            assert await one.arrive(Arrival(job_id="j", client="c", socket=1)) == 2


async def test_several_events_are_written_in_order_and_as_one_alone_would_be(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.create(job(), None)
        counts = (1, 3, 2, 4)
        entries = [Entry("job_progress", b"%d" % count, 7, Change(processed=count)) for count in counts]
        with log.subscribe("j") as bell:
            assert await log.append_all("j", entries) == 3
            with anyio.fail_after(10):
                while len(await log.read("j", 0, 100)) < 3:
                    await bell.wait_ring()
        assert [(event.seq, event.payload) for event in await log.read("j", 0, 100)] == [
            (1, b"1"),
            (2, b"3"),
            (3, b"4"),
        ]
        end = [Entry("job_complete", b"{}", 8), Entry("job_progress", b"5", 8, Change(processed=5))]
        assert await log.append_all("j", end) == 1
        assert await log.append_all("j", entries) == 0
        kept = await log.job("j")
        assert isinstance(kept, Job)
        assert (kept.seq, kept.processed, kept.status) == (4, 4, "complete")


async def test_a_worker_elsewhere_may_not_give_a_result_that_reads_as_a_reference(redis_url: str) -> None:
    from towline.server.log._redis import RedisLog
    from towline.server.reporter import Reporter

    prefix = uuid.uuid4().hex
    async with RedisLog(redis_url, prefix=prefix) as log:
        await log.create(job(), None)
        with Reporter.from_url(redis_url, "j", prefix=prefix) as reporter:
            with pytest.raises(InvalidArgument, match="resultUrl"):
                reporter.complete({"resultUrl": "https://files.example/report.pdf"})
            reporter.complete({"report": "https://files.example/report.pdf"})
        assert [event.type for event in await log.read("j", 0, 10)] == ["job_complete"]
