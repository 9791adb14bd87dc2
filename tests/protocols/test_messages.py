"""The wire's messages as they are written."""

import json

from towline.protocols.wire.codec import Codec, decode_known
from towline.protocols.wire.messages import (
    CanceledPayload,
    ErrorFrame,
    ErrorPayload,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    PingFrame,
    ProgressPayload,
    Ready,
    ReadyAckFrame,
    ResultReference,
    StartedPayload,
    encode,
    encode_payload,
)

CODEC = Codec()


def test_what_is_written_is_read_again() -> None:
    frames = [
        JobStartedFrame(job_id="j", seq=1, epoch="e", payload=StartedPayload(5)),
        JobProgressFrame(job_id="j", seq=2, epoch="e", payload=ProgressPayload(0.5, "x", 1, "b")),
        ErrorFrame(job_id="j", payload=ErrorPayload("E", "m", {"a": 1}, False)),
        JobCanceledFrame(payload=CanceledPayload(3, "user")),
        ReadyAckFrame(epoch="e", from_=1, to=5, timestamp=1),
        PingFrame(timestamp=4),
    ]
    for frame in frames:
        assert decode_known(encode(frame)) == frame
    assert json.loads(encode(Ready(timestamp=5.0, epoch="e", seq=3))) == {
        "type": "ready",
        "timestamp": 5.0,
        "epoch": "e",
        "seq": 3,
    }
    assert CODEC.decode_state(encode(JobState(status="running", seq=0))) == JobState(status="running", seq=0)


def test_a_payload_repeats_its_type() -> None:
    payload = encode_payload("job_complete", ResultReference("/r"))
    assert json.loads(bytes(payload)) == {"type": "job_complete", "resultUrl": "/r"}
    frame = JobCompleteFrame(pipeline="csv_import", payload=payload)
    assert json.loads(encode(frame))["payload"]["type"] == "job_complete"
