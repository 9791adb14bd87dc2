"""Sleep announced by logind (systemd's D-Bus interface org.freedesktop.login1).

logind signals before the machine sleeps, and delays the sleep a little for each holder of a delay inhibitor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from jeepney import DBusAddress, HeaderFields, MatchRule, message_bus, new_method_call
from jeepney.fds import FileDescriptor

from .._bus import PATIENCE, Bus, BusUnavailable, open_bus, within

_LOGIND = DBusAddress(
    "/org/freedesktop/login1", bus_name="org.freedesktop.login1", interface="org.freedesktop.login1.Manager"
)
_PREPARE_FOR_SLEEP = MatchRule(
    type="signal", interface="org.freedesktop.login1.Manager", member="PrepareForSleep", path="/org/freedesktop/login1"
)


class Logind:
    """A connection to logind; `connect_logind` opens it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def watch_sleep(
        self, before_sleep: Callable[[], Awaitable[object]], after_sleep: Callable[[], object]
    ) -> None:
        """Await `before_sleep()` before each sleep, which waits for it; call `after_sleep()` after waking.

        logind waits at most its `InhibitDelayMaxSec` (5 s unless changed). Raises `BusUnavailable` when the connection
        to the bus is lost.
        """
        await self._bus.call(message_bus.AddMatch(_PREPARE_FOR_SLEEP))
        lock = await self._inhibit()
        try:
            while True:
                if await self._next_is_sleep():
                    try:
                        await before_sleep()
                    finally:
                        lock.close()  # from here on the machine may sleep
                else:
                    after_sleep()
                    lock.close()
                    lock = await self._inhibit()
        finally:
            lock.close()

    async def _next_is_sleep(self) -> bool:
        """Wait for the next signal: True if the machine will sleep, False if it has woken."""
        while True:
            signal = await self._bus.next_signal()
            if signal.header.fields.get(HeaderFields.member) == "PrepareForSleep":
                return bool(signal.body[0])

    async def _inhibit(self) -> FileDescriptor:
        ask = new_method_call(_LOGIND, "Inhibit", "ssss", ("sleep", "Towline", "close connections cleanly", "delay"))
        lock = (await self._bus.call(ask))[0]
        if not isinstance(lock, FileDescriptor):
            raise BusUnavailable("logind returned no inhibitor lock")
        return lock


@asynccontextmanager
async def connect_logind(address: str = "SYSTEM") -> AsyncIterator[Logind]:
    """Open a connection to logind over a bus (a D-Bus address, or the system's). Raises `BusUnavailable`."""
    async with open_bus(address) as bus:
        with within(PATIENCE):
            await bus.call(message_bus.GetNameOwner(_LOGIND.bus_name))
        yield Logind(bus)
