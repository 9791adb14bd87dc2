"""Reports the machine's state to a connection: network path, sleep, and background.

    async with towline.Connection(url, job="j1", token=token) as line, towline.host.attach(line) as host:
        ...
        host.background()       # the window is hidden; call host.foreground() when it is visible again

You can follow a job without it. It lets the connection notice changes sooner and use less power in the background.
Import it explicitly: `import towline.host`.
"""

from ._attach import Host, Source, attach
from ._interrupts import Interruption, watch_interrupts
from .path._monitor import PathMonitor, system_path_source
from .path._netlink import NetlinkPathSource
from .path._path import Path, PathSource
from .path._polling import PollingPathSource
from .sleep._suspend import suspended_seconds, watch_suspension

__all__ = [
    "Host",
    "Interruption",
    "NetlinkPathSource",
    "Path",
    "PathMonitor",
    "PathSource",
    "PollingPathSource",
    "Source",
    "attach",
    "suspended_seconds",
    "system_path_source",
    "watch_interrupts",
    "watch_suspension",
]
