"""The files of examples/hub, as they are: the program behind nginx and Caddy, the unit, and the image's commands.

nginx's file has fixed addresses, so the port and the path of the socket are replaced; Caddy's has variables for them.
There is no Docker here: the image is not built, but its program and its command are run with other addresses.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from interop.process import Process, free_port

import towline
from towline.protocols import Towline

EXAMPLES = Path(__file__).parents[3] / "examples" / "hub"
DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "hub.md"
SOCKET = "/run/towline/hub.sock"
NGINX = """
daemon off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    include {site};
}}
"""


def start_command() -> list[str]:
    """What the unit runs, with the Python of the tests."""
    [line] = re.findall(r"^ExecStart=(.*)$", (EXAMPLES / "towline.service").read_text(), re.MULTILINE)
    program, *arguments = shlex.split(line)
    assert Path(program).name == "towline"
    return [sys.executable, "-P", "-m", "towline", *arguments]


@contextlib.contextmanager
def running(folder: Path, command: list[str], *, fds: tuple[int, ...] = (), **environment: str) -> Iterator[str]:
    """Run a hub in a folder of its data; gives where it listens."""
    variables = {**os.environ, "PYTHONPATH": str(EXAMPLES), **environment}
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, pass_fds=fds
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def socket_of_the_unit(folder: Path) -> Iterator[tuple[Path, list[str], int]]:
    """What systemd does: the socket is open before the hub starts, which gets it as a descriptor."""
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    assert re.findall(r"^ListenStream=(.*)$", (EXAMPLES / "towline.socket").read_text(), re.MULTILINE) == [SOCKET]
    path = folder / "hub.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)  # as systemd's SocketMode
        listener.listen()
        command = start_command()
        assert command[-4:-2] == ["--fd", "3"]  # systemd's first
        yield path, [str(listener.fileno()) if part == "3" else part for part in command], listener.fileno()


@contextlib.contextmanager
def hub_of_the_unit(folder: Path) -> Iterator[Path]:
    with socket_of_the_unit(folder) as (path, command, descriptor):
        with running(folder, command, fds=(descriptor,)):
            yield path


def check_site(url: str) -> None:
    """A user starts a job through the proxy, follows it over a socket and over an event stream, and cancels nothing."""
    with httpx.Client(base_url=url, timeout=30) as http:
        headers = {"content-type": "text/csv", "x-user": "ann"}
        refused = http.post("/jobs/api/sum", content=b"a,1\n", headers={"content-type": "text/csv"})
        assert refused.status_code == 403
        foreign = http.post("/jobs/api/sum", content=b"a,1\n", headers=headers | {"origin": "https://evil.example"})
        assert foreign.status_code == 403
        large = b"".join(b"item,%d\n" % number for number in range(300_000))  # above nginx's usual 1 MiB
        assert http.post("/jobs/api/sum", content=large, headers=headers).status_code == 202
        answer = http.post("/jobs/api/sum", content=b"a,1\nb,20\nc,300\n", headers=headers | {"origin": url})
        assert answer.status_code == 202
        started = answer.json()
        path = f"/jobs/api/jobs/{started['jobId']}/events"
        events = http.get(path, headers={"authorization": f"Bearer {started['token']}"}).text
    messages = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert messages[-1]["payload"]["total"] == 321

    async def follow() -> Any:
        target = Towline(f"{url.replace('http', 'ws', 1)}/jobs/ws/progress", started["jobId"])
        async with towline.Connection(target, token=started["token"]) as line:
            return await line.result()

    outcome = anyio.run(follow)
    assert isinstance(outcome, towline.JobComplete)


@contextlib.contextmanager
def started(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[None]:
    proxy = Process(command, port, folder, environment)
    proxy.start()
    try:
        yield
    finally:
        proxy.end()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine (apt-get install nginx-light)")
def test_behind_nginx(tmp_path: Path) -> None:
    port = free_port()
    with hub_of_the_unit(tmp_path) as path:
        site = (EXAMPLES / "nginx.conf").read_text()
        for old, new in ((f"unix:{SOCKET}", f"unix:{path}"), ("listen 80;", f"listen 127.0.0.1:{port};")):
            assert site.count(old) == 1
            site = site.replace(old, new)
        (tmp_path / "site.conf").write_text(site)
        (tmp_path / "nginx.conf").write_text(NGINX.format(site=tmp_path / "site.conf"))
        # Its workers run as another user, as on a real machine.
        for folder in (tmp_path, *tmp_path.parents):
            with contextlib.suppress(PermissionError):
                folder.chmod(folder.stat().st_mode | 0o011)
        with started(["nginx", "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"], port, tmp_path):
            check_site(f"http://127.0.0.1:{port}")


@pytest.mark.skipif(shutil.which("caddy") is None, reason="no Caddy on this machine (apt-get install caddy)")
def test_behind_caddy(tmp_path: Path) -> None:
    port, admin = free_port(), free_port()
    with hub_of_the_unit(tmp_path) as path:
        variables = {
            "TOWLINE_SITE": f"http://127.0.0.1:{port}",
            "TOWLINE_HUB": f"unix/{path}",
            "CADDY_ADMIN": f"127.0.0.1:{admin}",
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
            "XDG_DATA_HOME": str(tmp_path),
        }
        command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(EXAMPLES / "Caddyfile")]
        with started(command, port, tmp_path, **variables):
            check_site(f"http://127.0.0.1:{port}")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (apt-get install systemd)")
def test_the_unit_is_well_formed(tmp_path: Path) -> None:
    """systemd-analyze complains about unknown settings; only the program's path is another one here."""
    text = (EXAMPLES / "towline.service").read_text().replace("/srv/towline/venv/bin/towline", sys.executable)
    (tmp_path / "towline.service").write_text(text)
    shutil.copy(EXAMPLES / "towline.socket", tmp_path)
    units = [str(tmp_path / name) for name in ("towline.socket", "towline.service")]
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")
    (tmp_path / "towline.service").write_text(text.replace("StateDirectory=", "StatDirectory="))
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "towline.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "StatDirectory" in answer.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_deploy_the_hub(tmp_path: Path) -> None:
    """The page in docs/how-to: its files are there, its check works, and nobody is refused while the hub restarts."""
    (script,) = re.findall(r"^```sh\n(.*?)^```$", (DOCS / "how-to" / "deploy-the-hub.md").read_text(), re.M | re.S)
    for name in re.findall(r"\b(?:app\.py|towline\.(?:socket|service))\b", script):
        assert (EXAMPLES / name).is_file()
    assert "/srv/towline/venv/bin/towline" in (EXAMPLES / "towline.service").read_text()
    check = next(line for line in script.splitlines() if line.startswith("curl"))
    with socket_of_the_unit(tmp_path) as (path, command, descriptor):
        check = ["curl", "--silent", "--show-error", *shlex.split(check.replace(SOCKET, str(path)))[1:]]
        with running(tmp_path, command, fds=(descriptor,)):
            assert subprocess.run(check, timeout=30).returncode == 0
        with subprocess.Popen(check) as asks:  # while no hub runs
            with running(tmp_path, command, fds=(descriptor,)):
                assert asks.wait(30) == 0


