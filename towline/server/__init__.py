"""The job hub: durable progress, exact replay, tokens and cancel, as an ASGI application to mount or to serve.

Workers elsewhere report through `towline.server.reporter`, which needs the `redis` extra.
"""

from .._exceptions import HubStorageError, JobFailure
from ._hub import StartedJob
from ._jobs import Dispatch, JobContext, JobFunction, Result, Upload
from ._serve import serve
from ._settings import HubLimits, Lifetimes
from ._statistics import HubStatistics
from .log._sqlite import StoredEvent, read_events
from .pipelines._csv_import import csv_import, read_books
from .pipelines._results import (
    PIPELINES,
    AiScanResult,
    BatchEnrichmentResult,
    BoundingBox,
    CsvImportResult,
    EnrichedBook,
    ImportedBook,
    RejectedRow,
    ScannedBook,
)
from .web._access import Authorize, loopback_only
from .web._application import Hub

__all__ = [
    "PIPELINES",
    "AiScanResult",
    "Authorize",
    "BatchEnrichmentResult",
    "BoundingBox",
    "CsvImportResult",
    "Dispatch",
    "EnrichedBook",
    "Hub",
    "HubLimits",
    "HubStatistics",
    "HubStorageError",
    "ImportedBook",
    "JobContext",
    "JobFailure",
    "JobFunction",
    "Lifetimes",
    "RejectedRow",
    "Result",
    "ScannedBook",
    "StartedJob",
    "StoredEvent",
    "Upload",
    "csv_import",
    "loopback_only",
    "read_books",
    "read_events",
    "serve",
]
