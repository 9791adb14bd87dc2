"""What servers of jobs say, read without I/O: messages, states, results, tokens.

Nothing here opens a connection, reads a clock or draws a random number.
"""

from .codec import CancelAnswer, Codec, Result
from .messages import (
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
    "encode",
    "encode_payload",
]
