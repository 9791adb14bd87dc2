"""What a connection follows: a protocol, a URL, or a job on record. The part alone, on a store in memory."""

from __future__ import annotations

from typing import Any

import pytest

from towline import AmbiguousJob, InvalidArgument, MemoryTokenStore, Progress, RecordMismatch, Secret, TokenRefused
from towline._target import Target
from towline.protocols import Bookstrack, Messages, Polling, Towline
from towline.protocols._shared.kept import kept_of
from towline.storage import Record, RecordKey
from towline.transport import parse_url

pytestmark = pytest.mark.anyio
URL = "wss://api.example/ws/progress"


def each(message: Any) -> Progress:
    return Progress(fraction=message)


def target(given: Any, job: str | None = None) -> Target:
    return Target(given, job, allow_insecure=False)


def record_of(protocol: Any) -> Record:
    """The record of a job that this protocol followed."""
    key = RecordKey(protocol.name, parse_url(protocol.url, schemes=("wss", "https")).address, protocol.job)
    kept = kept_of(protocol)
    return Record(key=key, token=Secret("t1"), saved=0, parameters=kept.parameters, secrets=kept.secrets)


async def stored(*protocols: Any) -> MemoryTokenStore:
    store = MemoryTokenStore()
    for protocol in protocols:
        record = record_of(protocol)
        await store.save(record.key, record.token, parameters=record.parameters, secrets=record.secrets)
    return store


def test_a_url_is_of_towline_s_own_protocol() -> None:
    found = target(URL, "j1")
    assert found.has_token_of_job
    assert found.protocol(None) == Towline(URL, "j1")


def test_a_protocol_is_taken_as_it_is() -> None:
    for protocol, has_token in ((Bookstrack(URL, "j1"), True), (Messages(URL, each), False)):
        found = target(protocol)
        assert found.protocol(record_of(Towline(URL, "j1"))) is protocol
        assert (found.job, found.has_token_of_job) == (protocol.job, has_token)


@pytest.mark.parametrize(
    ("given", "job", "words"),
    [
        (None, None, "job: is missing"),
        (URL, None, "job: is missing"),
        ("https://api.example/", "j1", "url"),
        (Bookstrack("ws://api.example/", "j1"), None, "url"),
        (Bookstrack(URL, "j1"), "j2", "names another job"),
    ],
)
def test_what_cannot_be_followed(given: Any, job: str | None, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        target(given, job)


@pytest.mark.parametrize("protocol", [Bookstrack(URL, "j1", token_in="header"), Polling("https://h/7", job="j1")])
async def test_the_id_alone_leads_to_the_protocol_on_record(protocol: Any) -> None:
    store = await stored(protocol, Towline(URL, "other"))
    found = target(None, "j1")
    assert found.protocol(await found.find(store, needed=True)) == protocol


async def test_the_record_completes_a_url() -> None:
    store = await stored(Towline(f"{URL}?a=1", "j1", token_in="query", prefix="/jobs"))
    found = target(f"{URL}?a=2", "j1")
    expected = Towline(f"{URL}?a=2", "j1", token_in="query", prefix="/jobs")
    assert found.protocol(await found.find(store, needed=False)) == expected


async def test_a_job_on_two_servers() -> None:
    store = await stored(Towline(URL, "j1"), Bookstrack(URL, "j1"))
    with pytest.raises(AmbiguousJob, match="bookstrack at https"):
        await target(None, "j1").find(store, needed=True)
    record = await target(Bookstrack(URL, "j1")).find(store, needed=True)
    assert record is not None
    assert record.key.protocol == "bookstrack"


async def test_a_record_of_another_server_is_none_of_this_one() -> None:
    store = await stored(Bookstrack(URL, "j1"))
    assert await target(URL, "j1").find(store, needed=False) is None
    with pytest.raises(RecordMismatch, match="on record for bookstrack"):
        await target(URL, "j1").find(store, needed=True)


def test_without_a_record_there_is_nothing_to_follow() -> None:
    with pytest.raises(TokenRefused, match="no record of job 'j1'"):
        target(None, "j1").protocol(None)


def test_a_function_must_be_passed_again() -> None:
    with pytest.raises(InvalidArgument, match=r"followed with code of yours, .*:each .*--protocol module:object"):
        target(None, "j1").protocol(record_of(Messages(URL, each, job="j1")))
