"""The rotation loop on a database: which keys are published, open reports, and are deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import structlog
import trio.testing

from dapd import config
from dapd.commits import hpke_keys
from dapd.config.contradictions import contradictions
from dapd.crypto import HpkeKeypair, hpke_seal, make_sealer
from dapd.datastore import Tx, keys, open_for_command
from dapd.datastore import tasks as task_table
from dapd.errors import UsageError
from dapd.keys import rotation
from dapd.messages.common import HpkeConfig, HpkeConfigList
from dapd.protocol.keys import MANDATORY_SUITE, KeyState, Move, StoredKey
from dapd.protocol.task import Instant, TaskSettings
from dapd.runtime.context import Context
from dapd.upkeep import refresh
from tests.clock import NOW
from tests.contexts import clock_of, make_config, open_context
from tests.task_pair import X25519, task_pair

DAY = 86_400
AGE = 7 * DAY
PENDING, ACTIVE, EXPIRED, DELETED = KeyState


@asynccontextmanager
async def aggregator(path: Path, age: int | None = AGE) -> AsyncIterator[Context]:
    """An Aggregator with a task, and a first key that was created at ``NOW``."""
    pair = task_pair(settings=TaskSettings(report_expiry_age=age))
    async with open_context(make_config(path), (pair.helper, pair)) as context:
        yield context


def pass_days(context: Context, days: float) -> None:
    clock_of(context).advance(days * DAY)


def published(context: Context) -> list[HpkeConfig]:
    return list(HpkeConfigList.decode(context.keyrings.published).configs)


async def stored(context: Context) -> dict[int, KeyState]:
    return {key.config_id: key.state for key in await context.read(keys.all_keys)}


async def opens(context: Context, to: HpkeConfig) -> bool:
    """Return whether a kept key opens what a Client encrypts to this configuration."""
    enc, payload = hpke_seal(to.as_tuple, b"info", b"aad", b"measurement")
    for sealed in await context.read(keys.kept_keypairs):
        keypair = sealed.unseal(context.sealer)
        if keypair.config == to.as_tuple:
            assert sealed.config_id in context.keyrings.keyring.config_ids
            return keypair.open(b"info", b"aad", enc, payload) == b"measurement"
    return False


async def test_f1_for_two_years_what_was_published_is_opened_for_its_time(tmp_path: Path) -> None:
    """That is twice the cache lifetime, the expiry age and the leeway; then the private key is
    deleted.
    """
    async with aggregator(tmp_path) as context:
        server, reports = context.config.server, context.config.reports
        kept = 2 * server.hpke_config_max_age + AGE + 3600 + reports.early_leeway
        last_served: dict[bytes, tuple[float, HpkeConfig]] = {}
        for day in range(2 * 365):
            await rotation.rotate(context)
            for served in published(context):
                last_served[served.public_key] = day, served
            assert len(published(context)) == 1
            for last, served in last_served.values():
                if (day - last) * DAY <= kept:
                    assert await opens(context, served), (day, last)
                elif (day - last - 1) * DAY > kept:
                    assert not await opens(context, served), (day, last)
            pass_days(context, 1)
        assert len(last_served) == 1 + 2 * 365 // 84
        assert len(await stored(context)) == len(last_served), "each had a new id"


async def test_f1_nothing_is_left_of_a_deleted_private_key(tmp_path: Path) -> None:
    """Its row stays, so that its id is the last to be used again."""
    async with aggregator(tmp_path) as context:
        for days in (83, 3, 60):
            pass_days(context, days)
            await rotation.rotate(context)

        def rows(tx: Tx) -> list[tuple[str, int]]:
            found = tx.all("SELECT state, length(private_key) FROM hpke_keypairs ORDER BY state")
            return [(state, length) for state, length in found]

        (_, active), deleted = await context.read(rows)
        assert active > 32
        assert deleted == ("deleted", 0)
        assert 2 not in context.keyrings.keyring.config_ids


async def test_f1_d6_no_key_moves_while_the_clock_is_held(tmp_path: Path) -> None:
    """A machine that wakes up in 2036 replaces no key and, above all, deletes none."""
    async with aggregator(tmp_path) as context:
        pass_days(context, 83)
        await rotation.rotate(context)
        before = await stored(context)
        clock = clock_of(context)
        clock.jump(10 * 365 * DAY)
        assert await rotation.rotate(context) == []
        assert await stored(context) == before
        clock.jump(-10 * 365 * DAY)
        pass_days(context, 3)
        assert [move.to for move in await rotation.rotate(context)] == [ACTIVE, EXPIRED]


async def test_f1_a_task_whose_reports_never_expire_keeps_every_key(tmp_path: Path) -> None:
    """That ends when the task is given an age, or is deleted."""
    async with aggregator(tmp_path, None) as context:
        for days in (83, 3, 10_000):
            pass_days(context, days)
            await rotation.rotate(context)
        assert (await stored(context))[2] is EXPIRED
        (task,) = context.tasks.all()
        settings = TaskSettings(report_expiry_age=AGE)
        await context.run(task_table.set_settings, task.task_pk, settings)
        await rotation.rotate(context)
        assert (await stored(context))[2] is DELETED


async def test_f1_each_move_is_logged_with_its_key(tmp_path: Path) -> None:
    """The log tells an operator which keys came and went."""
    async with aggregator(tmp_path) as context:
        with structlog.testing.capture_logs() as lines:
            for days in (83, 3, 60):
                pass_days(context, days)
                await rotation.rotate(context)
    assert [line["event"] for line in lines] == ["hpke_key_made", *3 * ["hpke_key_moved"]]
    assert [(line["config_id"], line.get("was"), line["state"]) for line in lines] == [
        (0, None, "pending"),
        (0, "pending", "active"),
        (2, "active", "expired"),
        (2, "expired", "deleted"),
    ]


async def test_a_move_is_made_only_from_the_state_that_it_was_planned_from(tmp_path: Path) -> None:
    """D1: if two want to move a key, one does."""
    async with aggregator(tmp_path) as context:
        assert await context.run(keys.move, 2, ACTIVE, EXPIRED, NOW)
        assert not await context.run(keys.move, 2, ACTIVE, EXPIRED, NOW)
        fresh = HpkeKeypair.generate(2, *X25519)
        assert not await context.run(keys.insert_keypair, fresh, context.sealer, "pending", NOW), (
            "the id is taken"
        )


async def test_without_ids_the_operator_is_told(tmp_path: Path) -> None:
    """Nothing else says that keys are not replaced any more."""
    async with aggregator(tmp_path) as context:

        def fill(tx: Tx) -> None:
            for number in set(range(256)) - {2}:
                keypair = HpkeKeypair.generate(number, *X25519)
                keys.insert_keypair(tx, keypair, context.sealer, "expired", NOW + 83_000 * DAY)

        await context.run(fill)
        pass_days(context, 83)
        with structlog.testing.capture_logs() as lines:
            assert await rotation.rotate(context) == []
            assert await rotation.rotate(context) == []
    (line,) = lines
    assert line["event"] == "hpke_ids_used_up"
    assert "report_expiry_age" in line["remedy"]


async def test_e5_a_key_that_a_command_made_is_live_at_the_next_look(tmp_path: Path) -> None:
    """This is ``dapd key add --active`` beside a running daemon."""
    async with aggregator(tmp_path) as context:
        command = open_for_command(context.datastore.path, holder="a command", now=NOW)
        made = command.datastore.run_sync(
            hpke_keys.add, context.sealer, MANDATORY_SUITE, NOW, context.config, active=True
        )
        command.close()
        await refresh.look(context)
        assert [served.id for served in published(context)] == [made.config_id]
        assert set(context.keyrings.keyring.config_ids) == {2, made.config_id}


async def test_f1_unknown_ids_make_it_read_the_keys_once_a_second_at_most(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """Anyone may upload reports that name unknown ids."""
    async with aggregator(tmp_path) as context:
        mock_clock.jump(10)
        await context.keyrings.for_ids(bytes([80]))
        fresh = HpkeKeypair.generate(81, *X25519)
        await context.run(keys.insert_keypair, fresh, context.sealer, "active", NOW)
        assert 81 not in (await context.keyrings.for_ids(bytes([81]))).config_ids
        mock_clock.jump(1)
        assert 81 in (await context.keyrings.for_ids(bytes([81]))).config_ids


async def test_a_key_without_its_sealing_key_stops_no_other(tmp_path: Path) -> None:
    """The log names it once, and it isn't published: dapd couldn't open what is encrypted to it."""
    async with aggregator(tmp_path) as context:
        lost = HpkeKeypair.generate(9, *X25519)
        await context.run(keys.insert_keypair, lost, make_sealer([bytes(32)]), "active", NOW + 1)
        with structlog.testing.capture_logs() as lines:
            await context.keyrings.reload()
            await context.keyrings.reload()
        assert [served.id for served in published(context)] == [2]
        (line,) = lines
        assert (line["event"], line["config_id"]) == ("hpke_key_unreadable", 9)
        assert "sealing_keys" in line["remedy"]


async def test_an_aggregator_whose_keys_are_all_gone_gets_one_at_once(tmp_path: Path) -> None:
    """After ``forget-key`` there may be no active key, and no Client could upload."""
    async with aggregator(tmp_path) as context:
        await context.run(keys.move, 2, ACTIVE, DELETED, NOW)
        assert await rotation.rotate(context) == [Move(0, MANDATORY_SUITE, DELETED, ACTIVE)]
        assert [served.id for served in published(context)] == [0]


async def test_the_first_key_is_the_one_that_was_added_before_the_first_start(
    tmp_path: Path,
) -> None:
    """An operator can thus choose the first suite."""
    async with open_context(make_config(tmp_path)) as context:
        p256 = (0x0010, 0x0001, 0x0001)
        await context.run(hpke_keys.add, context.sealer, p256, NOW, context.config, active=False)
        await context.run(hpke_keys.ensure_active_key, context.sealer, NOW, context.config)
        assert await context.read(keys.all_keys) == [StoredKey(0, p256, ACTIVE, NOW, DAY * 1000)]
        assert (
            await context.run(hpke_keys.ensure_active_key, context.sealer, NOW, context.config)
            == []
        )


async def test_the_last_active_key_can_neither_expire_nor_be_removed(tmp_path: Path) -> None:
    """This holds even for a compromised key, as no Client could upload. The refusal says what to do
    first.
    """
    async with aggregator(tmp_path) as context:
        times = await context.read(hpke_keys.key_times, context.config)
        at = Instant(NOW, NOW)
        with pytest.raises(UsageError, match="key add --active"):
            await context.run(hpke_keys.expire, context.sealer, 2, NOW, context.config)
        with pytest.raises(UsageError, match="key add --active"):
            await context.run(hpke_keys.remove, 2, at, times, compromised=True)
        with pytest.raises(UsageError, match="key expire 2"):
            await context.run(hpke_keys.remove, 2, at, times, compromised=False)


async def test_f1_an_expired_key_is_removed_by_hand_only_after_its_time(tmp_path: Path) -> None:
    """A compromised key may be removed before that."""
    async with aggregator(tmp_path) as context:
        times = await context.read(hpke_keys.key_times, context.config)
        kept = times.kept(StoredKey(2, MANDATORY_SUITE, EXPIRED, NOW))
        assert kept is not None
        await context.run(
            hpke_keys.add, context.sealer, MANDATORY_SUITE, NOW, context.config, active=True
        )
        early, late = (Instant(NOW + kept + off, NOW + kept + off) for off in (-1, 0))
        with pytest.raises(UsageError, match="may still open reports"):
            await context.run(hpke_keys.remove, 2, early, times, compromised=False)
        jumped = Instant(NOW + 2 * kept, NOW)
        with pytest.raises(UsageError, match="may still open reports"):  # D6: by the safe clock
            await context.run(hpke_keys.remove, 2, jumped, times, compromised=False)
        await context.run(hpke_keys.remove, 2, late, times, compromised=False)
        assert (await stored(context))[2] is DELETED


def test_pending_must_be_shorter_than_active(tmp_path: Path) -> None:
    """Otherwise a key would be replaced before it is published."""
    made = make_config(tmp_path)
    wrong = msgspec.structs.replace(made, keys=config.Keys(pending=7200, active=7200))
    assert contradictions(wrong) == [
        "keys.pending: is not below keys.active; lower it, or raise that one"
    ]
