"""Root becomes the owner of a daemon's state before it touches it, and stays that.

A root-owned file in the state directory, be it SQLite's ``-wal``, would stop the daemon, which runs
as a user of its own. What only root may read, such as sealing keys, has to be read before.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from dapd.errors import UsageError


def become_owner(directory: Path) -> None:
    """Give up root for the user and the groups of the owner of ``directory``, for good.

    Nothing happens if this user is not root, if the directory is root's, or if there is none yet.
    Raises ``UsageError`` if this root is none that may become another user.
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
            f"{directory}: belongs to user {owner_name(directory)}, and this root may not become "
            f"that user ({error.strerror}); run this as that user"
        ) from error
    if not os.access(__file__, os.R_OK) or not os.access(os.__file__, os.R_OK):
        raise UsageError(
            f"{directory}: belongs to user {owner_name(directory)}, who can't read this dapd or "
            "its Python; install it where that user can, such as in /opt/dapd"
        )


def provide(directory: Path, state: Path) -> None:
    """As root, make ``directory`` if it is missing, for the owner of ``state`` and its group.

    ``/run/dapd`` is gone after each boot, and systemd makes it for its service alone. Raises
    ``UsageError`` if it can't be made.
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
    """Whose a file or directory is: a name, or a number without one."""
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
