"""The results of the book pipelines, as the hub writes them. A client gets plain JSON unless it passes these types.

Names are snake_case here and camelCase in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from ...protocols.wire.lenient import Count


class _Result(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Settings that all results share."""


class EnrichedBook(_Result, frozen=True):
    """One book of a batch enrichment. An item that fails is a result; the job does not fail."""

    title: str
    success: bool
    author: str | None = None
    isbn: str | None = None
    error: str | None = None
    enriched: Any = None


class BatchEnrichmentResult(_Result, frozen=True):
    """Result of `batch_enrichment`; `duration` is in milliseconds."""

    total_processed: Count
    success_count: Count
    failure_count: Count
    duration: float
    enriched_books: list[EnrichedBook]


class ImportedBook(_Result, frozen=True):
    """One valid row of a CSV import."""

    title: str
    author: str
    isbn: str | None = None
    cover_url: str | None = None
    publisher: str | None = None
    publication_year: int | str | None = None
    enrichment_error: str | None = None


class RejectedRow(_Result, frozen=True):
    """One invalid row of a CSV import."""

    title: str
    error: str


class CsvImportResult(_Result, frozen=True):
    """Result of `csv_import`; `success_rate` is text such as "45/50"."""

    books: list[ImportedBook]
    errors: list[RejectedRow]
    success_rate: str


class BoundingBox(_Result, frozen=True, rename=None):
    """Two corners, in pixels of the photo, or shares of it: the server decides."""

    x1: float
    y1: float
    x2: float
    y2: float


class ScannedBook(_Result, frozen=True):
    """One book found in a photo."""

    title: str | None = None
    author: str | None = None
    isbn: str | None = None
    confidence: float | None = None
    bounding_box: BoundingBox | None = None
    enrichment_status: str | None = None
    cover_url: str | None = None
    publisher: str | None = None
    publication_year: int | str | None = None


class AiScanResult(_Result, frozen=True):
    """Result of `ai_scan`."""

    total_detected: Count
    approved: Count
    needs_review: Count
    books: list[ScannedBook]


#: The results by pipeline, for clients that want them typed: `Towline(url, job, results=PIPELINES)`.
PIPELINES: Final[Mapping[str, type]] = {
    "batch_enrichment": BatchEnrichmentResult,
    "csv_import": CsvImportResult,
    "ai_scan": AiScanResult,
}
