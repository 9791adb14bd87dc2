"""The network path on macOS, from the Network framework (nw_path_monitor). **The test suite does not run it.**

It needs pyobjc-framework-Network and pyobjc-framework-libdispatch (the extra `host`).
"""

from __future__ import annotations

from typing import Any, Final

import libdispatch
import Network

from .._handover import Handover
from ._path import ANYWHERE, Path
from ._polling import source_address

_UNSATISFIED: Final = 2  # nw_path_status_t; "satisfiable" (3) means that connecting would open the path


class NetworkFrameworkPathSource:
    """Follows the system's path monitor, which calls back on a dispatch queue."""

    def __init__(self) -> None:
        self._handover: Handover[Path] = Handover(only_newest=True)
        # The socket library's answer, used until the monitor reports, soon after its start.
        self._path = Path(up=_source() is not None)
        self._monitor = Network.nw_path_monitor_create()
        self._queue = libdispatch.dispatch_queue_create(b"towline.path", None)
        Network.nw_path_monitor_set_queue(self._monitor, self._queue)
        Network.nw_path_monitor_set_update_handler(self._monitor, self._updated)
        Network.nw_path_monitor_start(self._monitor)

    def read(self) -> Path:
        return self._path

    async def wait_hint(self) -> None:
        self._path = await self._handover.take()

    def close(self) -> None:
        """Stop the monitor and drop its pending reports."""
        Network.nw_path_monitor_cancel(self._monitor)
        self._handover.close()

    def _updated(self, path: Any) -> None:
        if Network.nw_path_get_status(path) == _UNSATISFIED:
            self._handover.put(Path(up=False))
            return
        names: list[str] = []

        def take_first(interface: Any) -> bool:
            names.append(Network.nw_interface_get_name(interface).decode("ascii", "replace"))
            return False  # interfaces come in order of preference; one is enough

        Network.nw_path_enumerate_interfaces(path, take_first)
        self._handover.put(Path(up=True, identity=" ".join([*names, _source() or ""])))


def _source() -> str | None:
    return next(filter(None, map(source_address, ANYWHERE)), None)
