"""How a worker elsewhere tells of a job, over a real Redis."""

import contextlib
import uuid
from collections.abc import Iterator

import pytest

from towline import JobEnded
from towline.server import HubStorageError
from towline.server.log._base import Change, Event, Job
from towline.server.log._redis_store import RedisStore
from towline.server.reporter import Reporter


class LossyStore(RedisStore):
    """A store whose next answer may be lost on the way, when Redis has done what was asked."""

    loses = False

    def append(self, job_id: str, event_type: str, payload: bytes, at: int, change: Change | None) -> Event | None:
        event = super().append(job_id, event_type, payload, at, change)
        if self.loses:
            self.loses = False
            raise HubStorageError("redis: TimeoutError")
        return event


@pytest.fixture
def store(redis_url: str) -> Iterator[LossyStore]:
    with contextlib.closing(LossyStore(redis_url, uuid.uuid4().hex)) as store:
        store.create(Job(id="j", pipeline="p", owner="o", epoch="e", created=5), None)
        yield store


def test_an_end_whose_answer_was_lost_is_told_again(store: LossyStore) -> None:
    reporter = Reporter(store, "j")
    reporter.progress(1, 1)
    store.loses = True
    with pytest.raises(HubStorageError):
        reporter.complete({"books": 1})
    reporter.complete({"books": 1})
    assert [event.type for event in store.read("j", 0, 10)] == ["job_started", "job_progress", "job_complete"]
    for other_end in (lambda: reporter.complete({"books": 2}), lambda: reporter.fail("NO", "no")):
        with pytest.raises(JobEnded):
            other_end()


def test_a_count_is_whole(store: LossyStore) -> None:
    """Another would be kept, and then be a state that no hub can read again."""
    reporter = Reporter(store, "j")
    with pytest.raises(TypeError):
        reporter.start(3.7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        reporter.progress(0.5)  # type: ignore[arg-type]
    assert isinstance(store.job("j"), Job)
    assert store.read("j", 0, 10) == []


def test_a_keep_alive_is_a_sign_and_no_event(store: LossyStore) -> None:
    reporter = Reporter(store, "j")
    reporter.keep_alive()
    job = store.job("j")
    assert isinstance(job, Job)
    assert (job.seq, job.updated is not None) == (0, True)
    store.append("j", "job_canceled", b"{}", 9, None)
    with pytest.raises(JobEnded):
        reporter.keep_alive()
