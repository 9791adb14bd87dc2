"""Virtual time for the tests of the engine's parts: nothing here uses a real socket."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from towline.engine.settings import Settings
from towline.protocols.wire import NAME, Codec
from towline.sources import Templates
from towline.statemachine import Policy
from towline.storage import RecordKey
from towline.testing import virtual_time, virtual_time_backends
from towline.transport import Limits, parse_url


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time(request.param)


@pytest.fixture
def make_settings() -> Callable[..., Settings]:
    """Settings as `Connection` makes them for the job `j1`, with the given changes."""

    def make_settings(**changes: Any) -> Settings:
        url = parse_url("ws://hub/ws/progress", allow_insecure=True)
        usual: dict[str, Any] = {
            "url": url,
            "api": url,
            "job": "j1",
            "policy": Policy(),
            "limits": Limits(),
            "codec": Codec(),
            "pipelines": {},
            "templates": Templates(),
            "headers": (),
            "subprotocols": (),
            "token_subprotocol": None,
            "token_in_query": False,
            "ssl": None,
            "network": None,
            "store": None,
            "record_key": RecordKey(NAME, url.address, "j1"),
            "provider": None,
            "refresh": False,
            "strict_sync": False,
            "classify": None,
            "on_state": None,
            "on_progress": None,
            "on_disconnected": None,
            "random": random.random,
            "wall_time": time.time,
        }
        return Settings(**{**usual, **changes})

    return make_settings
