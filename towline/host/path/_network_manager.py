"""NetworkManager's connectivity check, combined with the kernel's path (D-Bus: org.freedesktop.NetworkManager).

The kernel knows which route leads out. Only NetworkManager checks with a server of its own whether the route reaches
the internet. They are combined like this:

- Full, unknown, none, not running, or without an active connection: the kernel's path counts. Networks that
  NetworkManager does not manage (a VPN, a container's bridge) may well lead out.
- Portal: the path is down. A captive portal answers instead of the server until the user signs in. Connecting then
  would end with a wrong certificate, which is final. Like any path that is down, it is still tried now and then.
- Limited: the path is up, but differs from the same path with full connectivity. A firewall that hides NetworkManager's
  server looks the same permanently, so connecting stays allowed. A change to or from it is worth a probe.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import anyio
from jeepney import DBusAddress, MatchRule, Properties, message_bus

from .._bus import Bus, CallRefused
from ._path import Path, PathSource

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

#: NMState: from here on NetworkManager has an active connection, which its connectivity describes.
_CONNECTED_LOCAL = 50


class Connectivity(IntEnum):
    """The values of NMConnectivityState."""

    UNKNOWN = 0
    NONE = 1
    PORTAL = 2
    LIMITED = 3
    FULL = 4


class NetworkManagerPathSource:
    """A path source on top of another one, which it closes too. Unless `watch` runs, it gives the other's path."""

    def __init__(self, kernel: PathSource) -> None:
        self.connectivity = Connectivity.UNKNOWN
        self._kernel = kernel
        self._changed = anyio.Event()

    def read(self) -> Path:
        path = self._kernel.read()
        if path.up and self.connectivity is Connectivity.PORTAL:
            return Path(up=False)
        if path.up and self.connectivity is Connectivity.LIMITED:
            return Path(up=True, identity=f"{path.identity}, limited")
        return path

    async def wait_hint(self) -> None:
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def wait_kernel() -> None:
                nonlocal failure
                try:
                    await self._kernel.wait_hint()
                except Exception as error:
                    failure = error  # raised after the task group, which would wrap it
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait_kernel)
            await self._changed.wait()
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._changed.is_set():
            self._changed = anyio.Event()

    def close(self) -> None:
        """Close the other source."""
        self._kernel.close()

    async def watch(self, bus: Bus) -> None:
        """Keep `connectivity` up to date, across restarts of NetworkManager. Raises `BusUnavailable` at the end."""
        try:
            await bus.call(message_bus.AddMatch(_CAME_OR_WENT))
            await bus.call(message_bus.AddMatch(_CHANGED))
            while True:
                # A signal is only a hint. The query reads the current value, so earlier signals can be dropped.
                bus.forget_signals()
                self._set_connectivity(await _ask(bus))
                await bus.next_signal()
        finally:
            self._set_connectivity(Connectivity.UNKNOWN)

    def _set_connectivity(self, connectivity: Connectivity) -> None:
        if connectivity is not self.connectivity:
            self.connectivity = connectivity
            self._changed.set()


async def _ask(bus: Bus) -> Connectivity:
    try:
        (properties,) = await bus.call(Properties(_MANAGER).get_all())
    except CallRefused:
        return Connectivity.UNKNOWN  # it is not running, or does not show its properties
    if _number(properties, "State") < _CONNECTED_LOCAL:
        return Connectivity.UNKNOWN
    try:
        return Connectivity(_number(properties, "Connectivity"))
    except ValueError:
        return Connectivity.UNKNOWN  # a value from a later version


def _number(properties: dict[str, tuple[str, Any]], name: str) -> int:
    kind, value = properties.get(name, ("u", 0))
    return int(value) if kind == "u" else 0
