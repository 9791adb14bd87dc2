"""Follow a job in a Qt window (PySide6), in the background while it is hidden or minimised or the app is suspended.

python examples/qt_watch.py wss://api.example/ws/progress JOB        # the token is in TOWLINE_TOKEN
"""

import os
import sys

from follower import Follower
from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import QCloseEvent, QGuiApplication, QHideEvent, QShowEvent
from PySide6.QtWidgets import QApplication, QLabel, QProgressBar, QVBoxLayout, QWidget

import towline
import towline.blocking


class Window(QWidget):
    """A window that follows one job as soon as it is created, and closes when the job ends."""

    # Any thread may emit a signal; the receiver runs in the window's thread.
    updated = Signal(object)

    def __init__(self, line: towline.blocking.Connection) -> None:
        super().__init__()
        self.bar = QProgressBar(maximum=1000)
        self.item = QLabel(textFormat=Qt.TextFormat.PlainText)
        layout = QVBoxLayout(self)
        layout.addWidget(self.bar)
        layout.addWidget(self.item)
        self.updated.connect(self.take)
        self.follower = Follower(line, self.updated.emit)
        self.follower.start()
        QGuiApplication.instance().applicationStateChanged.connect(self.look)

    def take(self, update: towline.AnyUpdate | None) -> None:
        if isinstance(update, towline.Progress):
            if update.fraction is not None:
                self.bar.setValue(round(1000 * update.fraction))
            self.item.setText(towline.escape(update.current_item or ""))
        elif update is None:
            self.close()

    # --- the window's own host -----------------------------------------------------------------------------------

    def look(self) -> None:
        state = QGuiApplication.applicationState()
        away = state in (Qt.ApplicationState.ApplicationSuspended, Qt.ApplicationState.ApplicationHidden)
        self.follower.set_seen(self.isVisible() and not self.isMinimized() and not away)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.look()

    def hideEvent(self, event: QHideEvent) -> None:
        super().hideEvent(event)
        self.look()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.WindowStateChange:
            self.look()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.follower.stop()
        super().closeEvent(event)


if __name__ == "__main__":
    url, job = sys.argv[1:]
    application = QApplication()
    window = Window(towline.blocking.Connection(url, job=job, token=os.environ["TOWLINE_TOKEN"]))
    window.show()
    application.exec()
    print("it ended:", window.follower.error or window.follower.line.outcome)
