"""Check the configuration, the sealing keys, and the modes and owners of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dapd.cli.doctor.findings import (
    Finding,
    Steps,
    blamed,
    check,
    failure,
    is_there,
    ok,
    skipped,
    warning,
)
from dapd.cli.paths import find_config
from dapd.config import Config
from dapd.config.keyfiles import read_sealing_key
from dapd.config.loading import load
from dapd.datastore.lock import lock_path
from dapd.errors import UsageError
from dapd.process.owner import become_owner, owner_name
from dapd.wording import count

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_BESIDE = ("", "-wal", "-shm")


@check("config")
def configuration(given: Path | None) -> Steps[tuple[Path, Config]]:
    """Load the configuration file."""
    path = find_config(given)
    config = load(path)
    yield ok(path, "valid")
    return path, config


@check("sealing_keys")
def sealing_keys(config: Config) -> Steps[list[bytes] | None]:
    """Read the sealing keys; returns ``None`` unless all are good."""
    keys = []
    for path in config.datastore.sealing_keys:
        try:
            keys.append(read_sealing_key(path))
        except UsageError as error:
            yield blamed(error)
    if len(keys) < len(config.datastore.sealing_keys):
        return None
    if len(set(keys)) < len(keys):
        yield failure("", "two of the files have the same key", "list only one of them")
        return None
    yield ok("", f"{count(len(keys), 'key')}, which no other user may read")
    return keys


@check("modes")
def modes(path: Path, config: Config) -> Steps[None]:
    """Check that only root and the daemon's user may change the files and read the state."""
    wrong = [*_writable(path, config), *_state(config)]
    yield from wrong
    if not wrong:
        yield ok("", "no other user may change the files or read the state")


@check("owner")
def owner(config: Config) -> Steps[bool]:
    """Become the daemon's user, if this is root."""
    state = config.datastore.path.parent
    become_owner(state)
    if is_there(state) and state.stat().st_uid == os.geteuid():
        yield ok(state, f"belongs to {owner_name(state)}; the other checks run as that user")
    else:
        yield skipped(state, "belongs to another user, so some checks can't run")
    return True


def _writable(path: Path, config: Config) -> Iterator[Finding]:
    key_directories = {key.parent for key in config.datastore.sealing_keys}
    for each in dict.fromkeys((path, path.absolute().parent, *sorted(key_directories))):
        if is_there(each) and _mode(each) & _OTHERS_WRITE and not _mode(each) & stat.S_ISVTX:
            yield failure(each, "other users may change it", f"`chmod go-w {each}`")


def _state(config: Config) -> Iterator[Finding]:
    database = config.datastore.path
    state = database.parent
    if not is_there(state):
        yield failure(state, "no such directory", "make it with `dapd init` or `mkdir -m 700`")
        return
    if _mode(state) & _OTHERS_WRITE:
        yield failure(state, "other users may change its content", f"`chmod 700 {state}`")
    elif _mode(state) & _OTHERS:
        yield warning(state, "other users may read it", f"`chmod 700 {state}`")
    mine = state.stat().st_uid
    beside = [database.with_name(database.name + suffix) for suffix in _BESIDE]
    for each in (*beside, lock_path(database), config.admin_socket):
        if not is_there(each):
            continue
        if each.stat().st_uid != mine:
            yield failure(
                each,
                f"belongs to {owner_name(each)}, but its directory to {owner_name(state)}",
                f"`chown {owner_name(state)}: {each}`",
            )
        if _mode(each) & stat.S_IWOTH:
            yield failure(each, "every user may change it", f"`chmod o-rwx {each}`")


def _mode(path: Path) -> int:
    return path.stat().st_mode
