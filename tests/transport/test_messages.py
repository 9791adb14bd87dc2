"""The wire's messages: what fits, what is tolerated, what is reported, and that an end is never dropped."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline._exceptions import MalformedMessage
from towline.transport._messages import (
    AiScanResult,
    BatchEnrichmentResult,
    CanceledPayload,
    Codec,
    CsvImportResult,
    ErrorFrame,
    ErrorPayload,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    PingFrame,
    PongFrame,
    ProgressPayload,
    Ready,
    ReadyAckFrame,
    ResultReference,
    UnknownFrame,
    UnreadableEnd,
    encode,
    encode_payload,
)

CODEC = Codec()
ENVELOPE = {"jobId": "j", "pipeline": "csv_import", "timestamp": 1.5, "version": "1.0.0", "seq": 7, "epoch": "e"}


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
        frame = CODEC.decode(data)
        assert type(frame) is kind
        assert (frame.job_id, frame.seq, frame.epoch) == ("j", 7, "e")  # type: ignore[union-attr]


def test_the_fields_of_a_progress() -> None:
    payload = {"progress": 1, "status": "é", "processedCount": 0, "currentItem": "b", "keepAlive": True, "more": 1}
    frame = CODEC.decode(text("job_progress", payload))
    assert isinstance(frame, JobProgressFrame)
    assert frame.payload == ProgressPayload(1.0, "é", 0, "b", True)


def test_a_server_without_a_log() -> None:
    frame = CODEC.decode('{"type":"job_progress","payload":{"progress":0,"status":""}}')
    assert isinstance(frame, JobProgressFrame)
    assert (frame.seq, frame.epoch, frame.job_id) == (None, None, "")
    bare = CODEC.decode('{"type":"ready_ack","timestamp":1}')
    assert isinstance(bare, ReadyAckFrame)
    assert (bare.from_, bare.to) == (None, None)
    full = CODEC.decode('{"type":"ready_ack","timestamp":1,"epoch":"e","from":4,"to":3}')
    assert isinstance(full, ReadyAckFrame)
    assert (full.epoch, full.from_, full.to) == ("e", 4, 3)


@pytest.mark.parametrize(
    ("data", "type_", "path"),
    [
        ("", None, "$"),
        ("nonsense", None, "$"),
        ("[]", None, "$"),
        ("null", None, "$"),
        ("{}", None, "$.type"),
        ('{"type":7}', None, "$.type"),
        ('{"type":"job_progress"}', "job_progress", "$"),
        (text("job_progress", {"progress": 2, "status": "x"}), "job_progress", "$.payload.progress"),
        (text("job_progress", {"progress": -0.1, "status": "x"}), "job_progress", "$.payload.progress"),
        (text("job_progress", {"progress": 0.5}), "job_progress", "$.payload"),
        (
            text("job_progress", {"progress": 0.5, "status": "x", "processedCount": -1}),
            "job_progress",
            "$.payload.processedCount",
        ),
        (text("job_progress", {"progress": 0.5, "status": "x"}, seq=0), "job_progress", "$.seq"),
        (text("job_started", {"totalCount": "many"}), "job_started", "$.payload.totalCount"),
        (text("ready_ack", None, **{"from": 0}), "ready_ack", "$.from"),
        (text("ping", None, timestamp="now"), "ping", "$.timestamp"),
        (b'\xff{"type":"ping"}', None, "$"),
        ('{"type":"job_progress"' + "[" * 100_000, None, "$"),
    ],
)
def test_a_frame_that_does_not_fit_is_reported_with_its_path(data: Any, type_: str | None, path: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        CODEC.decode(data)
    assert (caught.value.type, caught.value.path) == (type_, path)


@pytest.mark.parametrize("value", ["hunter2", 7.5, ["hunter2"], {"a": "hunter2"}])
def test_no_report_quotes_a_value(value: Any) -> None:
    with pytest.raises(MalformedMessage) as caught:
        CODEC.decode(text("job_started", {"totalCount": value}))
    assert "hunter2" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


def test_nor_what_is_in_no_enumeration() -> None:
    with pytest.raises(MalformedMessage) as caught:
        CODEC.decode_state(b'{"status":"hunter2 - at `$.x`"}')
    assert caught.value.path == "$.status"
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


def test_an_unknown_type_is_tolerated() -> None:
    frame = CODEC.decode(text("job_paused", {"a": 1}))
    assert frame == UnknownFrame("job_paused", "j", 7, "e")
    odd = CODEC.decode('{"type":"new","jobId":5,"seq":-3,"epoch":[]}')
    assert odd == UnknownFrame("new")


@pytest.mark.parametrize(
    "data",
    [
        '{"type":"error","jobId":"j"}',
        text("error", {"code": 5, "message": "m"}),
        text("error", {"message": "m"}),
        text("job_canceled", {"processedCount": -1}),
        text("job_complete", {"books": []}, seq="seven"),
        text("job_complete", {"books": []}, timestamp=[]),
        text("job_complete", {"books": []}, jobId=None),
        '{"type":"error","seq":true,"epoch":"","payload":7,"pipeline":{}}',
    ],
)
def test_an_end_that_does_not_fit_is_still_an_end(data: str) -> None:
    end = CODEC.decode(data)
    assert isinstance(end, UnreadableEnd)
    assert end.type in {"error", "job_canceled", "job_complete"}
    assert end.raw == data
    assert end.problem.startswith("$")
    assert end.seq in {None, 7}
    assert isinstance(CODEC.decode(data.encode()), UnreadableEnd)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_a_frame_or_a_report(value: Any) -> None:
    candidates = [value, {"type": "job_progress", "payload": value}, {"type": value}, {"type": "error", "seq": value}]
    for candidate in candidates:
        data = json.dumps(candidate)
        try:
            frame = CODEC.decode(data)
        except MalformedMessage:
            assert not (isinstance(candidate, dict) and candidate.get("type") == "error"), "an end was dropped"
        else:
            assert isinstance(frame, msgspec.Struct)


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
    frame = CODEC.decode(text("job_complete", payload, pipeline=pipeline))
    assert isinstance(frame, JobCompleteFrame)
    assert type(CODEC.decode_result(frame.pipeline, frame.payload)) is kind
    with pytest.raises(MalformedMessage) as caught:
        CODEC.decode_result(pipeline, b'{"books": 7}')
    assert caught.value.type == "job_complete"
    assert CODEC.decode_result("another", frame.payload) == payload


def test_a_large_result_is_a_reference() -> None:
    for pipeline in ("csv_import", "another"):
        assert CODEC.decode_result(pipeline, b'{"resultUrl":"/r"}') == ResultReference("/r")
    assert CODEC.decode_result("another", b'{"resultUrl":7}') == {"resultUrl": 7}
    assert CODEC.decode_result("another", b"[1]") == [1]
    assert CODEC.decode_result("another", b"7") == 7
    # Fetched by itself it is no reference, whatever its fields are called.
    assert CODEC.decode_whole_result("another", b'{"resultUrl":"/r"}') == {"resultUrl": "/r"}


def test_a_type_of_the_results_own_is_kept() -> None:
    assert CODEC.decode_result("another", b'{"type":"invoice"}') == {"type": "invoice"}


def test_a_pipeline_of_the_applications_own() -> None:
    class Mine(msgspec.Struct):
        size: int

    codec = Codec({"mine": Mine, "csv_import": Mine})
    assert codec.decode_result("mine", b'{"size":3}') == Mine(3)
    assert codec.decode_result("csv_import", b'{"size":3}') == Mine(3)
    with pytest.raises(MalformedMessage, match=r"\$\.size"):
        codec.decode_result("mine", b'{"size":"x"}')


def test_how_a_job_failed() -> None:
    assert CODEC.decode_error(b'{"code":"E","message":"m"}') == ErrorPayload("E", "m")
    with pytest.raises(MalformedMessage):
        CODEC.decode_error(b'{"code":"E"}')


# --- the state ---------------------------------------------------------------------------------------------------


def test_the_state() -> None:
    state = CODEC.decode_state(
        b'{"status":"complete","pipeline":"csv_import","totalCount":2,"processedCount":2,"startTime":1,"version":"1.0.0",'
        b'"seq":0,"epoch":"e","results":{"books":[],"errors":[],"successRate":"0/0"},"unknown":1}'
    )
    assert (state.ended, state.seq, state.epoch) == (True, 0, "e")
    assert isinstance(state.results, msgspec.Raw)
    assert isinstance(CODEC.decode_result(state.pipeline, state.results), CsvImportResult)
    assert state.error is msgspec.UNSET
    assert not CODEC.decode_state(b'{"status":"running"}').ended


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"status":"gone"}', b'{"status":"running","seq":-1}', b"\xff"])
def test_a_state_that_does_not_fit(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        CODEC.decode_state(data)


# --- writing -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again() -> None:
    frames = [
        JobStartedFrame(job_id="j", seq=1, epoch="e"),
        JobProgressFrame(job_id="j", seq=2, epoch="e", payload=ProgressPayload(0.5, "x", 1, "b")),
        ErrorFrame(job_id="j", payload=ErrorPayload("E", "m", {"a": 1}, False)),
        JobCanceledFrame(payload=CanceledPayload(3, "user")),
        ReadyAckFrame(epoch="e", from_=1, to=5, timestamp=1),
        PingFrame(timestamp=4),
    ]
    for frame in frames:
        assert CODEC.decode(encode(frame)) == frame
    assert json.loads(encode(Ready(timestamp=5.0, epoch="e", seq=3))) == {
        "type": "ready",
        "timestamp": 5.0,
        "epoch": "e",
        "seq": 3,
    }
    assert CODEC.decode_state(encode(JobState(status="running", seq=0))) == JobState(status="running", seq=0)


def test_a_payload_repeats_its_type() -> None:
    payload = encode_payload("job_complete", CsvImportResult([], [], "0/0"))
    assert json.loads(bytes(payload)) == {"type": "job_complete", "books": [], "errors": [], "successRate": "0/0"}
    frame = JobCompleteFrame(pipeline="csv_import", payload=payload)
    assert json.loads(encode(frame))["payload"]["type"] == "job_complete"
