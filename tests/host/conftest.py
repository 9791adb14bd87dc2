"""A private message bus: a real dbus-daemon."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
  </policy>
</busconfig>
"""


@dataclass
class PrivateBus:
    """A bus at `address`, until `stop`."""

    address: str
    daemon: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.daemon.terminate()
        self.daemon.wait()


@pytest.fixture
def private_bus(tmp_path: Path) -> Iterator[PrivateBus]:
    if shutil.which("dbus-daemon") is None:
        pytest.skip("needs dbus-daemon (Debian: dbus)")
    path = tmp_path / "bus"
    configuration = tmp_path / "bus.conf"
    configuration.write_text(CONFIGURATION.format(path=path), encoding="utf-8")
    command = ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        bus = PrivateBus(f"unix:path={path}", daemon)
        yield bus
        bus.stop()


@pytest.fixture
def bus(private_bus: PrivateBus) -> str:
    """The address of a private bus."""
    return private_bus.address
