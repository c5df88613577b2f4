"""Drop root privileges: root becomes the owner of a daemon's state before touching it, for good.

A root-owned file in the state directory, such as SQLite's ``-wal``, would stop the daemon, which
runs as a user of its own. Files that only root can read, such as sealing keys, must be read before.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from dapd.errors import UsageError


def become_owner(directory: Path) -> None:
    """Switch from root to the owner of ``directory``, with that user's groups, for good.

    Does nothing if this user is not root, or if the directory belongs to root or doesn't exist.
    Raises ``UsageError`` if this root can't become another user, as in some containers.
    """
    if os.geteuid() != 0 or not directory.is_dir():
        return
    status = directory.stat()
    if status.st_uid == 0:
        return
    try:
        os.setgroups(_groups(status.st_uid, status.st_gid))
        os.setresgid(status.st_gid, status.st_gid, status.st_gid)
        os.setresuid(status.st_uid, status.st_uid, status.st_uid)
    except OSError as error:
        raise UsageError(
            f"{directory}: belongs to user {owner_name(directory)}, and this root can't become "
            f"that user ({error.strerror}); run dapd as that user"
        ) from error
    if not os.access(__file__, os.R_OK) or not os.access(os.__file__, os.R_OK):
        raise UsageError(
            f"{directory}: belongs to user {owner_name(directory)}, which can't read this dapd or "
            "its Python; install dapd where that user can read it, such as in /opt/dapd"
        )


def make_socket_directory(directory: Path, state: Path) -> None:
    """As root, make ``directory`` if it is missing, for the owner and the group of ``state``.

    ``/run/dapd`` disappears at boot, and systemd makes it only when it starts the service. Raises
    ``UsageError`` if the directory can't be made.
    """
    if os.geteuid() != 0 or directory.exists() or not directory.parent.is_dir():
        return
    if state.is_dir():
        status = state.stat()
        try:
            directory.mkdir(mode=0o750)
            os.chown(directory, status.st_uid, status.st_gid)
        except OSError as error:
            raise UsageError(
                f"[admin] socket: {directory} can't be made ({error.strerror}); set another path"
            ) from error


def owner_name(path: Path) -> str:
    """Return the name of the user that owns a file or directory, or the uid if it has no name."""
    uid = path.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]
