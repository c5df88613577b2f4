"""A run in which all happens that a daemon may say something of, with secrets that are known.

All of it goes through real processes. Clients have an address of their own, and reports a time and
measurements that nothing else has.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2
import trio

from dapd.admin import OPERATIONS
from dapd.collector import Collector, Query
from dapd.config.keyfiles import read_sealing_keys
from dapd.config.loading import load
from dapd.crypto import batch_share_aad, make_sealer
from dapd.datastore import keys as key_table
from dapd.datastore import open_for_command
from dapd.datastore import tasks as task_table
from dapd.messages.common import BatchMode, HpkeConfigList, MediaType, b64url_encode
from dapd.reports import seal_reports, shard, split_ids
from dapd.taskfile import TaskDraft, TaskFiles, new_task, parse_vdaf_spec
from dapd.vdaf import make_vdaf
from tests import raw_http
from tests.contexts import contributions
from tests.crash.load import House
from tests.processes.daemons import DaemonProcess, run_command
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer
from tests.task_pair import flip, make_ids

PROGRAM = ("-m", "tests.hostile.faulty")
CLIENT = "127.77.66.55"
FORWARDED = "203.0.113.177"
PRECISION = 60
MEASUREMENT = 987_654_321_987
LENGTH = 4
BATCH = 6
_UPLOAD = MediaType.UPLOAD_REQ.value
_PIECE = 24
"""Bytes of a share or a report that are its own alone."""
_DOCUMENTS = ("/", "/metrics", "/healthz", "/readyz", "/api/v1/openapi.json", "/nothing")


@dataclass
class WholeRun:
    """``said`` is what was answered and printed, ``secrets`` what must not be in it or in a log."""

    house: House
    said: dict[str, bytes] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    tasks: list[TaskFiles] = field(default_factory=list)
    rounds: int = 0
    begun: int = field(default_factory=lambda: int(time.time()) // PRECISION)

    def new_tasks(self) -> None:
        """One of each batch mode, for a Helper that works later and one that works at once; before
        the daemons run.
        """
        for mode, batch_mode in (("async", "time-interval"), ("sync", "leader-selected")):
            draft = TaskDraft(
                vdaf=parse_vdaf_spec(f"sumvec:length={LENGTH},max_measurement={2**40 - 1}"),
                leader_aggregator_endpoint=self.house.leader.wire.url,
                helper_aggregator_endpoint=self.house.helper.wire.url,
                batch_mode=batch_mode,  # type: ignore[arg-type]
                min_batch_size=1,
                time_precision=PRECISION,
            )
            files = new_task(draft, allow_tiny_batches=True)
            self.house.leader.add(files.leader, batch_target_size=BATCH)
            self.house.helper.add(files.helper, mode)  # type: ignore[arg-type]
            self.tasks.append(files)
            name = f"task {len(self.tasks)}"
            self.secrets |= {
                f"{name}'s verify key": files.leader.vdaf_verify_key,
                f"{name}'s Helper's token": files.leader.aggregator_auth_token.encode(),
                f"{name}'s Collector's token": files.collector.collector_auth_token.encode(),
                f"{name}'s Collector's key": files.collector.collector_hpke_private_key,
            }
        self.secrets["measurement"] = str(MEASUREMENT).encode()
        self.secrets["Client"] = CLIENT.encode()
        self.secrets["forwarded Client"] = FORWARDED.encode()

    async def round(self) -> None:
        """Uploads, good and bad; jobs of both kinds; wrong requests; every admin operation."""
        self.rounds += 1
        for task in self.tasks:
            await self._work(task)
            await self._wrong_requests(task)
        for daemon in self.house.daemons:
            await self._administer(daemon)

    async def _work(self, task: TaskFiles) -> None:
        """Aggregate and collect a batch of good reports, among others that are refused."""
        at = self.begun - 4000 - self.rounds
        good = await self._sealed(task, at, BATCH, "good")
        if self.rounds == 1 and task is self.tasks[0]:
            await self._meet_an_echo(task, good)
        else:
            assert (await self._upload(task, b"".join(good))).body == b""
        replayed = await self._upload(task, b"".join(good[:2]))
        assert len(replayed.body) == 2 * 17
        for cut in (20, len(good[0]) - 1):
            assert (await self._upload(task, good[0][:cut])).status == 400
        spoilt = await self._sealed(task, at, 1, "spoilt")
        for place in (30, 60, 100):
            await self._upload(task, flip(spoilt[0], place))
        await self._collect(task, at)

    async def _sealed(self, task: TaskFiles, at: int, count: int, label: str) -> list[bytes]:
        """Reports, all of whose parts are secrets from now on."""
        client = task.client
        label = f"{label} {self.rounds} {client.task_id.hex()}"
        ids = make_ids(count, label)
        vdaf = make_vdaf(client.configuration.vdaf)
        columns = shard(vdaf, client.task_id, [[MEASUREMENT] * LENGTH] * count, ids)
        configs = []
        for daemon in self.house.daemons:
            reply = await raw_http.ask(_port(daemon), "GET", "/hpke_config")
            configs.append(HpkeConfigList.decode(reply.body).configs[0].as_tuple)
        encoded = client.configuration.encode()
        times = [at] * count
        leader, helper = configs
        reports = seal_reports(client.task_id, encoded, leader, helper, ids, times, *columns)
        for number, (report_id, report) in enumerate(zip(split_ids(ids), reports, strict=True)):
            name = f"report {label} {number}"
            self.secrets[f"{name}: id"] = report_id
            self.secrets[f"{name}: end"] = report[-_PIECE:]
            self.secrets[f"{name}: middle"] = report[100 : 100 + _PIECE]
            for side, column in zip(("public", "leader", "helper"), columns, strict=True):
                self.secrets[f"{name}: {side} share"] = column[number][:_PIECE]
        moment = datetime.fromtimestamp(at * PRECISION, UTC)
        self.secrets[f"time {at}"] = str(at).encode()
        self.secrets[f"time {at} in seconds"] = str(at * PRECISION).encode()
        self.secrets[f"time {at} in words"] = moment.isoformat("T", "minutes")[:16].encode()
        return reports

    async def _upload(self, task: TaskFiles, body: bytes) -> raw_http.Reply:
        """From the Client's own address, straight to the daemon, until it doesn't fail."""
        path = f"/tasks/{b64url_encode(task.client.task_id)}/reports"
        headers = {"Content-Type": _UPLOAD, "X-Forwarded-For": FORWARDED, "User-Agent": FORWARDED}
        while True:
            reply = await self._from_client(self.house.leader, "POST", path, headers, body)
            if reply.status < 500:
                return reply

    async def _from_client(
        self,
        daemon: DaemonProcess,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes = b"",
    ) -> raw_http.Reply:
        port = _port(daemon)
        async with await trio.open_tcp_stream("127.0.0.1", port, local_address=CLIENT) as stream:
            await stream.send_all(raw_http.request(method, path, headers, body))
            received = await raw_http.read_all(stream)
        reply = raw_http.parse(received)
        if "json" in reply.headers.get("content-type", ""):
            self._keep(f"{daemon.directory.name}'s problem documents", received)
        return reply

    async def _meet_an_echo(self, task: TaskFiles, reports: list[bytes]) -> None:
        """Upload while something stands in the Helper's place that shows what it was sent; before
        the Leader has a connection to the Helper.
        """
        refused = 0

        def script(request: Request) -> bytes:
            nonlocal refused
            refused += 1
            words = f"{request.method} {request.target} {request.headers}"
            if refused % 3 == 0:
                return answer(502, request.body, Content_Type="text/plain")
            status = 502 if refused % 3 == 1 else 401
            body = json.dumps({"detail": words}) if status == 401 else words
            return answer(status, body.encode(), Content_Type="text/plain")

        wire, leader = self.house.helper.wire, self.house.leader
        peer = ScriptedServer(script)
        async with trio.open_nursery() as nursery:
            url = await peer.serve(nursery)
            there, wire.target = wire.target, int(url.rpartition(":")[2])
            assert (await self._upload(task, b"".join(reports))).body == b""
            for event in ("exchange_failed", "job_waits"):
                await leader.logged(event, 2)
            wire.target = there
            nursery.cancel_scope.cancel()

    async def _collect(self, task: TaskFiles, at: int) -> None:
        by_time = task.client.configuration.batch_mode is BatchMode.TIME_INTERVAL
        query = Query.interval(at * PRECISION, PRECISION) if by_time else Query.next_batch()
        async with Collector(task.collector) as collector, collector.collect(query) as result:
            assert result.report_count == BATCH
            assert result.value == [BATCH * MEASUREMENT] * LENGTH

    async def _wrong_requests(self, task: TaskFiles) -> None:
        """Right and wrong tokens, in the header and in the path, with nonsense."""
        path = f"/tasks/{b64url_encode(task.client.task_id)}/"
        leader, helper = self.house.daemons
        for daemon, resource, asked, token in (
            (leader, "reports", MediaType.UPLOAD_REQ, task.leader.aggregator_auth_token),
            (
                leader,
                "collection_jobs",
                MediaType.COLLECTION_JOB_REQ,
                task.collector.collector_auth_token,
            ),
            (
                helper,
                "aggregation_jobs",
                MediaType.AGGREGATION_JOB_INIT_REQ,
                task.leader.aggregator_auth_token,
            ),
            (
                helper,
                "aggregate_shares",
                MediaType.AGGREGATE_SHARE_REQ,
                task.leader.aggregator_auth_token,
            ),
        ):
            for presented in (token, token[:-1]):
                for content in (MediaType.UPLOAD_REQ, asked):
                    headers = {"DAP-Auth-Token": presented, "Content-Type": content.value}
                    for method, tail in (("POST", ""), ("GET", "/AAAA"), ("GET", f"/{token}")):
                        target = path + resource + tail
                        await self._from_client(daemon, method, target, headers, bytes(9))
        await self._from_client(leader, "GET", f"/{token}", {"Authorization": f"Bearer {token}"})

    async def _administer(self, daemon: DaemonProcess) -> None:
        """Each document and each operation, with what is right for some and wrong for others."""
        name = f"{daemon.directory.name}'s admin interface"
        socket = str(load(daemon.config).admin_socket)
        transport = httpx2.AsyncHTTPTransport(uds=socket)
        async with httpx2.AsyncClient(transport=transport, base_url="http://dapd") as client:
            listed = (await client.get("/api/v1/jobs", params={"ended": "true"})).json()["jobs"]
            jobs = [each["job"] for each in listed[:3]]
            assert jobs
            url = self.house.helper.wire.url
            bodies: list[dict[str, str]] = [{}, {"url": url}, {"level": "debug"}]
            bodies += [{"job": job, "confirm": "another"} for job in jobs]
            bodies += [{"job": job} for job in (*jobs, "a0")]
            passed = set()
            for path in _DOCUMENTS:
                reply = await client.get(path)
                self._keep(name, reply.content)
            for operation in OPERATIONS:
                for fields in bodies:
                    if operation.method == "GET":
                        reply = await client.get(operation.path, params=fields)
                    else:
                        reply = await client.post(operation.path, json=fields)
                    self._keep(name, reply.content)
                    if reply.status_code == 200:
                        passed.add(operation.name)
            assert len(passed) > len(OPERATIONS) // 2, passed

    async def _command(self, daemon: DaemonProcess, *arguments: str, ok: bool = True) -> None:
        status, *printed = await run_command("--config", daemon.config, *arguments)
        assert not ok or status == 0, printed
        self._keep(f"what {daemon.directory.name}'s commands print", "".join(printed).encode())

    async def look_after(self, daemon: DaemonProcess) -> None:
        """What describes; a backup, another HPKE key, and another sealing key with which all is
        sealed anew.
        """
        for task in self.tasks:
            await self._command(daemon, "task", "show", b64url_encode(task.client.task_id))
        for looks in (
            ("task", "list"),
            ("status",),
            ("jobs", "list", "--all"),
            ("jobs", "show", "a1"),
            ("peer", "list"),
            ("doctor",),
        ):
            await self._command(daemon, *looks, ok=looks != ("doctor",))
        backups = daemon.directory / "backups"
        backups.mkdir()
        await self._command(daemon, "backup", str(backups))
        for made in backups.glob("*.sqlite"):
            await self._command(daemon, "backup", "verify", str(made))
        await self._command(daemon, "key", "add", "--active")
        await self._command(daemon, "key", "list")
        await self._command(daemon, "datastore", "new-key", str(daemon.directory / "keys/new.key"))
        assert await daemon.stop() == 0
        text = daemon.config.read_text()
        keys = '"keys/new.key", "keys/sealing-1.key"'
        daemon.config.write_text(text.replace('"keys/sealing-1.key"', keys))
        assert await daemon.start(*PROGRAM)
        await daemon.logged("reseal_finished")
        await self._command(daemon, "datastore", "keys")

    @property
    def sealed(self) -> dict[str, bytes]:
        """Those that are in no file as they are: a report's id and its public share are."""
        return {
            name: secret
            for name, secret in self.secrets.items()
            if name.rpartition(" ")[2] in ("key", "token", "share") and "public" not in name
        }

    def finish(self) -> None:
        """Take what the stopped daemons have: their keys, and the shares of the batches."""
        for daemon in self.house.daemons:
            name = daemon.directory.name
            keys = read_sealing_keys(load(daemon.config))
            assert len(keys) == 2
            for number, key in enumerate(keys):
                self.secrets[f"{name}'s {number}. sealing key"] = key
            opened = open_for_command(daemon.database, holder="a test", now=0)
            read, sealer = opened.datastore.read_sync, make_sealer(keys)
            for stored in read(key_table.kept_keypairs):
                key = stored.unseal(sealer).private_key
                self.secrets[f"{name}'s {stored.config_id}. HPKE key"] = key
            shares = 0
            for task in read(task_table.all_tasks):
                for part in read(contributions, task.task_pk, b"", b"\xff" * 33):
                    aad = batch_share_aad(task.task_id, part.job_id, part.bucket)
                    shares += 1
                    self.secrets[f"{name}'s {shares}. aggregate share"] = sealer.open(
                        aad, part.share
                    )[:_PIECE]
            opened.close()
            assert shares >= 2 * self.rounds, name

    def _keep(self, where: str, what: bytes) -> None:
        self.said[where] = self.said.get(where, b"") + what + b"\n"


def _port(daemon: DaemonProcess) -> int:
    assert daemon.wire.target is not None
    return daemon.wire.target
