"""Follow a job in a thread, for toolkits that run their own event loop (Qt, Tk).

That thread calls `on_update` with each update, and finally with None; the callback should only pass the update to the
GUI's thread.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack

import towline
import towline.blocking
from towline.host import Host


class Follower:
    """Follows a job in a thread until the job ends or `stop` is called. Call its methods from the GUI's thread."""

    def __init__(
        self, line: towline.blocking.Connection, on_update: Callable[[towline.AnyUpdate | None], object]
    ) -> None:
        self.line = line
        self.error: towline.TowlineError | None = None
        self._on_update = on_update
        self._host: Host | None = None
        self._seen = True
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="follower")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop following; the job continues."""
        self.line.cancel()
        self._thread.join()

    def set_seen(self, seen: bool) -> None:
        """Report whether the window is visible, as often as you like, also before the connection exists."""
        with self._turn:
            self._seen = seen
            self._update_host()

    def _update_host(self) -> None:
        if self._host is not None:
            if self._seen:
                self._host.foreground()
            else:
                self._host.background()

    def _set_host(self, host: Host | None) -> None:
        with self._turn:
            self._host = host
            self._update_host()

    def _follow(self) -> None:
        try:
            with self.line as line, ExitStack() as stack:
                self._set_host(stack.enter_context(towline.blocking.attach(line)))
                stack.callback(self._set_host, None)
                for update in line:
                    self._on_update(update)
        except towline.Cancelled:
            pass  # `stop` was called before the connection existed
        except towline.TowlineError as error:
            self.error = error
        self._on_update(None)
