"""NetworkManager's judgement of the network, laid over the kernel's path (D-Bus: org.freedesktop.NetworkManager).

The kernel says which way out there is; only NetworkManager asks a server of its own whether it leads anywhere. How the
two are taken together:

- Full, unknown, none, not running, or itself without a connection: the path is as the kernel says. What NetworkManager
  does not manage (a VPN, a container's bridge) may well lead out.
- Portal: the path is down. Something answers in the server's place until somebody signs in, and a dial would end in a
  wrong certificate, which is final. It is a hold like any other, with its trial.
- Limited: the path is up, but another one than the same path in full reach. A firewall that hides NetworkManager's
  server looks the same for ever, so no dial is held back; but the change to it, and from it, is worth a probe.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import anyio
from jeepney import DBusAddress, MatchRule, Properties, message_bus

from ..transport._path import Path, PathSource
from ._bus import Bus, CallRefused

_NAME = "org.freedesktop.NetworkManager"
_MANAGER = DBusAddress("/org/freedesktop/NetworkManager", bus_name=_NAME, interface=_NAME)
_CHANGED = MatchRule(
    type="signal",
    sender=_NAME,
    path=_MANAGER.object_path,
    interface="org.freedesktop.DBus.Properties",
    member="PropertiesChanged",
)
_CHANGED.add_arg_condition(0, _NAME)
_CAME_OR_WENT = MatchRule(
    type="signal", sender="org.freedesktop.DBus", interface="org.freedesktop.DBus", member="NameOwnerChanged"
)
_CAME_OR_WENT.add_arg_condition(0, _NAME)

#: NMState: from here on NetworkManager has a connection of its own, of which its connectivity speaks.
_CONNECTED_LOCAL = 50


class Connectivity(IntEnum):
    """NMConnectivityState."""

    UNKNOWN = 0
    NONE = 1
    PORTAL = 2
    LIMITED = 3
    FULL = 4


class NetworkManagerPathSource:
    """A path source over another one, which it closes with itself. Without `watch` running it is that other one."""

    def __init__(self, beneath: PathSource) -> None:
        self.connectivity = Connectivity.UNKNOWN
        self._beneath = beneath
        self._changed = anyio.Event()

    def read(self) -> Path:
        """See `PathSource.read`."""
        path = self._beneath.read()
        if path.up and self.connectivity is Connectivity.PORTAL:
            return Path(up=False)
        if path.up and self.connectivity is Connectivity.LIMITED:
            return Path(up=True, identity=f"{path.identity}, limited")
        return path

    async def wait_hint(self) -> None:
        """See `PathSource.wait_hint`."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def wait_beneath() -> None:
                nonlocal failure
                try:
                    await self._beneath.wait_hint()
                except Exception as error:
                    failure = error  # carried past the task group, which would wrap it
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait_beneath)
            await self._changed.wait()
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._changed.is_set():
            self._changed = anyio.Event()

    def close(self) -> None:
        """Close what is beneath."""
        self._beneath.close()

    async def watch(self, bus: Bus) -> None:
        """Keep `connectivity` as NetworkManager has it, through its restarts. Raises `BusUnavailable` at the end."""
        try:
            await bus.call(message_bus.AddMatch(_CAME_OR_WENT))
            await bus.call(message_bus.AddMatch(_CHANGED))
            while True:
                # A signal is a hint and what came before the question is answered by it: levels are read, never edges.
                bus.forget_signals()
                self._judge(await _ask(bus))
                await bus.next_signal()
        finally:
            self._judge(Connectivity.UNKNOWN)

    def _judge(self, connectivity: Connectivity) -> None:
        if connectivity is not self.connectivity:
            self.connectivity = connectivity
            self._changed.set()


async def _ask(bus: Bus) -> Connectivity:
    try:
        (properties,) = await bus.call(Properties(_MANAGER).get_all())
    except CallRefused:
        return Connectivity.UNKNOWN  # it is not running, or keeps its properties to itself
    if _number(properties, "State") < _CONNECTED_LOCAL:
        return Connectivity.UNKNOWN
    try:
        return Connectivity(_number(properties, "Connectivity"))
    except ValueError:
        return Connectivity.UNKNOWN  # one that a later version has added


def _number(properties: dict[str, tuple[str, Any]], name: str) -> int:
    kind, value = properties.get(name, ("u", 0))
    return int(value) if kind == "u" else 0
