"""The messages of Towline's own wire: their structs, the codec that reads them, and its lenient reader.

The hub writes with these structs, the protocols read with the codec. Nothing here makes updates or facts, opens a
connection, reads a clock or draws a random number.
"""

from .codec import CancelAnswer, Codec, Result, decode_known
from .lenient import UNFIT
from .messages import (
    NAME,
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
    Ready,
    ReadyAckFrame,
    ResultReference,
    StartedPayload,
    TerminalFrame,
    UnknownFrame,
    encode,
    encode_payload,
)

__all__ = [
    "NAME",
    "UNFIT",
    "CancelAnswer",
    "CanceledPayload",
    "Codec",
    "ErrorFrame",
    "ErrorPayload",
    "Frame",
    "JobCanceledFrame",
    "JobCompleteFrame",
    "JobProgressFrame",
    "JobStartedFrame",
    "JobState",
    "PingFrame",
    "PongFrame",
    "ProgressPayload",
    "Ready",
    "ReadyAckFrame",
    "Result",
    "ResultReference",
    "StartedPayload",
    "TerminalFrame",
    "UnknownFrame",
    "decode_known",
    "encode",
    "encode_payload",
]
