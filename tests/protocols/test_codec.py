"""Everything that a server says about a job: what fits, what is read all the same, what is reported."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towline._exceptions import MalformedMessage
from towline._updates import dump_outcome
from towline.protocols.towline import outcome_of_frame, outcome_of_state
from towline.protocols.wire.codec import Codec, Result, decode_known
from towline.protocols.wire.lenient import UNFIT
from towline.protocols.wire.messages import (
    CanceledPayload,
    ErrorFrame,
    ErrorPayload,
    Frame,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    PingFrame,
    PongFrame,
    ProgressPayload,
    ReadyAckFrame,
    TokenAnswer,
    UnknownFrame,
)
from towline.server import PIPELINES, AiScanResult, BatchEnrichmentResult, CsvImportResult

CODEC = Codec(PIPELINES)
ENVELOPE = {"jobId": "j", "pipeline": "csv_import", "timestamp": 1.5, "version": "1.0.0", "seq": 7, "epoch": "e"}
PROGRESS = {"progress": 0.5, "status": "working", "processedCount": 3}


def decode(data: str | bytes) -> Frame:
    """Read a frame as the protocol does: quickly, or field by field."""
    try:
        return decode_known(data)
    except UNFIT as error:
        return CODEC.decode_unfit(data, error)


def text(type_: str, payload: Any = None, **fields: Any) -> str:
    body = {"type": type_, **ENVELOPE, **fields}
    if payload is not None:
        body["payload"] = {"type": type_, **payload}
    return json.dumps(body)


@pytest.mark.parametrize(
    ("type_", "payload", "kind"),
    [
        ("job_started", {"totalCount": 5, "estimatedDuration": 2.5}, JobStartedFrame),
        ("job_started", None, JobStartedFrame),
        ("job_progress", {"progress": 0.5, "status": "x", "processedCount": 1}, JobProgressFrame),
        ("job_complete", {"books": []}, JobCompleteFrame),
        ("error", {"code": "E", "message": "m", "details": [1], "retryable": True}, ErrorFrame),
        ("job_canceled", {"processedCount": 3, "reason": "user"}, JobCanceledFrame),
        ("job_canceled", None, JobCanceledFrame),
        ("ready_ack", None, ReadyAckFrame),
        ("ping", {"timestamp": 1}, PingFrame),
        ("pong", {"timestamp": 1, "latency": 2}, PongFrame),
    ],
)
def test_each_type(type_: str, payload: Any, kind: type) -> None:
    for data in (text(type_, payload), text(type_, payload).encode(), text(type_, payload, extra={"a": 1})):
        frame = decode(data)
        assert type(frame) is kind
        assert (frame.job_id, frame.seq, frame.epoch) == ("j", 7, "e")  # type: ignore[union-attr]


def test_the_fields_of_a_progress() -> None:
    payload = {"progress": 1, "status": "é", "processedCount": 0, "currentItem": "b", "keepAlive": True, "more": 1}
    frame = decode(text("job_progress", payload))
    assert isinstance(frame, JobProgressFrame)
    assert frame.payload == ProgressPayload(1.0, "é", 0, "b", True)


def test_a_server_without_a_log() -> None:
    frame = decode('{"type":"job_progress","payload":{"progress":0,"status":""}}')
    assert isinstance(frame, JobProgressFrame)
    assert (frame.seq, frame.epoch, frame.job_id) == (None, None, "")
    bare = decode('{"type":"ready_ack","timestamp":1}')
    assert isinstance(bare, ReadyAckFrame)
    assert (bare.from_, bare.to) == (None, None)
    full = decode('{"type":"ready_ack","timestamp":1,"epoch":"e","from":4,"to":3}')
    assert isinstance(full, ReadyAckFrame)
    assert (full.epoch, full.from_, full.to) == ("e", 4, 3)


@pytest.mark.parametrize(
    ("data", "type_", "path"),
    [
        ("", None, "$"),
        ("nonsense", None, "$"),
        ("[]", None, "$.type"),
        ("null", None, "$.type"),
        ("{}", None, "$.type"),
        ('{"type":7}', None, "$.type"),
        ('{"type":null}', None, "$.type"),
        ('{"type":"job_progress"}', "job_progress", "$.payload"),
        ('{"type":"job_progress","payload":7}', "job_progress", "$.payload"),
        (text("job_progress", {"progress": 2}), "job_progress", "$.payload"),
        (text("job_progress", {"progress": "a third", "processedCount": -1}), "job_progress", "$.payload"),
        ('{"type":"job_progress","seq":7', None, "$"),
        ('{"type":"job_progress"' + "[" * 100_000, None, "$"),
    ],
)
def test_a_frame_that_shows_nothing_is_reported_with_its_path(data: Any, type_: str | None, path: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(data)
    assert (caught.value.type, caught.value.path) == (type_, path)


def test_a_report_keeps_the_place_in_the_log() -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(text("job_progress", {"progress": "a third"}, seq="7", epoch=3))
    assert (caught.value.job_id, caught.value.epoch, caught.value.seq) == ("j", "3", 7)


REPORTED: list[tuple[Callable[[Any], Any], str]] = [
    (decode, '{"type": "job_progress", "payload": {"progress": "hunter2"}}'),
    (decode, '{"type": ["hunter2"]}'),
    (decode, '{"type": "hunter2'),
    (CODEC.decode_state, '{"status": ["hunter2"]}'),
    (CODEC.decode_token, '{"token": {"hunter2": 1}}'),
    (CODEC.decode_token, '{"token": "hunter2", '),
    (CODEC.decode_cancel, "<p>hunter2"),
    (lambda data: CODEC.decode_result("csv_import", data), '{"hunter2": '),
]


@pytest.mark.parametrize(("read", "data"), REPORTED)
def test_no_report_quotes_a_value(read: Callable[[Any], Any], data: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        read(data.encode())
    report = caught.value
    assert "hunter2" not in f"{report} {report!r} {report.__cause__!r} {report.__context__!r}"


def test_an_unknown_type_is_tolerated() -> None:
    frame = decode(text("job_paused", {"a": 1}))
    assert frame == UnknownFrame("job_paused", "j", 7, "e")
    odd = decode('{"type":"new","jobId":5,"seq":-3,"epoch":[]}')
    assert odd == UnknownFrame("new", "5")


# --- messages that do not fit exactly ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        (text("job_progress", PROGRESS, timestamp=None), "timestamp", 0),
        (text("job_progress", PROGRESS, timestamp="1750000000000"), "timestamp", 1750000000000),
        (text("job_progress", PROGRESS, timestamp="2026-01-01T00:00:00Z"), "timestamp", 1767225600000),
        (text("job_progress", PROGRESS, timestamp="now"), "timestamp", 0),
        (text("job_progress", PROGRESS, version=2), "version", "2"),
        (text("job_progress", PROGRESS, version={"major": 1}), "version", ""),
        (text("job_progress", PROGRESS, pipeline=None), "pipeline", ""),
        (text("job_progress", PROGRESS, jobId=None), "job_id", ""),
        (text("job_progress", PROGRESS, jobId=7), "job_id", "7"),
        (text("job_progress", PROGRESS, epoch=5), "epoch", "5"),
        (text("job_progress", PROGRESS, seq=1.0), "seq", 1),
        (text("job_progress", PROGRESS, seq="9007199254740993"), "seq", 9007199254740993),
        (text("job_progress", PROGRESS, seq=0), "seq", None),
        (text("job_progress", PROGRESS, seq=2**70), "seq", None),
        (text("job_progress", {**PROGRESS, "progress": 1.0000002}), "progress", 1.0),
        (text("job_progress", {**PROGRESS, "progress": -1e-9}), "progress", 0.0),
        (text("job_progress", {**PROGRESS, "progress": "0.25"}), "progress", 0.25),
        (text("job_progress", {**PROGRESS, "progress": 50}), "progress", None),
        (text("job_progress", {**PROGRESS, "progress": float("nan")}), "progress", None),
        (text("job_progress", {"processedCount": 3}), "progress", None),
        (text("job_progress", {**PROGRESS, "status": None}), "status", ""),
        (text("job_progress", {**PROGRESS, "processedCount": 3.0}), "processed_count", 3),
        (text("job_progress", {**PROGRESS, "processedCount": "3"}), "processed_count", 3),
        (text("job_progress", {**PROGRESS, "processedCount": 3.5}), "processed_count", None),
        (text("job_progress", {**PROGRESS, "processedCount": True}), "processed_count", None),
        (text("job_progress", {**PROGRESS, "processedCount": 2**70}), "processed_count", None),
        (text("job_progress", {**PROGRESS, "currentItem": 5}), "current_item", "5"),
        (text("job_progress", {**PROGRESS, "currentItem": {"title": "A"}}), "current_item", None),
        (text("job_progress", {**PROGRESS, "currentItem": "\ud800"}), "current_item", "\ufffd"),
        (text("job_progress", {**PROGRESS, "keepAlive": None}), "keep_alive", False),
        (text("job_progress", {**PROGRESS, "keepAlive": 1}), "keep_alive", True),
        (text("job_progress", {**PROGRESS, "keepAlive": "TRUE"}), "keep_alive", True),
        (text("job_progress", {**PROGRESS, "keepAlive": "maybe"}), "keep_alive", False),
        ("\ufeff" + text("job_progress", PROGRESS), "seq", 7),
        ('{"type":"job_progress","progress":0.5,"processedCount":3,"seq":7}', "progress", 0.5),
    ],
)
def test_a_field_that_does_not_fit_costs_only_itself(data: str, field: str, value: Any) -> None:
    for read in (data, data.encode()):
        frame = decode(read)
        assert isinstance(frame, JobProgressFrame)
        everything = {**msgspec.structs.asdict(frame), **msgspec.structs.asdict(frame.payload)}
        assert everything[field] == value
        assert isinstance(everything[field], bool) == isinstance(value, bool)
        if field != "processed_count":
            assert everything["processed_count"] == 3


def test_a_ready_ack_without_a_pipeline() -> None:
    ack = decode('{"type":"ready_ack","pipeline":null,"from":"4","to":3.0,"epoch":9}')
    assert isinstance(ack, ReadyAckFrame)
    assert (ack.from_, ack.to, ack.epoch) == (4, 3, "9")


# --- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind", "status"),
    [
        (
            ("complete", "completed", "COMPLETE", "success", "Succeeded", "job_completed", "jobComplete"),
            JobCompleteFrame,
            "complete",
        ),
        (("failed", "error", "ERROR", "job_failed", "job.error", "Job-Failed"), ErrorFrame, "failed"),
        (("canceled", "cancelled", "CANCELLED", "job_cancelled", "JobCanceled"), JobCanceledFrame, "canceled"),
    ],
)
def test_the_words_for_an_end(words: tuple[str, ...], kind: type, status: str) -> None:
    for word in words:
        assert type(decode(text(word, {"a": 1}))) is kind, word
        assert CODEC.decode_state(json.dumps({"status": word}).encode()).status == status, word


@pytest.mark.parametrize("word", ["completing", "error2", "queued", "", "job", "job_completed_soon"])
def test_other_words_are_no_end(word: str) -> None:
    assert isinstance(decode(text(word)), UnknownFrame)
    assert CODEC.decode_state(json.dumps({"status": word}).encode()).status == "running"


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"code": 500, "message": "boom"}, ErrorPayload("500", "boom")),
        ({"code": "E", "message": None}, ErrorPayload("E", "")),
        ({"code": "E", "message": {"en": "boom"}}, ErrorPayload("E", '{"en":"boom"}')),
        ({"code": "E", "message": ["a", "b"]}, ErrorPayload("E", '["a","b"]')),
        ({"code": {"a": 1}, "message": 0}, ErrorPayload("", "0")),
        ({"message": "boom", "retryable": "yes"}, ErrorPayload("", "boom")),
        ({"message": "boom", "retryable": "true"}, ErrorPayload("", "boom", retryable=True)),
        ({"error": "boom"}, ErrorPayload("", "boom")),
        ({"error": "Not Found", "message": "boom"}, ErrorPayload("Not Found", "boom")),
        ({"error": {"code": 7, "message": "boom"}, "success": False}, ErrorPayload("7", "boom")),
        ({"error": ["boom"]}, ErrorPayload("", '["boom"]')),
        ({"error": "boom", "message": None, "code": None}, ErrorPayload("", "boom")),
        ({"error": {"message": None, "code": 7}, "message": "boom"}, ErrorPayload("7", "boom")),
        ({"reason": "boom"}, ErrorPayload("", '{"reason":"boom"}')),
        ({"details": {"a": 1}}, ErrorPayload("", "", {"a": 1})),
        ("boom", ErrorPayload("", "boom")),
        (7, ErrorPayload("", "7")),
        (["boom"], ErrorPayload("", '["boom"]')),
        (None, ErrorPayload("", "")),
        ({}, ErrorPayload("", "")),
    ],
)
def test_how_a_job_failed(payload: Any, error: ErrorPayload) -> None:
    frame = decode(json.dumps({"type": "error", "jobId": "j", "payload": payload}))
    assert isinstance(frame, ErrorFrame)
    assert frame.payload == error
    assert CODEC.decode_error(json.dumps(payload).encode()) == error


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        ('{"type":"error","jobId":"j","message":"boom"}', ErrorPayload("", "boom")),
        ('{"type":"error","jobId":"j","payload":null,"error":"boom"}', ErrorPayload("", "boom")),
        ('{"type":"error"}', ErrorPayload("", "")),
        ('{"type":"job_canceled","reason":"user"}', CanceledPayload(None, "user")),
        ('{"type":"job_canceled","payload":["user"]}', CanceledPayload(None, '["user"]')),
        ('{"type":"job_canceled"}', CanceledPayload()),
        ('{"type":"job_complete"}', msgspec.UNSET),
    ],
)
def test_an_end_without_a_payload(data: str, payload: Any) -> None:
    assert decode(data).payload == payload  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "result"),
    [
        ('{"type":"job_complete","payload":null}', None),
        ('{"type":"job_complete","a":1}', {"a": 1}),
        ('{"type":"job_complete","payload":{"a":NaN,"b":1},"version":null}', {"a": None, "b": 1}),
        ('{"type":"completed","payload":{"type":"completed","b":1}}', {"b": 1}),
    ],
)
def test_a_result_in_an_end_that_does_not_fit_exactly(data: str, result: Any) -> None:
    frame = decode(data)
    assert isinstance(frame, JobCompleteFrame)
    assert isinstance(frame.payload, msgspec.Raw)
    assert CODEC.decode_result("", frame.payload) == Result(result)


# --- results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "payload", "kind"),
    [
        (
            "batch_enrichment",
            {
                "totalProcessed": 1,
                "successCount": 1,
                "failureCount": 0,
                "duration": 5,
                "enrichedBooks": [{"title": "t", "success": True}],
            },
            BatchEnrichmentResult,
        ),
        (
            "csv_import",
            {"books": [{"title": "t", "author": "a"}], "errors": [{"title": "x", "error": "y"}], "successRate": "1/2"},
            CsvImportResult,
        ),
        (
            "ai_scan",
            {
                "totalDetected": 1,
                "approved": 1,
                "needsReview": 0,
                "books": [{"boundingBox": {"x1": 0, "y1": 0, "x2": 1, "y2": 1}}],
            },
            AiScanResult,
        ),
    ],
)
def test_the_pipeline_chooses_the_shape(pipeline: str, payload: Any, kind: type) -> None:
    frame = decode(text("job_complete", payload, pipeline=pipeline))
    assert isinstance(frame, JobCompleteFrame)
    assert isinstance(frame.payload, msgspec.Raw)
    assert type(CODEC.decode_result(frame.pipeline, frame.payload).value) is kind
    assert CODEC.decode_result("another", frame.payload) == Result(payload)


def test_a_result_that_does_not_fit_is_plain() -> None:
    for data in (b'{"books":7}', b'{"type":"job_complete","books":7}', b'{"data":{"books":7},"metadata":{}}'):
        result = CODEC.decode_whole_result("csv_import", data)
        assert result.value == {"books": 7}
        assert result.problem is not None
        assert result.problem.startswith("the result does not fit its pipeline's type at $")
    with pytest.raises(MalformedMessage):
        CODEC.decode_whole_result("csv_import", b"<html>")


def test_a_large_result_is_a_reference() -> None:
    for pipeline in ("csv_import", "another"):
        assert CODEC.decode_result(pipeline, b'{"resultUrl":"/r","pipeline":"x"}') == Result(url="/r")
        beside = b'{"type":"job_complete","approved":5,"resultUrl":null,"resultsUrl":"/r"}'
        assert CODEC.decode_result(pipeline, beside) == Result({"approved": 5}, url="/r")
    assert CODEC.decode_result("another", b'{"resultUrl":7}').value == {"resultUrl": 7}
    assert CODEC.decode_result("another", b"[1]").value == [1]
    assert CODEC.decode_result("another", b"7").value == 7
    # Fetched by itself it is no reference, whatever its fields are called.
    assert CODEC.decode_whole_result("another", b'{"resultUrl":"/r"}').value == {"resultUrl": "/r"}


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (b'{"data":{"a":1},"metadata":{"cached":true}}', {"a": 1}),
        (b'{"success":true,"data":[1],"meta":{}}', [1]),
        (b'\xef\xbb\xbf{"data":null,"metadata":{}}', None),
        (b'{"data":{"a":1}}', {"data": {"a": 1}}),
        (b'{"data":{"a":1},"metadata":{},"pipeline":"x"}', {"data": {"a": 1}, "metadata": {}, "pipeline": "x"}),
        (b'{"metadata":{}}', {"metadata": {}}),
        (b"null", None),
    ],
)
def test_a_fetched_result_is_taken_out_of_its_envelope(data: bytes, result: Any) -> None:
    assert CODEC.decode_whole_result("another", data) == Result(result)
    # A result in a message has no envelope.
    assert CODEC.decode_result("another", data).value == json.loads(data.decode("utf-8-sig"))


def test_a_type_of_the_results_own_is_kept() -> None:
    assert CODEC.decode_result("another", b'{"type":"invoice"}').value == {"type": "invoice"}


def test_a_pipeline_of_the_applications_own() -> None:
    class Mine(msgspec.Struct):
        size: int

    codec = Codec({"mine": Mine, "csv_import": Mine, "plain": dict, "numbers": dict[str, int]})
    assert codec.decode_result("mine", b'{"size":3}').value == Mine(3)
    assert codec.decode_result("csv_import", b'{"size":3}').value == Mine(3)
    unfit = codec.decode_result("mine", b'{"size":"x"}')
    assert unfit.value == {"size": "x"}
    assert unfit.problem is not None
    assert "$.size" in unfit.problem
    for pipeline in ("plain", "numbers"):  # a dict has no field for the payload's type
        assert codec.decode_result(pipeline, b'{"type":"job_complete","size":3}') == Result({"size": 3})


# --- the state ---------------------------------------------------------------------------------------------------


def test_the_state() -> None:
    state = CODEC.decode_state(
        b'{"status":"complete","pipeline":"csv_import","totalCount":2,"processedCount":2,"startTime":1,"version":"1.0.0",'
        b'"seq":0,"epoch":"e","results":{"books":[],"errors":[],"successRate":"0/0"},"unknown":1}'
    )
    assert (state.ended, state.seq, state.epoch) == (True, 0, "e")
    assert isinstance(state.results, msgspec.Raw)
    assert isinstance(CODEC.decode_result(state.pipeline, state.results).value, CsvImportResult)
    assert state.error is msgspec.UNSET
    assert not CODEC.decode_state(b'{"status":"running"}').ended


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"status":7}', b'{"status":null}', b'{"data":{}}', b"\xff", b"<html>it works</html>"]
)
def test_a_state_without_a_status(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        CODEC.decode_state(data)


ODD = {"version": 6, "processedCount": 3.0, "startTime": "2026-01-01T00:00:00Z", "currentItem": {"title": "A"}}


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"status": "RUNNING", "pipeline": None, "epoch": 7, "seq": "4", **ODD}),
        json.dumps({"data": {"status": "running", "epoch": 7, "seq": 4, **ODD}, "metadata": {}, "status": "success"}),
        "\ufeff" + json.dumps({"status": "queued", "epoch": 7, "seq": 4.0, **ODD}),
    ],
)
def test_a_state_that_does_not_fit_exactly(data: str) -> None:
    codec = Codec()
    assert codec.decode_state(data.encode()) == JobState(
        status="running", version="6", processed_count=3, start_time=1767225600000, seq=4, epoch="7"
    )


@pytest.mark.parametrize(
    ("state", "results", "error"),
    [
        ({"status": "complete", "results": {"a": 1}, "version": 6}, b'{"a":1}', None),
        ({"status": "complete", "results": None}, b"null", None),
        ({"status": "complete"}, None, None),
        ({"status": "complete", "results": None, "resultsUrl": "/r"}, b'{"resultUrl":"/r"}', None),
        ({"status": "complete", "resultUrl": "/r"}, b'{"resultUrl":"/r"}', None),
        ({"status": "failed", "error": "boom"}, None, b'"boom"'),
        ({"status": "failed", "error": None, "message": "boom", "code": 5}, None, b'{"code":5,"message":"boom"}'),
        ({"status": "failed", "error": None}, None, None),
    ],
)
def test_what_an_ended_state_says_of_the_end(state: Any, results: bytes | None, error: bytes | None) -> None:
    read = CODEC.decode_state(json.dumps(state).encode())
    for found, expected in ((read.results, results), (read.error, error)):
        assert (bytes(found) if isinstance(found, msgspec.Raw) else None) == expected


# --- other answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "token"),
    [
        ({"jobId": "j", "token": "t", "expiresIn": 60}, TokenAnswer("t", "j", 60)),
        ({"jobId": 7, "token": "t", "expiresIn": "60"}, TokenAnswer("t", "7", 60)),
        ({"jobId": None, "token": "t", "expiresIn": "soon"}, TokenAnswer("t")),
        ({"data": {"jobId": "j", "token": "t"}, "metadata": {}}, TokenAnswer("t", "j")),
        ({"success": True, "data": {"token": "t", "totalCount": 8}}, TokenAnswer("t")),
    ],
)
def test_an_answer_with_a_token(answer: Any, token: TokenAnswer) -> None:
    assert CODEC.decode_token(json.dumps(answer).encode()) == token
    assert CODEC.decode_token(b"\xef\xbb\xbf" + json.dumps(answer).encode()) == token


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"token":""}', b'{"token":null}', b'{"data":{"token":{}}}'])
def test_an_answer_without_a_token(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        CODEC.decode_token(data)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"result":"accepted"}', "accepted"),
        (b'{"result":"Too_Late"}', "too_late"),
        (b'{"result":"unknown"}', "unknown"),
        (b'{"result":"later"}', "unknown"),
        (b'{"result":null,"status":"canceled"}', "accepted"),
        (b'{"jobId":"j","status":"canceled","message":"x"}', "accepted"),
        (b'{"status":"CANCELLED"}', "accepted"),
        (b'{"status":"cancelling"}', "accepted"),
        (b'{"status":"success"}', "accepted"),
        (b'{"status":"completed"}', "too_late"),
        (b'{"status":"failed"}', "unknown"),
        (b'{"success":false,"error":{"code":"E"}}', "unknown"),
        (b'{"result":false}', "unknown"),
        (b'{"data":{"status":"canceled"},"metadata":{}}', "accepted"),
        (b"", "accepted"),
        (b"OK", "accepted"),
        (b"[]", "accepted"),
    ],
)
def test_the_answer_to_a_cancel(body: bytes, answer: str) -> None:
    assert CODEC.decode_cancel(body) == answer


def test_a_page_is_no_answer_to_a_cancel() -> None:
    with pytest.raises(MalformedMessage):
        CODEC.decode_cancel(b"\n<!doctype html>")


# --- any JSON ----------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("3")


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)


#: The text of any JSON value, and of values that only some writers and readers take for JSON.
ANY_JSON = st.one_of(
    (SCALARS | nested(SCALARS) | nested(nested(SCALARS))).map(json.dumps),
    st.sampled_from(
        [
            *("1e400", "-1e400", str(2**70), "9" * 5000, "[" * 2000 + "]" * 2000),
            *('{"a":' * 2000 + "1" + "}" * 2000, r'"\ud800"', r'{"\udc00":"\ud800x"}', "1.0000002", "3.0"),
            *('"2026-01-01T00:00:00Z"', '"\n"', '"]}"'),
        ]
    ),
)

STATE = {"status": "running", "pipeline": "p", "totalCount": 9, "processedCount": 3, "startTime": 1, "version": "1"}
#: Each known message and the state: its payload, and the fields that decide nothing.
KNOWN: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "job_started": ({"totalCount": 5, "estimatedDuration": 2.5}, ("totalCount", "estimatedDuration")),
    "job_progress": (
        {**PROGRESS, "currentItem": "b", "keepAlive": False},
        ("progress", "status", "processedCount", "currentItem", "keepAlive"),
    ),
    "job_complete": ({"books": []}, ()),
    "error": (
        {"code": "E", "message": "m", "details": 1, "retryable": True},
        ("code", "message", "details", "retryable"),
    ),
    "job_canceled": ({"processedCount": 3, "reason": "user"}, ("processedCount", "reason")),
    "ready_ack": ({}, ("from", "to")),
    "ping": ({}, ()),
    "new_type": ({}, ()),
    "state": ({}, ("results", "error", "lastUpdate", "endTime", "currentItem", "totalCount", "processedCount")),
}
CHANGES = [(type_, name) for type_, (_, names) in KNOWN.items() for name in (*names, *ENVELOPE, "unknown")]


def known(type_: str, name: str, value: str) -> bytes:
    """A known message or state whose field `name` has the JSON text `value`."""
    payload, names = KNOWN[type_]
    inner = {**payload, "type": type_}
    message = {**ENVELOPE, **(STATE if type_ == "state" else {"type": type_, "payload": inner})}
    (inner if name in names and name in payload else message)[name] = "REPLACED"
    return json.dumps(message).replace('"REPLACED"', value).encode()


def flat(struct: Any) -> dict[str, Any]:
    """The fields of a frame and its payload by their names on the wire."""
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if isinstance(value, msgspec.Struct):
            fields.update(flat(value))
        else:
            fields[field.encode_name] = (
                json.loads(bytes(value), parse_int=str) if isinstance(value, msgspec.Raw) else value
            )
    return fields


@pytest.mark.parametrize(("type_", "name"), CHANGES)
@given(value=ANY_JSON)
@settings(max_examples=10)
def test_any_value_in_one_field_costs_only_that_field(type_: str, name: str, value: str) -> None:
    read: Callable[[bytes], Any] = CODEC.decode_state if type_ == "state" else decode
    usual, changed = read(known(type_, "unknown", "1")), read(known(type_, name, value))
    assert type(changed) is type(usual)
    others = {each: kept for each, kept in flat(usual).items() if each != name}
    assert {each: kept for each, kept in flat(changed).items() if each != name} == others
    msgspec.json.encode(changed)


ENDS = st.sampled_from(["job_complete", "error", "job_canceled", "COMPLETED", "job_failed", "cancelled", "success"])


@given(ENDS, ANY_JSON, ANY_JSON, st.sampled_from(["jobId", "payload", "seq", "epoch", "pipeline", "message", "x"]))
@settings(max_examples=100)
def test_an_end_always_ends(word: str, payload: str, other: str, name: str) -> None:
    for data in (
        f'{{"type": "{word}", "payload": {payload}, "{name}": {other}}}',
        f'{{"type": "{word}", "{name}": {other}}}',
    ):
        frame = decode(data)
        assert isinstance(frame, JobCompleteFrame | ErrorFrame | JobCanceledFrame)
        assert dump_outcome(outcome_of_frame("j", frame, CODEC), 1 << 20)
    state = CODEC.decode_state(f'{{"status": "{word}", "results": {payload}, "error": {other}}}'.encode())
    assert state.ended
    assert dump_outcome(outcome_of_state("j", state, CODEC), 1 << 20)


READERS: tuple[Callable[[bytes], Any], ...] = (
    decode,
    CODEC.decode_state,
    CODEC.decode_token,
    CODEC.decode_cancel,
    CODEC.decode_error,
    lambda data: CODEC.decode_result("csv_import", data),
    lambda data: CODEC.decode_whole_result("another", data),
)


@given(
    ANY_JSON, st.sampled_from(["%s", '{"type": "job_progress", "payload": %s}', '{"type": %s}', '{"data": %s}', "%s x"])
)
@settings(max_examples=100)
def test_for_any_json_nothing_is_raised_but_a_report(value: str, shape: str) -> None:
    for read in READERS:
        with suppress(MalformedMessage):
            msgspec.json.encode(read((shape % value).encode()))


@given(st.text(st.characters()) | st.binary())
def test_for_any_bytes_as_well(data: Any) -> None:
    with suppress(MalformedMessage):
        decode(data)
    for read in READERS:
        with suppress(MalformedMessage):
            read(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)


# --- what the original backend sent -------------------------------------------------------------------------------

RECORDED = Path(__file__).parent.parent / "original" / "recorded"


def recorded(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "counts", "end"),
    [
        ("first-csv", [0, 0, 5], JobCompleteFrame),
        ("first-scan", [1, 2, 2, 2, 2, 2, 3], JobCompleteFrame),
        ("newest-batch", [1, 2, 3, 4, 5, 6], JobCompleteFrame),
        ("newest-batch-canceled", [1, 2, 3, 4], None),
        ("newest-batch-dropped", [1, 2, 5, 6, 7, 8], JobCompleteFrame),
        ("newest-batch-ended-while-away", [1], None),
        ("newest-batch-reconnect-true", [1, 2, 5, 6, 7, 8], JobCompleteFrame),
        ("newest-csv", [0, 0, 5], ErrorFrame),
        ("newest-scan", [0, 1, 1, 2, 2, 2, 2, 2, 3], JobCompleteFrame),
    ],
)
def test_each_message_that_was_recorded(name: str, counts: list[int], end: type | None) -> None:
    frames = [decode(line["text"]) for line in recorded(name) if line["kind"] == "received"]
    progress = [frame.payload for frame in frames if isinstance(frame, JobProgressFrame)]
    assert [payload.processed_count for payload in progress] == counts
    assert all(payload.progress is not None and payload.status for payload in progress)
    assert isinstance(frames[0], ReadyAckFrame | UnknownFrame)
    assert {frame.type for frame in frames if isinstance(frame, UnknownFrame)} <= {"reconnected"}
    ends = [type(frame) for frame in frames if isinstance(frame, JobCompleteFrame | ErrorFrame)]
    assert ends == ([] if end is None else [end])
    assert end is None or type(frames[-1]) is end


def test_each_end_that_was_recorded() -> None:
    def end(name: str) -> Any:
        frame = decode([line for line in recorded(name) if line["kind"] == "received"][-1]["text"])
        assert isinstance(frame, JobCompleteFrame | ErrorFrame)
        return outcome_of_frame("job-1", frame, CODEC)

    assert [book.title for book in end("first-csv").result.books] == ["T0", "T1", "T2", "T3", "T4"]
    assert len(end("first-scan").result.books) == 5
    batch = end("newest-batch")
    assert (batch.result["summary"]["successCount"], batch.result_url) == (6, None)
    assert "does not fit its pipeline's type" in batch.problem
    csv = end("newest-csv")
    assert (csv.code, csv.message, csv.retryable) == ("E_CSV_PROCESSING_FAILED", "startTime is not defined", True)
    scan = end("newest-scan")
    assert (scan.result_url, scan.result["approved"], scan.problem) == ("/v1/scan/results/job-1", 5, None)


def test_each_answer_that_was_recorded() -> None:
    seen = set()
    for path in sorted(RECORDED.glob("*.jsonl")):
        for line in recorded(path.stem):
            if line["kind"] != "http" or line["status"] >= 400:
                continue
            body = line["body"].encode()
            if "/job-state/" in line["path"]:
                state = CODEC.decode_state(body)
                assert (state.status, state.version) == ("running", "1")
                assert state.pipeline in PIPELINES
                seen.add("state")
            elif "/cancel" in line["path"]:
                assert CODEC.decode_cancel(body) == "accepted"
                seen.add("cancel")
            elif "/results/" in line["path"]:
                assert len(CODEC.decode_whole_result("ai_scan", body).value.books) == 5
                seen.add("result")
            else:
                answer = CODEC.decode_token(body)
                assert answer.token == "TOKEN"
                assert answer.job_id == ("" if "/batch" in line["path"] else "job-1")
                seen.add("start")
    assert seen == {"state", "cancel", "result", "start"}
