"""Refuse databases on network file systems, where SQLite can lose commits.

There, the server decides what locks and ``fsync`` mean, and processes can't share memory, which the
WAL needs: commits get lost, or two processes write at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dapd.errors import UnfitDatastore

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")

_FUSE = "ceph ceph-fuse davfs2 gcsfuse glusterfs juicefs rclone s3fs smbnetfs sshfs"
_KERNEL = "9p afs beegfs ceph cifs coda davfs glusterfs lustre ncpfs nfs nfs4 orangefs smb3 smbfs"
NETWORK_FILE_SYSTEMS = frozenset([*_KERNEL.split(), *(f"fuse.{name}" for name in _FUSE.split())])
"""Their names in Linux. File systems on a block device that several machines share (gfs2, ocfs2)
are not among them: their locks and their ``fsync`` are real.
"""


class Mount(NamedTuple):
    """A mounted file system: its mount point and its type."""

    point: Path
    type: str


def parse_mounts(text: str) -> list[Mount]:
    """Parse a ``/proc/PID/mountinfo`` (proc(5)) into its mounts, in order, skipping other lines."""
    mounts = []
    for line in text.splitlines():
        mount, separator, file_system = line.partition(" - ")
        fields, types = mount.split(" "), file_system.split(" ")
        if separator and len(fields) > 4:
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
            mounts.append(Mount(Path(point), types[0]))
    return mounts


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount that an absolute path is on: the longest match, the last of equal ones."""
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)


def network_mount(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount of ``path`` if it is one of ``NETWORK_FILE_SYSTEMS``.

    If ``/`` is 9p too, 9p is not refused: a sandbox (gVisor) shows its container's own files this
    way, and implements locks and shared memory itself.
    """
    mount = mount_of(path, mounts)
    if mount is None or mount.type not in NETWORK_FILE_SYSTEMS:
        return None
    root = mount_of(Path("/"), mounts)
    return None if mount.type == "9p" and root is not None and root.type == "9p" else mount


def refuse_network(path: Path) -> None:
    """Raise ``UnfitDatastore`` if the database ``path`` is on a network file system.

    On a system without ``mountinfo`` this does nothing.
    """
    try:
        text = _MOUNTINFO.read_text(errors="surrogateescape")
    except OSError:
        return
    if mount := network_mount(path.resolve(), parse_mounts(text)):
        raise UnfitDatastore(
            f"{path} is on a network file system ({mount.type}, mounted at {mount.point}), where "
            "SQLite's locks and fsync are unreliable and commits get lost; "
            "set [datastore] path to a local disk"
        )
