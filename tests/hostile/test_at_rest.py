"""While reports wait, no file gives them away (I9)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import trio

from dapd.datastore import keys as key_table
from dapd.testing.pair import Aggregator
from tests.clock import TIME
from tests.hostile.search import found
from tests.pair_harness import TaskHarness, open_pair, until

HEAD = 32
"""So many bytes of a share are its own alone."""


async def files_of(side: Aggregator) -> bytes:
    """The database and its log while the daemon runs: read by another process (rule E5)."""
    paths = sorted(path for path in side.directory.glob("dapd.sqlite*") if path.is_file())
    assert any(path.name.endswith("-wal") for path in paths)
    return (await trio.run_process(["cat", *map(str, paths)], capture_stdout=True)).stdout


def keeping(kept: list[bytes]) -> Callable[[bytes], bytes]:
    """Note each share that is about to be sealed, and leave it as it is."""

    def keep(share: bytes) -> bytes:
        kept.append(share[:HEAD])
        return share

    return keep


async def test_i9_reports_that_wait_are_sealed(tmp_path: Path) -> None:
    """Input shares, the Leader's state of a job in flight, and a batch share of a single report,
    whose clear form would begin as that report's input share does.
    """
    async with open_pair(tmp_path) as (pair, http):
        hands = TaskHarness(await pair.new_task("sumvec:length=10,max_measurement=1"), http)
        shares: dict[str, list[bytes]] = {"leader": [], "helper": []}
        spoil = {side: keeping(kept) for side, kept in shares.items()}
        await hands.upload(hands.seal([[1, 0] * 5], "aggregated", spoil=spoil))
        for side in (pair.leader, pair.helper):
            await hands.until_counted(side, "aggregate_finished", 1)
        stored = {"helper": await files_of(pair.helper)}
        await pair.helper.stop()
        waiting = hands.seal([[0, 1] * 5] * 3, "waiting", at=TIME - 1, spoil=spoil)
        await hands.upload(waiting)

        async def in_flight() -> bool:
            rows = await pair.leader.context.read(
                lambda tx: tx.all(
                    "SELECT 1 FROM aggregation_jobs JOIN job_bodies USING (job_pk)"
                    " WHERE state = 'stored' AND leader_state IS NOT NULL AND sends > 0"
                )
            )
            return bool(rows)

        await until(in_flight)
        stored["leader"] = await files_of(pair.leader)
        assert all(report[:16] in stored["leader"] for report in waiting), "the search works"
        assert [len(kept) for kept in shares.values()] == [4, 4]
        for where, files in stored.items():
            for share in shares["leader"] + shares["helper"]:
                assert found({"share": share}, files) == [], where


async def test_i9_keys_and_tokens_are_sealed_or_hashed_also_in_the_write_ahead_log(
    tmp_path: Path,
) -> None:
    """Outbound: sealed. Inbound: its SHA-256 and nothing else. While both daemons run."""
    async with open_pair(tmp_path) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        leader, collector = hands.task.files.leader, hands.task.files.collector
        tokens = (
            leader.aggregator_auth_token.encode(),
            collector.collector_auth_token.encode(),
        )
        aggregator_hash, collector_hash = (hashlib.sha256(token).digest() for token in tokens)
        secrets = [*tokens, leader.vdaf_verify_key, collector.collector_hpke_private_key]
        files = {}
        for side in (pair.leader, pair.helper):
            files[side.directory.name] = await files_of(side)
            context = side.context
            [keypair] = await context.read(key_table.kept_keypairs)
            secrets.append(keypair.unseal(context.sealer).private_key)
        assert collector_hash in files["leader"]
        assert aggregator_hash in files["helper"]
        assert aggregator_hash not in files["leader"], "outbound there: sealed, not hashed"
        for content in files.values():
            for secret in secrets:
                assert found({"secret": secret}, content) == []
