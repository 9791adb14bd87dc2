"""The settings of a connection, checked and frozen."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .._exceptions import InvalidArgument
from .._secret import Secret
from .._updates import Progress
from ..protocols.wire import Codec
from ..sources import JobCalls, Templates
from ..statemachine import Lost, Place, Policy, Refused, StateChange, TokenRejected, Unavailable, cause_of
from ..storage import RecordKey, Store
from ..transport import URL, Limits, Network, bearer
from .handlers import Handler
from .tokens import TokenProvider

Meaning: TypeAlias = Lost | TokenRejected | Refused | Unavailable | None

#: The application's own classification of an error; None keeps the built-in one.
Classifier: TypeAlias = Callable[[BaseException], Literal["lost", "token_rejected", "refused"] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one connection. `url` is the WebSocket's URL without the job's id."""

    url: URL
    api: URL
    job: str
    policy: Policy
    limits: Limits
    codec: Codec
    pipelines: Mapping[str, type]
    templates: Templates
    headers: tuple[tuple[str, str | Secret], ...]
    subprotocols: tuple[str | Secret, ...]
    token_subprotocol: str | None
    token_in_query: bool
    ssl: ssl_module.SSLContext | None
    network: Network | None
    store: Store | None
    record_key: RecordKey
    provider: TokenProvider | None
    refresh: bool
    strict_sync: bool
    classify: Classifier | None
    on_state: Handler[StateChange] | None
    on_progress: Handler[Progress] | None
    on_disconnected: Handler[StateChange] | None
    random: Callable[[], float]
    wall_time: Callable[[], float]

    def record_parameters(self) -> dict[str, str]:
        """The data another process needs to follow the job, besides its id and token."""
        url = self.url.whole
        return {"url": url} if self.api.origin == self.url.origin else {"url": url, "api_origin": str(self.api.origin)}

    def url_with(self, token: Secret) -> URL:
        """The URL to connect to: with the job's id, and with the token only if `token_in_query` is set."""
        url = self.url.with_query("jobId", self.job)
        return url.with_query("token", token.reveal()) if self.token_in_query else url

    def headers_with(self, token: Secret) -> list[tuple[str, str | Secret]]:
        """The headers of the upgrade, with the token unless it is sent elsewhere."""
        if self.token_in_query or self.token_subprotocol is not None:
            return list(self.headers)
        return [*self.headers, bearer(token)]

    def subprotocols_with(self, token: Secret) -> list[str | Secret]:
        """The subprotocols to offer."""
        if self.token_subprotocol is None:
            return list(self.subprotocols)
        return [*self.subprotocols, Secret(f"{self.token_subprotocol}.{token.reveal()}")]

    def job_calls(self) -> JobCalls:
        """The client for HTTP calls about the job."""
        return JobCalls(
            self.api,
            templates=self.templates,
            codec=self.codec,
            headers=self.headers,
            network=self.network,
            ssl=self.ssl,
            wall_time=self.wall_time,
        )

    def reclassified(self, error: BaseException, place: Place, meaning: Meaning) -> Meaning:
        """The application's classification of an error, or the built-in one."""
        answer = None if self.classify is None else self.classify(error)
        cause = cause_of(error, place)
        match answer:
            case None:
                return meaning
            case "lost":
                return Lost(cause=cause)
            case "refused":
                return Refused(reason="protocol", cause=cause, final=True)
            case "token_rejected":
                return TokenRejected(cause=cause, by_fetch=place is Place.SYNC)
        raise InvalidArgument("classify", "must return lost, token_rejected, refused or None")
