"""Follow a job in the terminal with Textual: in the background without focus, disconnected while stopped by Ctrl-Z.

    python examples/textual_watch.py wss://api.example/ws/progress JOB        # the token is in TOWLINE_TOKEN

Textual runs on asyncio, so the connection lives in the application's own loop.
"""

import os
import sys

from textual.app import App, ComposeResult
from textual.widgets import Label, ProgressBar

import towline
import towline.host


class Watch(App[towline.Outcome]):
    """Follows one job until it ends. Ctrl-Q quits earlier; the job continues."""

    BINDINGS = [("ctrl+z", "suspend_process", "Suspend")]  # noqa: RUF012 - as Textual has it

    def __init__(self, line: towline.Connection) -> None:
        super().__init__()
        self.line = line
        self.host: towline.host.Host | None = None

    def compose(self) -> ComposeResult:
        yield Label("idle", id="state", markup=False)
        yield ProgressBar(total=1.0)
        yield Label("", id="item", markup=False)

    def on_mount(self) -> None:
        self.app_resume_signal.subscribe(self, lambda _: self.host and self.host.resume())
        self.run_worker(self.follow())

    async def follow(self) -> None:
        try:
            async with self.line as line, towline.host.attach(line) as self.host:
                async for update in line:
                    self.show(update)
        except towline.TowlineError as error:
            self.exit(message=towline.escape(str(error)), return_code=1)
        else:
            self.exit(line.outcome)

    def show(self, update: towline.AnyUpdate) -> None:
        self.query_one("#state", Label).update(self.line.state.value)
        if isinstance(update, towline.Progress):
            if update.fraction is not None:
                self.query_one(ProgressBar).update(progress=update.fraction)
            self.query_one("#item", Label).update(towline.escape(update.current_item or ""))

    # --- the application's own host ------------------------------------------------------------------------------

    def on_app_blur(self) -> None:
        if self.host is not None:
            self.host.background()

    def on_app_focus(self) -> None:
        if self.host is not None:
            self.host.foreground()

    async def action_suspend_process(self) -> None:
        if self.host is not None:
            await self.host.suspend()  # a stopped process cannot answer pings, so disconnect first
        super().action_suspend_process()


if __name__ == "__main__":
    url, job = sys.argv[1:]
    app = Watch(towline.Connection(url, job=job, token=os.environ["TOWLINE_TOKEN"]))
    print("it ended:", app.run())
    sys.exit(app.return_code)
