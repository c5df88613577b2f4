"""A changed ``hpke_config_max_age``: a key is kept for the longest lifetime that was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.app import Daemon
from dapd.commits import hpke_keys
from dapd.crypto import HpkeKeypair
from dapd.datastore import Tx, keys
from dapd.errors import DatastoreError
from dapd.keys import rotation
from dapd.process import reload
from dapd.protocol.keys import MANDATORY_SUITE, KeyState
from tests.clock import NOW, ManualClock
from tests.contexts import make_config, open_context
from tests.daemon_from_file import running_daemon, write_config
from tests.task_pair import X25519

DAY = 86_400
LONG, SHORT = 20 * DAY, 3600
LEEWAY = 300


def config_of(directory: Path, max_age: int) -> Path:
    return write_config(
        directory,
        f'[server]\nlisten = "127.0.0.1:0"\nhpke_config_max_age = {max_age}\n'
        f"[reports]\nearly_leeway = {LEEWAY}\n",
    )


async def key_id(daemon: Daemon) -> int:
    """The id of the one key that is published."""
    stored = await daemon.context.read(keys.all_keys)
    [active] = [key.config_id for key in stored if key.state is KeyState.ACTIVE]
    return active


async def retire(daemon: Daemon) -> None:
    """Replace the active key, as ``dapd key add --active`` does."""
    context = daemon.context
    now, config = context.instant().safe, context.config
    await context.run(hpke_keys.add, context.sealer, MANDATORY_SUITE, now, config, active=True)
    await context.keyrings.reload()


async def opens_after(daemon: Daemon, config_id: int, clock: ManualClock, seconds: int) -> bool:
    """Return whether the daemon still has the key once it has rotated its keys after this time."""
    clock.advance(seconds)
    await rotation.rotate(daemon.context)
    return config_id in daemon.context.keyrings.keyring.config_ids


@pytest.mark.parametrize("retired_first", [False, True])
async def test_f1_a_restart_with_a_shorter_lifetime_takes_nothing_back(
    tmp_path: Path, *, retired_first: bool
) -> None:
    """Clients still cache the key for the longer one, whether it had expired by then or not."""
    clock = ManualClock()
    async with running_daemon(config_of(tmp_path, LONG), clock) as daemon:
        old = await key_id(daemon)
        if retired_first:
            await retire(daemon)
    async with running_daemon(config_of(tmp_path, SHORT), clock) as daemon:
        if not retired_first:
            await retire(daemon)
        assert await opens_after(daemon, old, clock, 2 * LONG + LEEWAY - 1)
        assert not await opens_after(daemon, old, clock, 1)


@pytest.mark.parametrize("retired_first", [False, True])
async def test_f1_a_reload_with_a_shorter_lifetime_takes_nothing_back(
    tmp_path: Path, *, retired_first: bool
) -> None:
    """That holds also for a lifetime which itself came with a reload; a key that was never
    published under it is kept for the shorter one.
    """
    clock = ManualClock()
    async with running_daemon(config_of(tmp_path, SHORT), clock) as daemon:
        context = daemon.context
        never_long = await key_id(daemon)
        await retire(daemon)
        config_of(tmp_path, LONG)
        await reload.reload(context)
        old = await key_id(daemon)
        if retired_first:
            await retire(daemon)
        config_of(tmp_path, SHORT)
        await reload.reload(context)
        if not retired_first:
            await retire(daemon)
        assert await opens_after(daemon, never_long, clock, 2 * SHORT + LEEWAY - 1)
        assert not await opens_after(daemon, never_long, clock, 1)
        assert await opens_after(daemon, old, clock, 2 * (LONG - SHORT) - 1)
        assert not await opens_after(daemon, old, clock, 1)


async def test_f1_a_longer_lifetime_that_cannot_be_noted_is_not_promised(tmp_path: Path) -> None:
    """Else a kill before the next note, and a lower value after it, would break the promise."""

    def refuse(tx: Tx) -> None:
        tx.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE OF cached_for ON hpke_keypairs "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )

    async with running_daemon(config_of(tmp_path, SHORT)) as daemon:
        context = daemon.context
        await context.run(refuse)
        config_of(tmp_path, LONG)
        with pytest.raises(DatastoreError, match="no room"):
            await reload.reload(context)
        assert context.config.server.hpke_config_max_age == SHORT


async def test_f1_a_new_key_does_not_inherit_the_lifetime_of_its_id(tmp_path: Path) -> None:
    """An id that is used again belongs to another key."""
    async with open_context(make_config(tmp_path)) as context:
        await context.run(keys.insert_keypair, new_key(), context.sealer, "active", NOW)
        await context.run(hpke_keys.note_max_age, context.config)
        await context.run(keys.move, 7, KeyState.ACTIVE, KeyState.DELETED, NOW)
        await context.run(keys.insert_keypair, new_key(), context.sealer, "pending", NOW)
        [stored] = await context.read(keys.all_keys)
        assert stored.cached_for == 0


def new_key() -> HpkeKeypair:
    return HpkeKeypair.generate(7, *X25519)
