"""Programs in processes of their own, forked from one that has imported dapd.

Most of what a command takes is the import of its modules, and a test run starts a thousand. What
is forked is a process like any other, with its own arguments, environment, directory, streams and
end; its modules are there already. Not for a test of the start itself: ``tests/packaging``,
``tests/test_demo.py``, ``tests/test_docs.py`` and ``tests/cli/test_start.py`` start Python anew.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import trio

ROOT = Path(__file__).parents[1]
_LARGEST_REQUEST = 1 << 20
_STATUS = struct.Struct("i")


class Fork:
    """A process that was forked; as ``trio.Process``."""

    def __init__(self, pid: int, control: trio.socket.SocketType, pidfd: int) -> None:
        self.pid = pid
        self.stdout: trio.lowlevel.FdStream | None = None
        self.returncode: int | None = None
        self._control = control
        self._pidfd = pidfd
        self._waiting = trio.Lock()

    async def wait(self) -> int:
        """Until its end; the exit status, or less than 0 for the signal that ended it."""
        async with self._waiting:
            if self.returncode is None:
                (self.returncode,) = _STATUS.unpack(await self._control.recv(_STATUS.size))
                self._control.close()
                os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def start(*program: object, stdin: int, stdout: int, stderr: int) -> Fork:
    """Start ``PYTHON PROGRAM`` (``-m MODULE ...`` or ``FILE ...``) on these file descriptors, where
    PYTHON is ``sys.executable``.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [str(word) for word in program]
    request = json.dumps([words, str(Path.cwd()), dict(os.environ)]).encode()
    with theirs:
        fds = [stdin, stdout, stderr, theirs.fileno()]
        socket.send_fds(_parent(sys.executable), [request], fds)
    control = trio.socket.from_stdlib_socket(ours)
    await trio.lowlevel.wait_readable(control)
    data, (pidfd,), *_ = socket.recv_fds(ours, _STATUS.size, 1)
    (pid,) = _STATUS.unpack(data)
    return Fork(pid, control, pidfd)


async def start_reading(*program: object) -> Fork:
    """As ``start``; its ``stdout`` is what it writes there and to standard error."""
    read, write = os.pipe()
    with _devnull() as null:
        try:
            fork = await start(*program, stdin=null, stdout=write, stderr=write)
        finally:
            os.close(write)
    fork.stdout = trio.lowlevel.FdStream(read)
    return fork


async def run(*program: object, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run ``python PROGRAM`` to its end: exit status, standard output, standard error."""
    written = [bytearray(), bytearray()]
    (read_in, write_in), *outs = os.pipe(), os.pipe(), os.pipe()
    theirs = [read_in, *(write for _, write in outs)]
    try:
        fork = await start(*program, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2])
    finally:
        for fd in theirs:
            os.close(fd)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, trio.lowlevel.FdStream(write_in), stdin)
            for into, (read, _) in zip(written, outs, strict=True):
                nursery.start_soon(_read, trio.lowlevel.FdStream(read), into)
    except BaseException:
        fork.kill()
        with trio.CancelScope(shield=True):
            await fork.wait()
        raise
    stdout, stderr = (bytes(each).decode() for each in written)
    return await fork.wait(), stdout, stderr


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):  # it has ended, or reads nothing
            await stream.send_all(data)


async def _read(stream: trio.lowlevel.FdStream, into: bytearray) -> None:
    async with stream:
        async for piece in stream:
            into += piece


@contextmanager
def _devnull() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@cache
def _parent(python: str) -> socket.socket:
    """Where requests go to the process of this interpreter that forks; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [python, "-m", "tests.forks", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class _Parent:
    """The process that forks: answers each request with a process, and tells of its end."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._ends: dict[int, socket.socket] = {}
        """By pidfd: who is told."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)

    def serve(self) -> list[str] | None:
        """The words of a program that this process, a fork, is to run; ``None`` at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    self._tell_end(key.fd)
                    continue
                message, fds, *_ = socket.recv_fds(self._requests, _LARGEST_REQUEST, 4)
                if not message:
                    return None
                words = self._fork(message, fds)
                if words is not None:
                    return words

    def _fork(self, message: bytes, fds: list[int]) -> list[str] | None:
        threads = list(Path("/proc/self/task").iterdir())
        assert len(threads) == 1, "a fork has one thread, and every lock that another one held"
        *streams, control = fds
        pid = os.fork()
        if pid == 0:
            words, directory, environment = json.loads(message)
            self._forget_all()
            os.close(control)
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
                os.close(fd)
            os.chdir(directory)
            os.environ.clear()
            os.environ.update(environment)
            return [str(word) for word in words]
        for fd in streams:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._ends[pidfd] = to = socket.socket(fileno=control)
        self._selector.register(pidfd, selectors.EVENT_READ)
        socket.send_fds(to, [_STATUS.pack(pid)], [pidfd])
        return None

    def _tell_end(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert ended is not None
        exited = ended.si_code == os.CLD_EXITED
        os.close(pidfd)
        with self._ends.pop(pidfd) as to, suppress(BrokenPipeError):  # nobody waits for it
            to.send(_STATUS.pack(ended.si_status if exited else -ended.si_status))

    def _forget_all(self) -> None:
        self._selector.close()
        self._requests.close()
        for pidfd, to in self._ends.items():
            os.close(pidfd)
            to.close()


def _import_all() -> None:
    """What daemons and commands import, as the console script does it."""
    from dapd import app, cli, client, collector  # noqa: F401

    for module in pkgutil.walk_packages(cli.__path__, "dapd.cli."):
        __import__(module.name)


def _main() -> None:
    _import_all()
    gc.freeze()
    words = _Parent(socket.socket(fileno=int(sys.argv[1]))).serve()
    if words is None:
        return
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _main()
