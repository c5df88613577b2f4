"""A file system of its own for a daemon's state directory: small, or read-only, also without root.

It is a tmpfs in a user and mount namespace, which a process that does nothing else keeps. Daemons
enter that namespace when they start; tests reach its files through ``/proc``.

    python tests/faults/small_disk.py hold DIRECTORY OPTIONS
    python tests/faults/small_disk.py remount PID DIRECTORY ro|rw|OPTIONS
    python tests/faults/small_disk.py dapd PID [COMMAND...]
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import pause

import trio

from tests import forks
from tests.processes.daemons import DaemonProcess

_NEW_MOUNTS, _NEW_USERS = 0x20000, 0x10000000
_READ_ONLY, _REMOUNT = 1, 32
_REMOUNTED = {"ro": (_READ_ONLY, ""), "rw": (0, "")}


@dataclass(frozen=True)
class SmallDisk:
    """The file system that a daemon's state directory is on; ``seen`` is that directory."""

    directory: Path
    holder: int

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.holder}/root{self.directory}")

    @property
    def program(self) -> tuple[str, ...]:
        """What ``DaemonProcess.start`` and ``forks.run`` take, in place of ``-m dapd``."""
        return __file__, "dapd", str(self.holder)

    def fill(self, leave: int = 0) -> None:
        """Another program takes all its room but ``leave`` bytes."""
        with (self.seen / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                if file.write(bytes(4096)) < 4096:
                    break
        size = (self.seen / "ballast").stat().st_size
        os.truncate(self.seen / "ballast", size - leave)

    def make_room(self) -> None:
        (self.seen / "ballast").unlink()

    async def remount(self, how: str) -> None:
        """``rw`` or other options of a tmpfs, or ``ro``, while nobody has a file open to write."""
        status, _, said = await forks.run(__file__, "remount", self.holder, self.directory, how)
        assert status == 0, said


@asynccontextmanager
async def small_disk(
    daemon: DaemonProcess, size: int, inodes: int = 1000
) -> AsyncIterator[SmallDisk]:
    """Move its state directory to a file system of ``size`` bytes, and back at the end; neither the
    daemon nor anybody else has a file of it open then.
    """
    directory = daemon.database.parent
    options = f"size={size},nr_inodes={inodes},mode=700"
    process = await forks.start_reading(__file__, "hold", directory, options)
    assert process.stdout is not None
    try:
        said = await process.stdout.receive_some()
        assert said == b"ready", said
        disk = SmallDisk(directory, process.pid)
        yield disk
        for path in directory.iterdir():
            path.unlink()
        shutil.copytree(disk.seen, directory, dirs_exist_ok=True)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


def _hold(directory: Path, options: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    _call("unshare", _NEW_USERS | _NEW_MOUNTS)
    for name, text in (
        ("uid_map", f"{uid} {uid} 1"),
        ("setgroups", "deny"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        Path("/proc/self", name).write_text(text)
    _mount(directory, 0, options)
    for name, content in files.items():
        path = directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
    os.write(1, b"ready")
    pause()


def _enter(holder: int) -> None:
    for name, kind in (("user", _NEW_USERS), ("mnt", _NEW_MOUNTS)):
        with Path(f"/proc/{holder}/ns/{name}").open() as namespace:
            _call("setns", namespace.fileno(), kind)


def _mount(directory: Path, flags: int, options: str = "") -> None:
    _call("mount", b"tmpfs", os.fsencode(directory), b"tmpfs", flags, options.encode())


def _call(name: str, *arguments: int | bytes) -> None:
    """A function of the C library; Python 3.11 has none for these."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", path, options]:
            _hold(Path(path), options)
        case ["remount", number, path, how]:
            _enter(int(number))
            flags, options = _REMOUNTED.get(how, (0, how))
            _mount(Path(path), _REMOUNT | flags, options)
        case ["dapd", number, *words]:
            from dapd.cli import main
            from tests.faults import short_leases

            _enter(int(number))
            short_leases.shorten()  # a lease that can't be given back on a full disk has to end
            main(words)
        case wrong:
            sys.exit(f"not a command: {wrong}")
