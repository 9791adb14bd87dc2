"""Virtual time for the tests of the engine's parts: nothing here uses a real socket."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from towline.engine.settings import Settings
from towline.protocols.towline import Towline
from towline.sources import Access
from towline.statemachine import Policy
from towline.storage import RecordKey
from towline.testing import virtual_time, virtual_time_backends
from towline.transport import Limits, Liveness, Network, parse_url


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)


@pytest.fixture
def make_settings() -> Callable[..., Settings]:
    """Settings as `Connection` makes them for the job `j1`, with the given changes."""

    def make_settings(network: Network | None = None, **changes: Any) -> Settings:
        url = parse_url("ws://hub/ws/progress", allow_insecure=True)
        protocol = Towline(url.whole, "j1")
        access = Access(
            origins=frozenset({url.origin}),
            limits=Limits(),
            liveness=Liveness(),
            connect_deadline=10.0,
            network=network or Network(),
            wall_time=time.time,
            random=random.random,
        )
        usual: dict[str, Any] = {
            "protocol": protocol,
            "access": access,
            "policy": Policy(),
            "store": None,
            "record_key": RecordKey(protocol.name, url.address, "j1"),
            "parameters": {"url": url.whole},
            "secrets": {},
            "results": {},
            "provider": None,
            "exchanges_tokens": True,
            "require_state": False,
            "has_state_call": True,
            "token_required": True,
            "token_stored": True,
            "on_state": None,
            "on_update": None,
        }
        return Settings(**{**usual, **changes})

    return make_settings
