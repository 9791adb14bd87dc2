"""Sleep on Windows, from PowerRegisterSuspendResumeNotification. **The test suite does not run it.**

It reports the same as WM_POWERBROADCAST, but to a function on a system thread, which needs no window or message loop.
Windows waits about 2 s for each program that it notified.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ._announced import AnnouncedSleep

assert sys.platform == "win32"  # for mypy: WinDLL and WINFUNCTYPE exist only here

_PATIENCE: Final = 2.0

# winuser.h
_DEVICE_NOTIFY_CALLBACK: Final = 2
_PBT_APMSUSPEND: Final = 4
_PBT_APMRESUMEAUTOMATIC: Final = 18  # sent at each waking; 7 is sent too if a user is present

_Callback = ctypes.WINFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p)


class _Parameters(ctypes.Structure):
    """The struct DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS."""

    _fields_ = (("callback", _Callback), ("context", ctypes.c_void_p))


@contextmanager
def announced_sleep() -> Iterator[AnnouncedSleep]:
    """Receive sleep announcements while the block lasts. Raises `OSError`."""
    power = ctypes.WinDLL("powrprof")
    announcer = AnnouncedSleep(_PATIENCE)

    def on_power_event(_: int | None, what: int, __: int | None) -> int:
        if what == _PBT_APMSUSPEND:
            announcer.will_sleep()
        elif what == _PBT_APMRESUMEAUTOMATIC:
            announcer.woke()
        return 0

    parameters = _Parameters(_Callback(on_power_event), None)
    handle = ctypes.c_void_p()
    error = power.PowerRegisterSuspendResumeNotification(
        _DEVICE_NOTIFY_CALLBACK, ctypes.byref(parameters), ctypes.byref(handle)
    )
    if error:
        announcer.close()
        raise ctypes.WinError(error)
    try:
        yield announcer
    finally:
        announcer.close()
        power.PowerUnregisterSuspendResumeNotification(handle)
