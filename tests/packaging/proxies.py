"""nginx and Caddy in front of a daemon, with the files that ``packaging/`` has for operators.

A proxy runs as this user, on a free port, with all its files in a directory of its own. Only names,
addresses and paths differ from what an operator would have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

import trio

from dapd.server.sockets import reserved_port
from tests.certificates import Authority

PACKAGING = Path(__file__).parents[2] / "packaging"
_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log access.log;
    client_body_temp_path spool/body;
    proxy_temp_path spool/proxy;
    fastcgi_temp_path spool/fastcgi;
    scgi_temp_path spool/scgi;
    uwsgi_temp_path spool/uwsgi;
    include {site};
}}
"""
"""What Debian's nginx.conf is around a site: above all, an access log."""


@dataclass
class Proxy:
    """One that runs, and what it wrote to standard error. ``directory`` has all else."""

    name: str
    directory: Path
    port: int
    stderr: bytearray = field(default_factory=bytearray)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/"

    def written(self) -> bytes:
        """All that it has written but its configuration and the certificates."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        return bytes(self.stderr) + b"".join(
            path.read_bytes() for path in files if path.suffix not in (".pem", ".conf")
        )


@dataclass(frozen=True)
class _Kind:
    """``write`` makes the files and gives the command; ``ready`` is said when it serves."""

    write: Callable[[Path, int, int, Authority], list[str]]
    ready: bytes


def example(name: str, *changes: tuple[str, str]) -> str:
    """The text of an operator's file, with these words replaced, each of which it must have."""
    text = (PACKAGING / name).read_text()
    for old, new in changes:
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def _nginx(directory: Path, port: int, target: int, authority: Authority) -> list[str]:
    site, main = directory / "site.conf", directory / "nginx.conf"
    letsencrypt = "/etc/letsencrypt/live/dap.example.org"
    site.write_text(
        example(
            "nginx.conf",
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("listen [::]:443", f"# listen [::]:{port}"),
            ("server_name dap.example.org", "server_name localhost"),
            ("server 127.0.0.1:8080", f"server 127.0.0.1:{target}"),
            (f"{letsencrypt}/fullchain.pem", str(authority.chain)),
            (f"{letsencrypt}/privkey.pem", str(authority.key)),
            ("/var/log/nginx/error.log", str(directory / "error.log")),
        )
    )
    main.write_text(_NGINX.format(site=site))
    (directory / "spool").mkdir()
    return ["nginx", "-p", str(directory), "-c", str(main), "-e", "stderr"]


def _caddy(directory: Path, port: int, target: int, authority: Authority) -> list[str]:
    config = directory / "Caddyfile.conf"
    site = f"https://127.0.0.1:{port}"
    config.write_text(
        example(
            "Caddyfile",
            ("\n{\n", "\n{\n\tadmin off\n"),
            ("\ndap.example.org {", f"\n{site} {{\n\ttls {authority.chain} {authority.key}"),
            ("reverse_proxy 127.0.0.1:8080 {", f"reverse_proxy 127.0.0.1:{target} {{"),
        )
    )
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]


_KINDS = {
    "nginx": _Kind(_nginx, b"event method"),
    "caddy": _Kind(_caddy, b"serving initial configuration"),
}
NAMES = tuple(_KINDS)


def program(name: str) -> str | None:
    """Where it is installed; Debian has nginx where only root looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


@asynccontextmanager
async def running(
    name: str, directory: Path, target: int, authority: Authority
) -> AsyncIterator[Proxy]:
    """A proxy in front of ``target``, a port of this machine, with a certificate of ``authority``.

    Once it serves, it has no place left where it could put a temporary file.
    """
    directory.mkdir(parents=True)
    with reserved_port() as port:
        proxy = Proxy(name, directory, port)
        kind = _KINDS[name]
        _, *arguments = kind.write(directory, proxy.port, target, authority)
        home = {"HOME": str(directory), "TMPDIR": str(directory / "spool")}
        process = await trio.lowlevel.open_process(
            [str(program(name)), *arguments], stderr=PIPE, env=os.environ | home
        )
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(_read, process, proxy.stderr, kind.ready)
                shutil.rmtree(directory / "spool", ignore_errors=True)
                yield proxy
            finally:
                process.terminate()
                with trio.CancelScope(shield=True):
                    await process.wait()


async def _read(
    process: trio.Process,
    into: bytearray,
    ready: bytes,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    assert process.stderr is not None
    served = False
    async with process.stderr:
        async for piece in process.stderr:
            into += piece
            if ready in into and not served:
                served = True
                task_status.started()
    assert served, into.decode()
