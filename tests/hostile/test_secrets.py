"""What the daemons say, on every way that they have of saying something, holds no secret (I9)."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx2
import trio

from dapd.config import load, read_sealing_keys
from dapd.crypto import make_sealer
from dapd.datastore import keys as key_table
from dapd.datastore import open_for_command
from dapd.messages.common import MediaType, b64url_encode
from dapd.server.admin import OPERATIONS
from dapd.taskfile import TaskFiles
from tests.crash.load import House, Load, open_house
from tests.paths import raw
from tests.processes.daemons import DaemonProcess, assert_calm, run_command


def spellings(secret: bytes) -> Iterator[bytes]:
    """All the ways in which bytes get into a text, or a file."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")
    yield repr(secret)[2:-1].encode()
    yield json.dumps(secret.decode("latin-1"))[1:-1].encode()
    yield str(list(secret))[1:-1].encode()


def secrets_of(house: House, files: TaskFiles) -> dict[str, bytes]:
    """Everything that must not be said or stored in the clear. The daemons must be stopped."""
    found = {
        "verification key": files.leader.vdaf_verify_key,
        "aggregator token": files.leader.aggregator_auth_token.encode(),
        "collector token": files.collector.collector_auth_token.encode(),
        "Collector's private key": files.collector.collector_hpke_private_key,
    }
    for daemon in house.daemons:
        name = daemon.directory.name
        [found[f"{name}'s sealing key"]] = sealing = read_sealing_keys(load(daemon.config))
        opened = open_for_command(daemon.database, holder="a test", now=0)
        [stored] = opened.datastore.read_sync(key_table.kept_keypairs)
        opened.close()
        found[f"{name}'s HPKE key"] = stored.unseal(make_sealer(sealing)).private_key
    return found


async def problems(house: House, files: TaskFiles) -> bytes:
    """Answers to requests that are wrong although they hold the right token."""
    path = f"/tasks/{b64url_encode(files.client.task_id)}/"
    said = b""
    for daemon, resource, token in (
        (house.leader, "collection_jobs", files.collector.collector_auth_token),
        (house.helper, "aggregation_jobs", files.leader.aggregator_auth_token),
        (house.helper, "aggregate_shares", files.leader.aggregator_auth_token),
    ):
        for header in ({"DAP-Auth-Token": token}, {"DAP-Auth-Token": token[:-1]}):
            for content in MediaType:
                headers = {**header, "Content-Type": content.value}
                for method, tail in (("POST", ""), ("GET", "/AAAA"), ("GET", f"/{token}")):
                    request = raw.request(method, path + resource + tail, headers, bytes(9))
                    said += await raw.exchange(daemon.wire.port, request)
    return said


async def described(daemon: DaemonProcess, files: TaskFiles) -> bytes:
    """What ``dapd task show`` and ``list`` print, for people and for programs."""
    said = ""
    for command in (("show", b64url_encode(files.client.task_id)), ("list",)):
        for form in ((), ("--json",)):
            arguments = ("--config", daemon.config, "task", *command, *form)
            status, stdout, stderr = await run_command(*arguments)
            assert status == 0, stderr
            said += stdout + stderr
    return said.encode()


async def looked_at(daemon: DaemonProcess) -> bytes:
    """All that the admin interface tells who may read, the page and the metrics among it."""
    said = b""
    transport = httpx2.AsyncHTTPTransport(uds=str(load(daemon.config).admin_socket))
    async with httpx2.AsyncClient(transport=transport, base_url="http://dapd") as client:
        looks = [each.path for each in OPERATIONS if each.method == "GET"]
        for path in ("/", "/metrics", *looks, "/api/v1/jobs?ended=true", "/api/v1/job?job=a1"):
            answer = await client.get(path)
            assert answer.status_code < 500
            said += str(answer.headers).encode() + answer.content
    return said


async def test_i9_no_secret_is_logged_answered_printed_or_stored_in_the_clear(
    tmp_path: Path,
) -> None:
    """A whole upload and collection at level debug, refusals, the commands that describe, and all
    that an operator may look at.
    """
    with trio.fail_after(60):
        async with open_house(tmp_path) as house:
            files = house.new_task("async", "time-interval")
            for daemon in house.daemons:
                assert await daemon.start()
            work = Load(files, random.Random(1))
            await work.run(lambda: True)
            said = {"problem documents": await problems(house, files)}
            for daemon in house.daemons:
                name = daemon.directory.name
                said[f"{name}'s task commands"] = await described(daemon, files)
                said[f"{name}'s admin interface"] = await looked_at(daemon)
                assert await daemon.stop() == 0
                said[f"{name}'s log"] = "\n".join(daemon.lines).encode()
                database = daemon.database.parent.glob("dapd.sqlite*")
                said[f"{name}'s files"] = b"".join(path.read_bytes() for path in database)
            assert_calm(house.daemons)
            for what, text in said.items():
                public = files.client.task_id
                assert any(each in text for each in spellings(public)), (what, "can be searched")
                for name, secret in secrets_of(house, files).items():
                    assert not any(each in text for each in spellings(secret)), (name, what)
