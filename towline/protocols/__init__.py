"""How to follow a job on each kind of server: pure values that ask and read.

Nothing here opens a connection, reads a clock or draws a random number. A protocol imports facts, updates and leaves
only, so it may be used without the engine. Each is loaded when it is first used.

The facts are what the function `each` of a protocol for your own server may return beside updates and outcomes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._facts import Ended, Item, Mark, Means, Snapshot
from ._shared.names import CLASSES, protocol_class

if TYPE_CHECKING:
    from .a2a_task import A2ATask
    from .bookstrack import Bookstrack
    from .event_stream import EventStream
    from .langgraph_run import LangGraphRun
    from .mcp_task import MCPTask
    from .messages import Messages
    from .openai_response import OpenAIResponse
    from .polling import Polling
    from .towline import Towline
else:

    def __getattr__(name: str) -> type:
        """Load the protocol whose class has this name."""
        for protocol, kind in CLASSES.items():
            if kind == name:
                return protocol_class(protocol)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "A2ATask",
    "Bookstrack",
    "Ended",
    "EventStream",
    "Item",
    "LangGraphRun",
    "MCPTask",
    "Mark",
    "Means",
    "Messages",
    "OpenAIResponse",
    "Polling",
    "Snapshot",
    "Towline",
]
