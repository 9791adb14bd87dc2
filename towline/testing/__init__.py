"""Test tools for programs that embed Towline: virtual time, an in-memory network, a scripted server.

`towline` itself imports none of it.
"""

from ._audit import audit_updates
from ._clocks import VirtualTimeLoop, run_virtual, virtual_time, virtual_time_backends
from ._cover import cover
from ._crowd import ALGORITHMS, Algorithm, Outcome, Scene, crowd
from ._dry_run import DryRun
from ._fault_proxy import FaultProxy, ProxyStatistics
from ._memory_network import Dial, MemoryNetwork, NoAnswer, Reach, Unreachable
from ._memory_stream import Direction, Ending, MemoryLink
from ._message_faults import MessageFault
from ._rehearsal import Detour, Rehearsal, RehearsalEntry, rehearse
from ._scripted_job import LoggedEvent, ScriptedJob
from ._scripted_server import Answer, Call, Drop, Hang, Reaction, Request, ScriptedServer
from ._server_socket import Accept, ServerSocket
from ._simulated_storm import StormReport, simulate_storm
from ._stateful import connection_machine, play
from ._storm_script import AnyStep, RandomSteps, StormScript
from ._tour import Tour, take_tour

__all__ = [
    "ALGORITHMS",
    "Accept",
    "Algorithm",
    "Answer",
    "AnyStep",
    "Call",
    "Detour",
    "Dial",
    "Direction",
    "Drop",
    "DryRun",
    "Ending",
    "FaultProxy",
    "Hang",
    "LoggedEvent",
    "MemoryLink",
    "MemoryNetwork",
    "MessageFault",
    "NoAnswer",
    "Outcome",
    "ProxyStatistics",
    "RandomSteps",
    "Reach",
    "Reaction",
    "Rehearsal",
    "RehearsalEntry",
    "Request",
    "Scene",
    "ScriptedJob",
    "ScriptedServer",
    "ServerSocket",
    "StormReport",
    "StormScript",
    "Tour",
    "Unreachable",
    "VirtualTimeLoop",
    "audit_updates",
    "connection_machine",
    "cover",
    "crowd",
    "play",
    "rehearse",
    "run_virtual",
    "simulate_storm",
    "take_tour",
    "virtual_time",
    "virtual_time_backends",
]
