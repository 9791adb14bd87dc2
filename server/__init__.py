"""The job hub: durable progress, exact replay, tokens and cancel, as an ASGI application to mount or to serve.

Workers elsewhere report through `towline.server.reporter`, which needs the `redis` extra.
"""

from .._exceptions import HubStorageError, JobFailure
from ._access import Authorize, loopback_only
from ._csv_import import csv_import, read_books
from ._hub import Hub, StartedJob
from ._jobs import Dispatch, JobContext, JobFunction, Result, Upload
from ._serve import serve
from ._settings import Lifetimes, Limits
from ._sqlite import LoggedEvent, read_events
from ._statistics import HubStatistics

__all__ = [
    "Authorize",
    "Dispatch",
    "Hub",
    "HubStatistics",
    "HubStorageError",
    "JobContext",
    "JobFailure",
    "JobFunction",
    "Lifetimes",
    "Limits",
    "LoggedEvent",
    "Result",
    "StartedJob",
    "Upload",
    "csv_import",
    "loopback_only",
    "read_books",
    "read_events",
    "serve",
]
