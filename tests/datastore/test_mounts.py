"""Databases on network file systems are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.datastore import mounts, open_for_command, open_for_daemon
from dapd.datastore.mounts import Mount, mount_of, network_mount, parse_mounts
from dapd.errors import DatastoreError

LOCAL = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
36 27 98:0 /mnt1 /mnt/parent rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw
"""
SHARES = (
    LOCAL
    + """\
40 27 0:45 / /srv rw,relatime shared:20 - nfs4 storage:/export rw,vers=4.2,hard
41 40 8:17 / /srv/local rw,relatime - xfs /dev/sdb1 rw
42 27 0:46 / /mnt/two\\040words rw - fuse.sshfs me@host: rw
43 27 0:47 / /var/lib/dapd rw - ext4 /dev/vdb rw
44 43 0:48 / /var/lib/dapd rw - cifs //nas/share rw
45 27 0:49 / /mnt/c rw - 9p drvfs rw
"""
)
SANDBOX = """\
1 0 0:1 / / rw - 9p none rw,trans=fd
2 1 0:2 / /data rw - 9p none rw,trans=fd
3 1 0:3 / /remote rw - nfs server:/ rw
"""


def found(text: str, path: str) -> str | None:
    mount = network_mount(Path(path), parse_mounts(text))
    return mount and mount.type


def test_the_mount_of_a_path_is_the_longest_above_it() -> None:
    """Mount points match by whole names; optional fields in the line are skipped."""
    parsed = parse_mounts(SHARES)
    assert mount_of(Path("/mnt/parent/x"), parsed) == Mount(Path("/mnt/parent"), "ext3")
    assert mount_of(Path("/mnt/parental/x"), parsed) == Mount(Path("/"), "ext4")
    assert mount_of(Path("/x"), parse_mounts("")) is None
    assert parse_mounts("no mount\n1 2 3 - \n") == []


@pytest.mark.parametrize(
    ("text", "path", "refused"),
    [
        (LOCAL, "/var/lib/dapd/dapd.sqlite", None),
        (SHARES, "/srv/dapd.sqlite", "nfs4"),
        (SHARES, "/srv/local/dapd.sqlite", None),
        (SHARES, "/mnt/two words/dapd.sqlite", "fuse.sshfs"),
        (SHARES, "/var/lib/dapd/dapd.sqlite", "cifs"),  # mounted over the other one
        (SHARES, "/mnt/c/dapd.sqlite", "9p"),
        (SANDBOX, "/home/dapd.sqlite", None),
        (SANDBOX, "/data/dapd.sqlite", None),
        (SANDBOX, "/remote/dapd.sqlite", "nfs"),
    ],
)
def test_e5_network_file_systems_are_refused(text: str, path: str, refused: str | None) -> None:
    """SQLite's locks and fsync are unreliable there."""
    assert found(text, path) == refused


def test_e5_a_database_on_a_network_file_system_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Daemon and commands refuse it, also through a link, and create no file there."""
    share, link = tmp_path / "share", tmp_path / "link"
    share.mkdir()
    link.symlink_to(share)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"{LOCAL}50 27 0:50 / {share} rw - nfs storage:/ rw\n")
    # A network file system can't be mounted here: the kernel's list of mounts is a file of ours.
    monkeypatch.setattr(mounts, "_MOUNTINFO", mountinfo)
    for directory in (share, link):
        path = directory / "dapd.sqlite"
        with pytest.raises(DatastoreError, match=r"network file system \(nfs, .* local disk"):
            open_for_daemon(path, holder="dapd", now=0, on_lost=print)
        with pytest.raises(DatastoreError, match="network file system"):
            open_for_command(path, holder="dapd task", now=0)
    assert list(share.iterdir()) == []
    open_for_command(tmp_path / "dapd.sqlite", holder="dapd task", now=0).close()


def test_where_the_system_does_not_say_what_is_mounted_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc, nothing is refused."""
    monkeypatch.setattr(mounts, "_MOUNTINFO", tmp_path / "absent")  # hiding /proc needs root
    open_for_command(tmp_path / "dapd.sqlite", holder="dapd task", now=0).close()