def test_the_commands_of_the_image(tmp_path: Path) -> None:
    """The Dockerfile's command and health check, as JSON lists, outside of a container."""
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    text = (EXAMPLES / "Dockerfile").read_text()
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    [health] = re.findall(r"^HEALTHCHECK CMD (\[.*\])$", text, re.MULTILINE)
    [copied] = re.findall(r"^COPY (\S+) /srv/towline/$", text, re.MULTILINE)
    assert (EXAMPLES / copied).is_file()
    port = str(free_port())
    program, *arguments = json.loads(command)
    assert program == "towline"
    arguments = [{"0.0.0.0": "127.0.0.1", "8470": port}.get(part, part) for part in arguments]
    python, *check = [part.replace("8470", port) for part in json.loads(health)]
    assert python == "python"
    assert "ENV PYTHONPATH=/srv/towline" in text
    with running(tmp_path, [sys.executable, "-P", "-m", "towline", *arguments]) as place:
        assert place == f"http://127.0.0.1:{port}"
        assert subprocess.run([sys.executable, *check], timeout=50).returncode == 0
        assert (tmp_path / "hub.db").is_file()  # in the working directory, which is the volume
    assert subprocess.run([sys.executable, *check], capture_output=True, timeout=50).returncode != 0


def test_the_program_is_the_one_of_the_page() -> None:
    _, program = (EXAMPLES / "app.py").read_text().split('"""\n\n', 1)
    assert f"```python\n{program}```\n" in PAGE.read_text()
