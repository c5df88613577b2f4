"""While reports wait, no file gives them away; and no log line names one of them, ever (I9)."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import trio

from dapd.datastore import keys as key_table
from dapd.messages.common import HpkeConfigList, MediaType, b64url_encode
from dapd.reports import ReportError, seal_reports, shard, split_ids
from dapd.taskfile import TaskFiles
from dapd.testing.pair import Aggregator
from dapd.vdaf import make_vdaf
from tests.crash.load import House, Load, open_house
from tests.hostile.test_secrets import spellings
from tests.paths import raw
from tests.paths.hands import NOON, Hands, hand_pair, make_ids, until
from tests.processes.daemons import assert_calm

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
    async with hand_pair(tmp_path) as (pair, http):
        hands = Hands(await pair.new_task("sumvec:length=10,max_measurement=1"), http)
        shares: dict[str, list[bytes]] = {"leader": [], "helper": []}
        spoil = {side: keeping(kept) for side, kept in shares.items()}
        await hands.upload(hands.seal([[1, 0] * 5], "aggregated", spoil=spoil))
        for side in (pair.leader, pair.helper):
            await hands.until_counted(side, "aggregate_finished", 1)
        stored = {"helper": await files_of(pair.helper)}
        await pair.helper.stop()
        waiting = hands.seal([[0, 1] * 5] * 3, "waiting", at=NOON - 1, spoil=spoil)
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
                assert not any(each in files for each in spellings(share)), where


async def test_i9_keys_and_tokens_are_sealed_or_hashed_also_in_the_write_ahead_log(
    tmp_path: Path,
) -> None:
    """Outbound: sealed. Inbound: its SHA-256 and nothing else. While both daemons run."""
    async with hand_pair(tmp_path) as (pair, http):
        hands = Hands(await pair.new_task("count"), http)
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
            [found] = await context.read(key_table.kept_keypairs)
            secrets.append(found.unseal(context.sealer).private_key)
        assert collector_hash in files["leader"]
        assert aggregator_hash in files["helper"]
        assert aggregator_hash not in files["leader"], "outbound there: sealed, not hashed"
        for content in files.values():
            for secret in secrets:
                assert not any(each in content for each in spellings(secret))


async def test_i9_no_report_id_is_logged_at_any_level(tmp_path: Path) -> None:
    """Accepted, replayed, unreadable, for an unknown key, or malformed: the log names none."""
    with trio.fail_after(60):
        async with open_house(tmp_path) as house:
            files = house.new_task("async", "time-interval")
            for daemon in house.daemons:
                assert await daemon.start()
            await Load(files, random.Random(2)).run(lambda: True)
            ids = split_ids(stored_ids(house.leader.read("SELECT ids FROM report_chunks")))
            assert len(ids) == 20
            path = f"/tasks/{b64url_encode(files.client.task_id)}/reports"
            port, headers = house.leader.wire.port, {"Content-Type": MediaType.UPLOAD_REQ.value}
            ids.append(make_ids(1, "twice"))
            twice = await sealed(house, files, ids[-1])
            for expected in (b"", ids[-1] + bytes([ReportError.REPORT_REPLAYED])):
                reply = await raw.ask(port, "POST", path, headers, twice)
                assert (reply.status, reply.body) == (200, expected)
            for report_id in ids:
                for config, cut in ((0, 0), (2, 0), (0, 3)):
                    text = bytes([config]) + b"\0\1x" + b"\0\0\0\1x"
                    report = report_id + bytes(14) + text + text
                    sent = report[: len(report) - cut]
                    reply = await raw.ask(port, "POST", path, headers, sent)
                    assert reply.status == (400 if cut else 200)
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            assert_calm(house.daemons)
            for daemon in house.daemons:
                said = "\n".join(daemon.lines).encode()
                assert b'"level":"debug"' in said, "the level that says most"
                for report_id in ids:
                    assert not any(each in said for each in spellings(report_id))


def stored_ids(rows: list[tuple[bytes, ...]]) -> bytes:
    """The columns of ids of these rows, joined."""
    return b"".join(column for (column,) in rows)


async def sealed(house: House, files: TaskFiles, report_id: bytes) -> bytes:
    """An honest report of now with an id of the test's."""
    task = files.client
    configs = []
    for daemon in house.daemons:
        reply = await raw.ask(daemon.wire.port, "GET", "/hpke_config")
        configs.append(HpkeConfigList.decode(reply.body).configs[0].as_tuple)
    leader, helper = configs
    columns = shard(make_vdaf(task.configuration.vdaf), task.task_id, [7], report_id)
    now = int(time.time()) // task.configuration.time_precision
    encoded = task.configuration.encode()
    [report] = seal_reports(task.task_id, encoded, leader, helper, report_id, [now], *columns)
    return report
