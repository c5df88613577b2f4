"""Rules F1 to F4: which key opens what, and what a key is needed for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from dapd.commits.sealing_keys import check_sealing_keys
from dapd.crypto import (
    HpkeKeypair,
    batch_share_aad,
    make_sealer,
    seal_key_id_of,
    sealing_key_id,
)
from dapd.datastore import keys
from dapd.errors import UsageError
from dapd.reports import ReplayIndex, ReportError
from tests.clock import NOW
from tests.contexts import contributions, open_store
from tests.helper_harness import open_helper
from tests.task_pair import SEALING_KEY, X25519, make_reports, task_pair

NEW_KEY = bytes(range(100, 132))


async def test_f1_an_unknown_key_id_makes_the_helper_read_its_keys_again(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """A command has added one key, so its report opens; nobody has added the other one."""
    async with open_helper(tmp_path, task_pair()) as house:
        added, foreign = (HpkeKeypair.generate(n, *X25519) for n in (77, 78))
        await house.context.run(keys.insert_keypair, added, house.context.sealer, "active", NOW)
        mock_clock.jump(10)  # the table is read at most once a second
        reports = [
            make_reports(replace(house.pair, helper_key=key), [1])[0] for key in (added, foreign)
        ]
        assert await house.outcomes(house.job(reports)) == bytes(
            [0, ReportError.HPKE_DECRYPT_ERROR]
        )


def test_f2_a_value_names_its_key_and_a_start_without_it_is_refused(tmp_path: Path) -> None:
    """After the first configured key has changed, the old one is still needed."""
    opened = open_store(tmp_path / "dapd.sqlite")
    old, new = sealing_key_id(SEALING_KEY), sealing_key_id(NEW_KEY)
    sealed = make_sealer([SEALING_KEY]).seal(b"aad", b"secret")
    assert seal_key_id_of(sealed) == old
    assert make_sealer([NEW_KEY, SEALING_KEY]).open(b"aad", sealed) == b"secret"
    opened.datastore.run_sync(check_sealing_keys, [old])
    with pytest.raises(UsageError, match=old.hex()):
        opened.datastore.run_sync(check_sealing_keys, [new])
    opened.datastore.run_sync(check_sealing_keys, [new, old])
    with pytest.raises(UsageError, match=new.hex()):
        opened.datastore.run_sync(check_sealing_keys, [old])
    opened.close()


async def test_f3_the_share_of_a_single_report_is_sealed(tmp_path: Path) -> None:
    """In the clear it would be what one Client has sent; it opens at its own place only."""
    async with open_helper(tmp_path, task_pair()) as house:
        job = house.job(make_reports(house.pair, [1]))
        stored = await house.create(job)
        task = house.task
        [part] = await house.context.read(contributions, task.task_pk, b"", b"\xff" * 9)
        aad = batch_share_aad(task.task_id, stored.id, part.bucket)
        share = house.context.sealer.open(aad, part.share)
        assert len(share) < len(part.share)
        assert share not in part.share
        elsewhere = batch_share_aad(task.task_id, bytes(16), part.bucket)
        with pytest.raises(ValueError):  # noqa: PT011 - what it raises for any AAD
            house.context.sealer.open(elsewhere, part.share)


@pytest.mark.parametrize("differing", range(16))
def test_f4_ids_that_differ_in_one_byte_are_two(differing: int) -> None:
    """No part of an id is left out of the hash, which nobody without its key can aim at; the same
    id twice in one request is one.
    """
    one = bytes(16)
    other = one[:differing] + b"\1" + one[differing + 1 :]
    index = ReplayIndex()
    assert index.admit(1, one + other + one) == b"\0\0\1"
    assert (index.peek(1, other), index.peek(2, one), len(index)) == (b"\1", b"\0", 2)
