"""What a stolen database, or a log, gives away: nothing (I9, F2, F3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.crypto import batch_share_aad
from dapd.datastore import keys as key_table
from dapd.messages.common import b64url_encode
from dapd.protocol.batches import time_bucket
from dapd.testing.pair import Aggregator
from tests.build import contributions
from tests.paths.hands import NOON, Hands, at_noon, hand_pair


def files_of(side: Aggregator) -> bytes:
    """The database with its write-ahead log, byte for byte. The daemon must be stopped (E5)."""
    return b"".join(path.read_bytes() for path in side.directory.glob("dapd.sqlite*"))


async def shares_of(hands: Hands, side: Aggregator) -> list[bytes]:
    """The plain aggregate shares that the jobs of ``NOON`` contributed."""
    context = side.context
    lo, hi = time_bucket(NOON), time_bucket(NOON + 1)
    rows = await context.read(contributions, await hands.task_pk(side), lo, hi)
    shares = []
    for row in rows:
        assert row.share[0] == 1, "sealed: 0x01, key id, nonce, ciphertext (F2)"
        aad = batch_share_aad(hands.task.task_id, row.job_id, row.bucket)
        shares.append(context.sealer.open(aad, row.share))
    return shares


async def test_i9_f3_no_secret_is_in_a_file_or_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """F3, I9: keys, tokens and aggregate shares, also that of a single report, are sealed at rest
    on both sides, and never logged.
    """
    async with hand_pair(tmp_path) as (pair, http):
        task = await pair.new_task("sumvec:length=10,max_measurement=1", min_batch_size=1)
        hands = Hands(task, http)
        await hands.upload(hands.seal([[1, 0] * 5], "one person's"))
        assert (await task.collect(at_noon())).value == [1, 0] * 5
        files = task.files
        secrets = {
            "verify key": files.leader.vdaf_verify_key,
            "Helper's token": files.leader.aggregator_auth_token.encode(),
            "Collector's token": files.collector.collector_auth_token.encode(),
            "Collector's key": files.collector.collector_hpke_private_key,
        }
        sides = (pair.leader, pair.helper)
        for side in sides:
            [share] = await shares_of(hands, side)
            secrets[f"share in {side.directory.name}"] = share
            [pair_] = await side.context.read(key_table.kept_keypairs)
            secrets[f"HPKE key in {side.directory.name}"] = pair_.unseal(
                side.context.sealer
            ).private_key
        for side in sides:
            await side.stop()
        stored = {side.directory.name: files_of(side) for side in sides}
    said = "".join(capfd.readouterr())
    assert "task_loaded" in said
    assert all(task.task_id in data for data in stored.values()), "the search finds what is there"
    for name, secret in secrets.items():
        assert len(secret) >= 16
        for where, data in stored.items():
            assert secret not in data, (name, where)
        for spelling in (secret.hex(), b64url_encode(secret), repr(secret)[2:-1]):
            assert spelling not in said, name
