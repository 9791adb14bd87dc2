"""Test tools for programs that embed Towline: virtual time, an in-memory network, a scripted server.

`towline` itself imports none of it.
"""

from ._audit import audit_updates
from ._clocks import VirtualTimeLoop, run_virtual, virtual_time, virtual_time_backends
from ._conformance import Finding, ProtocolReport, check_protocol
from ._controlled import controlled
from ._cover import cover
from ._lifecycle import FakeWorld, lifecycle_tests
from ._rehearsal import Detour, Rehearsal, RehearsalEntry, rehearse
from ._storm_script import AnyStep, RandomSteps, StormScript
from .memory._network import DialRecord, MemoryNetwork, NoAnswer, Reach, Unreachable
from .memory._scripted_job import LoggedEvent, ScriptedJob
from .memory._scripted_server import Answer, Call, Drop, Hang, Reaction, Request, ScriptedServer
from .memory._server_socket import Accept, ServerSocket
from .memory._stream import Direction, Ending, MemoryLink
from .proxy._fault_proxy import FaultProxy, ProxyStatistics
from .proxy._message_faults import MessageFault

__all__ = [
    "Accept",
    "Answer",
    "AnyStep",
    "Call",
    "Detour",
    "DialRecord",
    "Direction",
    "Drop",
    "Ending",
    "FakeWorld",
    "FaultProxy",
    "Finding",
    "Hang",
    "LoggedEvent",
    "MemoryLink",
    "MemoryNetwork",
    "MessageFault",
    "NoAnswer",
    "ProtocolReport",
    "ProxyStatistics",
    "RandomSteps",
    "Reach",
    "Reaction",
    "Rehearsal",
    "RehearsalEntry",
    "Request",
    "ScriptedJob",
    "ScriptedServer",
    "ServerSocket",
    "StormScript",
    "Unreachable",
    "VirtualTimeLoop",
    "audit_updates",
    "check_protocol",
    "controlled",
    "cover",
    "lifecycle_tests",
    "rehearse",
    "run_virtual",
    "virtual_time",
    "virtual_time_backends",
]
