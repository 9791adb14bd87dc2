"""The network path on Windows, from NetworkInformation (NetworkStatusChanged). **The test suite does not run it.**

It needs winrt-Windows.Networking.Connectivity (the extra `host`). Windows checks with its own server whether the
internet is reachable. Its levels mean the same as NetworkManager's (`towline.host`). Behind a captive portal the path
is down. A path without internet access differs from the same path with it.
"""

from __future__ import annotations

from typing import Any

from winrt.windows.networking.connectivity import NetworkConnectivityLevel, NetworkInformation

from .._handover import Handover
from ._path import ANYWHERE, Path
from ._polling import source_address


class NetworkInformationPathSource:
    """Reads the connectivity level after each change, which the system reports on its own thread."""

    def __init__(self) -> None:
        self._handover: Handover[None] = Handover(only_newest=True)
        self._registered = NetworkInformation.add_network_status_changed(self._changed)

    def read(self) -> Path:
        profile = NetworkInformation.get_internet_connection_profile()
        source = next(filter(None, map(source_address, ANYWHERE)), None)
        if profile is None or source is None:
            # Windows sees no network; a virtual adapter may still have a route, as on Linux.
            return Path(up=source is not None, identity=source)
        level = profile.get_network_connectivity_level()
        if level == NetworkConnectivityLevel.CONSTRAINED_INTERNET_ACCESS:
            return Path(up=False)
        adapter = profile.network_adapter
        name = "" if adapter is None else str(adapter.network_adapter_id)
        limited = "" if level == NetworkConnectivityLevel.INTERNET_ACCESS else ", limited"
        return Path(up=True, identity=f"{name} {source}{limited}")

    async def wait_hint(self) -> None:
        await self._handover.take()

    def close(self) -> None:
        """Stop listening for changes."""
        NetworkInformation.remove_network_status_changed(self._registered)
        self._handover.close()

    def _changed(self, _: Any) -> None:
        self._handover.put(None)
