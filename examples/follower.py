"""A job followed in a thread, for toolkits that have an event loop of their own (Qt, Tk).

`told` is called in that thread with each update, and at last with None: it must only hand on what it got.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack

import towline
import towline.blocking
from towline.host import Host


class Follower:
    """Begun by `start`, told of the window by `set_seen`, ended by the job or by `stop`; all from the GUI's thread."""

    def __init__(self, line: towline.blocking.Connection, told: Callable[[towline.AnyUpdate | None], object]) -> None:
        self.line = line
        self.error: towline.TowlineError | None = None
        self._told = told
        self._host: Host | None = None
        self._seen = True
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="follower")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop following, if that has not ended; the job goes on."""
        self.line.cancel()
        self._thread.join()

    def set_seen(self, seen: bool) -> None:
        """Whether anybody sees the window. A level: it may be told again, and before the connection is there."""
        with self._turn:
            self._seen = seen
            self._tell_host()

    def _tell_host(self) -> None:
        if self._host is not None:
            if self._seen:
                self._host.foreground()
            else:
                self._host.background()

    def _set_host(self, host: Host | None) -> None:
        with self._turn:
            self._host = host
            self._tell_host()

    def _follow(self) -> None:
        try:
            with self.line as line, ExitStack() as stack:
                self._set_host(stack.enter_context(towline.blocking.attach(line)))
                stack.callback(self._set_host, None)
                for update in line:
                    self._told(update)
        except towline.Cancelled:
            pass  # `stop` came before the connection was there
        except towline.TowlineError as error:
            self.error = error
        self._told(None)
