"""The proxies, as data: configuration, command, and what the client sees of a backend that is dead or mute."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .process import Process, free_port


@dataclass(frozen=True)
class Proxy:
    """A proxy in front of one backend.

    `config` takes `port`, `backend`, `timeout` (the milliseconds that a silent backend or an idle socket is given) and
    `tls`, which is the field of that name or empty. `dead` and `mute` are causes' codes. `cuts_idle`: the timeout is
    for idle sockets too.
    """

    title: str
    part: str
    command: str
    config: str
    tls: str
    dead: str
    mute: str
    cuts_idle: bool = True

    def missing(self) -> str | None:
        """What is not here. Debian keeps it where users' paths do not look."""
        return None if self._program() is not None else f"{self.part} is not installed"

    def version(self) -> str:
        """What is here of it, with its version."""
        option = "version" if self.part == "caddy" else "-v"
        run = subprocess.run([self._program() or self.part, option], capture_output=True, text=True, check=True)
        found = re.search(r"\d+(\.\d+)+", run.stdout + run.stderr)
        return f"{self.part} {found[0] if found else ''}"

    def _program(self) -> str | None:
        return shutil.which(self.part) or shutil.which(self.part, path="/usr/sbin")

    def process(self, folder: Path, backend: int, *, timeout: float, certificate: Path | None = None) -> Process:
        """The proxy for the backend's port, not yet started. `certificate` holds key and chain, for TLS."""
        port = free_port()
        tls = "" if certificate is None else self.tls.format(certificate=certificate)
        config = folder / f"{self.part}-{port}.conf"
        config.write_text(self.config % {"port": port, "backend": backend, "timeout": timeout * 1000, "tls": tls})
        command = self.command.format(program=self._program(), config=config, folder=folder).split()
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
        return Process(command, port, folder, homes)


NGINX: Final = Proxy(
    "nginx",
    "nginx",
    "{program} -p {folder} -e stderr -c {config}",
    """
daemon off;
pid nginx-%(port)d.pid;
worker_processes 1;
events {}
http {
    access_log off;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    map $http_upgrade $connection_upgrade { default upgrade; '' close; }
    server {
        listen 127.0.0.1:%(port)d %(tls)s;
        location / {
            proxy_pass http://127.0.0.1:%(backend)d;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout %(timeout)dms;
        }
    }
}
""",
    tls="ssl http2; ssl_certificate {certificate}; ssl_certificate_key {certificate}",
    dead="http 502",
    mute="http 504",
)
HAPROXY: Final = Proxy(
    "HAProxy",
    "haproxy",
    "{program} -db -f {config}",
    """
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 60s
    timeout server %(timeout)dms
    timeout tunnel %(timeout)dms
frontend towards-clients
    bind 127.0.0.1:%(port)d %(tls)s
    default_backend jobs
backend jobs
    server one 127.0.0.1:%(backend)d
""",
    tls="ssl crt {certificate} alpn h2,http/1.1",
    dead="http 503",
    mute="http 504",
)
CADDY: Final = Proxy(
    "caddy",
    "caddy",
    "{program} run --adapter caddyfile --config {config}",
    """
{
    admin off
    auto_https off
}
http://127.0.0.1:%(port)d {
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:%(backend)d {
        transport http {
            response_header_timeout %(timeout)dms
        }
    }
}
""",
    tls="",
    dead="http 502",
    mute="http 504",
    cuts_idle=False,
)
PROXIES: Final = (NGINX, HAPROXY, CADDY)
