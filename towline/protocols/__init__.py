"""How to follow a job on each kind of server: pure values that ask and read.

Nothing here opens a connection, reads a clock or draws a random number. A protocol imports facts, updates and leaves
only, so it may be used without the engine.
"""

from .bookstrack import Bookstrack
from .event_stream import EventStream
from .messages import Messages
from .polling import Polling
from .towline import Towline

__all__ = ["Bookstrack", "EventStream", "Messages", "Polling", "Towline"]
