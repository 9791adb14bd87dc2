"""Follow a job in a Tk window: in the background while the window is withdrawn or iconified.

    python examples/tk_watch.py wss://api.example/ws/progress JOB        # the token is in TOWLINE_TOKEN

Only Tk's own thread may call Tk, so the follower puts updates into a queue that the window polls while it is visible.
"""

import os
import sys
import tkinter
from queue import Empty, SimpleQueue
from tkinter import ttk

from follower import Follower

import towline
import towline.blocking

EVERY = 50  # milliseconds


class Window(tkinter.Tk):
    """A window that follows one job as soon as it is created, and closes when the job ends."""

    def __init__(self, line: towline.blocking.Connection) -> None:
        super().__init__()
        self.bar = ttk.Progressbar(self, maximum=1.0)
        self.bar.pack(fill="x")
        self.item = ttk.Label(self)
        self.item.pack()
        self.updates: SimpleQueue[towline.AnyUpdate | None] = SimpleQueue()
        self.follower = Follower(line, self.updates.put)
        self.look_again: str | None = None
        self.bind("<Map>", self.shown)
        self.bind("<Unmap>", self.hidden)
        self.protocol("WM_DELETE_WINDOW", self.leave)
        self.follower.start()

    def look(self) -> None:
        self.look_again = self.after(EVERY, self.look)
        while True:
            try:
                update = self.updates.get_nowait()
            except Empty:
                return
            if update is None:
                self.leave()
                return
            self.take(update)

    def take(self, update: towline.AnyUpdate) -> None:
        if isinstance(update, towline.Progress):
            if update.fraction is not None:
                self.bar["value"] = update.fraction
            self.item["text"] = towline.escape(update.current_item or "")

    def leave(self) -> None:
        self.pause()
        self.follower.stop()
        self.destroy()

    # --- the window's own host -----------------------------------------------------------------------------------

    def shown(self, event: tkinter.Event) -> None:
        if event.widget is self and self.look_again is None:
            self.follower.set_seen(True)
            self.look()

    def hidden(self, event: tkinter.Event) -> None:
        if event.widget is self:
            self.pause()
            self.follower.set_seen(False)

    def pause(self) -> None:
        if self.look_again is not None:
            self.after_cancel(self.look_again)
            self.look_again = None


if __name__ == "__main__":
    url, job = sys.argv[1:]
    window = Window(towline.blocking.Connection(url, job=job, token=os.environ["TOWLINE_TOKEN"]))
    window.mainloop()
    print("it ended:", window.follower.error or window.follower.line.outcome)
