"""The settings of a connection, checked and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .._facts import Protocol
from .._secret import Secret
from .._updates import AnyUpdate
from ..sources import Access
from ..statemachine import Policy, StateChange
from ..storage import Parameter, RecordKey, Store
from ..transport import parse_url
from .delivery.handlers import Handler
from .tokens import TokenProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one connection.

    `parameters` and `secrets` are what another process needs to follow the job, besides its id and token.
    `require_state`: a server that has no state of the job is not accepted. `has_state_call`: the protocol has a request
    for the state, `exchanges_tokens`: and one that exchanges a token for a fresh one. `token_required`: there must be a
    token. `token_stored`: it may be stored. `results` are types of results, by pipeline.
    """

    protocol: Protocol
    access: Access
    policy: Policy
    store: Store | None
    record_key: RecordKey
    parameters: Mapping[str, Parameter]
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    results: Mapping[str, type] = field(default_factory=dict)
    provider: TokenProvider | None
    exchanges_tokens: bool
    require_state: bool
    has_state_call: bool
    token_required: bool
    token_stored: bool
    on_state: Handler[StateChange] | None
    on_update: Handler[AnyUpdate] | None

    @property
    def host(self) -> str:
        """The server's host, as a name or an address."""
        return parse_url(self.protocol.url, schemes=("https", "http", "wss", "ws"), allow_insecure=True).origin.host

    @property
    def job(self) -> str:
        """The job's id."""
        return self.protocol.job
