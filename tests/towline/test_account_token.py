"""The token of an account is stored only if the program says so."""

from __future__ import annotations

from typing import ClassVar

import pytest

from towline import Connection, MemoryTokenStore, Secret, State
from towline.protocols import Towline
from towline.testing import ScriptedServer

pytestmark = pytest.mark.anyio


class OfAnAccount(Towline):
    """The hub's protocol, as if one token were for all jobs of an account."""

    token_of_job: ClassVar[bool] = False


ACCOUNT = OfAnAccount("ws://hub/ws/progress", "j1")


async def test_it_is_not_stored(server: ScriptedServer) -> None:
    store = MemoryTokenStore()
    async with Connection(ACCOUNT, token="t1", store=store, network=server.network) as connection:
        await connection.wait_for(State.CONNECTED)
    (record,) = await store.find("j1")
    assert record.token is None


async def test_with_store_token_another_connection_has_it(server: ScriptedServer) -> None:
    store = MemoryTokenStore()
    async with Connection(ACCOUNT, token="t1", store=store, store_token=True, network=server.network) as connection:
        await connection.wait_for(State.CONNECTED)
    (record,) = await store.find("j1")
    assert record.token == Secret("t1")
    async with Connection(ACCOUNT, store=store, network=server.network) as connection:
        await connection.wait_for(State.CONNECTED, timeout=5)


async def test_a_stored_token_stays_when_a_parameter_changes(server: ScriptedServer) -> None:
    store = MemoryTokenStore()
    async with Connection(ACCOUNT, token="t1", store=store, store_token=True, network=server.network) as connection:
        await connection.wait_for(State.CONNECTED)
    changed = OfAnAccount("ws://hub/ws/progress?x=1", "j1")
    for _ in range(2):
        async with Connection(changed, store=store, network=server.network) as connection:
            await connection.wait_for(State.CONNECTED, timeout=5)
    (record,) = await store.find("j1")
    assert record.token == Secret("t1")


async def test_without_a_store_it_goes_to_the_users_own(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MemoryTokenStore()
    monkeypatch.setattr("towline._connection.TokenStore", lambda: own)
    async with Connection(ACCOUNT, token="t1", store_token=True, network=server.network) as connection:
        await connection.wait_for(State.CONNECTED)
    (record,) = await own.find("j1")
    assert record.token == Secret("t1")
