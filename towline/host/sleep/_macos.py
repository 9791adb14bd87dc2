"""Sleep on macOS, from IOKit (IORegisterForSystemPower). **The test suite does not run it.**

NSWorkspace reports the same, but only if the main thread runs a Cocoa run loop, which programs on anyio do not. IOKit
calls back on a dispatch queue, and needs only what the system has. It waits up to 30 s for each program that it
notified.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ._announced import AnnouncedSleep

#: Longer than closing a connection takes, and well below the system's 30 s.
_PATIENCE: Final = 5.0

# IOKit/IOMessage.h: iokit_common_msg(0x270), (0x280), (0x300)
_CAN_SLEEP: Final = 0xE0000270
_WILL_SLEEP: Final = 0xE0000280
_HAS_POWERED_ON: Final = 0xE0000300

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _load() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    iokit = ctypes.CDLL("/System/Library/Frameworks/IOKit.framework/IOKit")
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    iokit.IORegisterForSystemPower.argtypes = [pointer, ctypes.POINTER(pointer), _Callback, ctypes.POINTER(number)]
    iokit.IORegisterForSystemPower.restype = number
    iokit.IONotificationPortSetDispatchQueue.argtypes = [pointer, pointer]
    iokit.IONotificationPortSetDispatchQueue.restype = None
    iokit.IOAllowPowerChange.argtypes = [number, ctypes.c_ssize_t]
    iokit.IODeregisterForSystemPower.argtypes = [ctypes.POINTER(number)]
    iokit.IOServiceClose.argtypes = [number]
    iokit.IONotificationPortDestroy.argtypes = [pointer]
    iokit.IONotificationPortDestroy.restype = None
    dispatch = ctypes.CDLL(None)
    dispatch.dispatch_queue_create.argtypes = [ctypes.c_char_p, pointer]
    dispatch.dispatch_queue_create.restype = pointer
    dispatch.dispatch_sync_f.argtypes = [pointer, pointer, _Work]
    dispatch.dispatch_sync_f.restype = None
    dispatch.dispatch_release.argtypes = [pointer]
    dispatch.dispatch_release.restype = None
    return iokit, dispatch


@contextmanager
def announced_sleep() -> Iterator[AnnouncedSleep]:
    """Receive sleep announcements while the block lasts. Raises `OSError`."""
    iokit, dispatch = _load()
    announcer = AnnouncedSleep(_PATIENCE)
    port, notifier = ctypes.c_void_p(), ctypes.c_uint32()

    def on_power_event(_: int | None, __: int, message: int, argument: int | None) -> None:
        if message == _HAS_POWERED_ON:
            announcer.woke()
        elif message in (_CAN_SLEEP, _WILL_SLEEP):
            if message == _WILL_SLEEP:
                announcer.will_sleep()
            iokit.IOAllowPowerChange(root, argument or 0)

    callback = _Callback(on_power_event)
    root = iokit.IORegisterForSystemPower(None, ctypes.byref(port), callback, ctypes.byref(notifier))
    if not root:
        announcer.close()
        raise OSError("IOKit does not report sleep here")
    queue = dispatch.dispatch_queue_create(b"towline.sleep", None)
    iokit.IONotificationPortSetDispatchQueue(port, queue)
    try:
        yield announcer
    finally:
        announcer.close()
        iokit.IODeregisterForSystemPower(ctypes.byref(notifier))
        # The queue is serial: after this call no callback can run any more, and ours may be freed.
        dispatch.dispatch_sync_f(queue, None, _Work(lambda _: None))
        iokit.IOServiceClose(root)
        iokit.IONotificationPortDestroy(port)
        dispatch.dispatch_release(queue)
