"""Sleep on Windows, from PowerRegisterSuspendResumeNotification. **Not run on that system by the test suite.**

It tells what WM_POWERBROADCAST tells, but to a function on a thread of the system's: that needs no window and no
message loop. Windows waits about 2 s for whoever it told.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ._announced_sleep import AnnouncedSleep

assert sys.platform == "win32"  # for mypy: WinDLL and WINFUNCTYPE are not elsewhere

_PATIENCE: Final = 2.0

# winuser.h
_DEVICE_NOTIFY_CALLBACK: Final = 2
_PBT_APMSUSPEND: Final = 4
_PBT_APMRESUMEAUTOMATIC: Final = 18  # told at each waking; 7 comes besides where somebody is there

_Callback = ctypes.WINFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p)


class _Parameters(ctypes.Structure):
    """DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS."""

    _fields_ = (("callback", _Callback), ("context", ctypes.c_void_p))


@contextmanager
def announced_sleep() -> Iterator[AnnouncedSleep]:
    """Be told of sleep while the block lasts. Raises `OSError`."""
    power = ctypes.WinDLL("powrprof")
    announcer = AnnouncedSleep(_PATIENCE)

    def told(_: int | None, what: int, __: int | None) -> int:
        if what == _PBT_APMSUSPEND:
            announcer.will_sleep()
        elif what == _PBT_APMRESUMEAUTOMATIC:
            announcer.woke()
        return 0

    parameters = _Parameters(_Callback(told), None)
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
