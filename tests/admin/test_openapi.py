"""The OpenAPI document: it is valid and complete, and the daemon keeps to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import schemathesis
import structlog.testing
import trio

from dapd.admin import OPERATIONS, openapi
from dapd.app import Daemon
from dapd.collector import Query
from dapd.crypto import hash_token
from dapd.http import DapHttp, Processing, resource_url, trusting
from dapd.messages.common import MediaType, b64url_encode
from dapd.telemetry import logs
from dapd.testing import PairTask, running_pair
from tests.certificates import Authority
from tests.database_dump import findings

TOKEN = "operate-token"
EXAMPLES = 10
"""Random requests for each operation, beside those at the bounds of its fields."""


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the document's operations by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_it_is_an_openapi_document() -> None:
    """It is valid by OpenAPI 3.1's own schema, and always has the same bytes."""
    document = json.loads(openapi.encoded())
    schemathesis.openapi.from_dict(document).validate()
    assert document["openapi"].startswith("3.1")
    openapi.encoded.cache_clear()
    assert json.loads(openapi.encoded()) == document


def test_it_has_every_operation_with_its_scope_and_its_fields() -> None:
    """It has all that is served, each with a description."""
    described = operations(openapi.document())
    for each in OPERATIONS:
        operation = described.pop(f"{each.method} {each.path}")
        assert operation["operationId"] == each.name
        assert operation["summary"]
        assert "``" not in operation["description"]
        assert "Raises" not in operation["description"]
        scope = "read" if each.method == "GET" else "operate"
        assert operation["security"] == [{"token": [scope]}]
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        fields = each.request.__struct_fields__
        assert names == (list(fields) if each.method == "GET" else [])
        assert ("requestBody" in operation) is (each.method == "POST")
        assert {"200", "400", "401", "403", "421"} <= set(operation["responses"])
    left = {path: operation["security"] for path, operation in described.items()}
    assert left == {
        "GET /metrics": [{"token": ["read"]}],
        "GET /api/v1/openapi.json": [{"token": ["read"]}],
        "GET /healthz": [],
        "GET /readyz": [],
    }


def test_a_query_never_has_null_and_keeps_the_bounds() -> None:
    """Optional fields are left out; bounds are the ones that requests are checked against."""
    jobs = operations(openapi.document())["GET /api/v1/jobs"]["parameters"]
    fields = {each["name"]: each for each in jobs}
    assert not any(each["required"] for each in jobs)
    assert fields["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 50,
    }
    assert fields["task"]["schema"] == {"type": "string"}
    assert "null" not in json.dumps(jobs)


def test_times_are_rfc_3339() -> None:
    """Nullable ones too."""
    schemas = openapi.document()["components"]["schemas"]
    moment = {"type": "string", "format": "date-time"}
    assert schemas["JobView"]["properties"]["run_at"] == moment
    assert moment in schemas["StatusView"]["properties"]["backup_of"]["anyOf"]


async def test_the_daemon_keeps_to_it_whatever_is_asked(tmp_path: Path) -> None:
    """Requests made from the document, at its bounds and beyond, with a token for all operations:
    they give up a job, pause a peer, reload the configuration. Each answer is in the document,
    nothing works without the token, and the database is consistent afterwards.
    """
    authority = Authority(tmp_path / "tls").issue()
    admin = {
        "listen": "0.0.0.0:0",
        "hosts": ["127.0.0.1"],
        "tls_certificate": authority.chain,
        "tls_key": authority.key,
        "tokens": [f"operate:{b64url_encode(hash_token(TOKEN))}"],
    }
    level = logs.level()
    with trio.fail_after(120):
        settings: dict[str, dict[str, Any]] = {"admin": admin, "collection": {"poll_hold": 0}}
        async with running_pair(tmp_path, leader=settings) as pair:
            daemon = pair.leader.daemon
            assert daemon is not None
            context = daemon.context
            context.config_path = _written(tmp_path, admin)
            task = await pair.new_task()
            await _begin_collections(task)
            with structlog.testing.capture_logs() as lines:
                status, report = await _tested(tmp_path, daemon, authority, task)
            async with httpx2.AsyncClient(verify=trusting(authority.file)) as client:
                answer = await client.get(f"https://127.0.0.1:{daemon.admin_port}/readyz")
            assert answer.status_code == 200
    logs.set_level(level)  # it was changed, too
    assert status == 0, report
    assert f"Tested: {len(operations(openapi.document()))}" in report
    changes = {line["operation"] for line in lines if line["event"] == "admin_changed"}
    unhurt = {"restore_accept"}  # nothing is quarantined here
    assert changes == {each.name for each in OPERATIONS if each.method == "POST"} - unhurt
    assert not [line for line in lines if line["event"] == "request_failed"]
    for side in ("leader", "helper"):
        assert findings(tmp_path / side / "dapd.sqlite") == []


async def _begin_collections(task: PairTask) -> None:
    """Create the jobs c1 and c2, which wait for reports."""
    collector = task.files.collector
    configuration = collector.configuration
    precision = configuration.time_precision
    url = resource_url(
        configuration.leader_aggregator_endpoint,
        f"tasks/{b64url_encode(task.task_id)}/collection_jobs",
    )
    async with DapHttp() as http:
        for start in (0, precision):
            body = Query.interval(start, precision).request(configuration).encode()
            outcome = await http.create(
                url, body, MediaType.COLLECTION_JOB_REQ, collector.collector_auth_token
            )
            assert isinstance(outcome, Processing)


def _written(directory: Path, admin: dict[str, Any]) -> Path:
    """Write the running daemon's configuration to a file, so that reloads succeed."""
    lines = [f"{key} = {json.dumps(value, default=str)}" for key, value in admin.items()]
    path = directory / "leader.toml"
    path.write_text(
        "[datastore]\n"
        f'path = "{directory}/leader/dapd.sqlite"\n'
        f'sealing_keys = ["{directory}/leader/sealing.key"]\n'
        "[disk]\nmin_free_bytes = 0\n[admin]\n" + "\n".join(lines) + "\n"
    )
    return path


async def _tested(
    directory: Path, daemon: Daemon, authority: Authority, task: PairTask
) -> tuple[int, str]:
    """Run Schemathesis, with a fixed seed; return its exit status and output."""
    document = directory / "openapi.json"
    document.write_text(json.dumps(_with_examples(task)))
    done = await trio.run_process(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", str(document)),
            *("--url", f"https://127.0.0.1:{daemon.admin_port}"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--tls-verify", str(authority.file)),
            *("--checks", "all", "--max-examples", str(EXAMPLES), "--continue-on-failure"),
            *("--seed", "1", "--generation-deterministic"),
        ],
        check=False,
        capture_stdout=True,
        capture_stderr=True,
        cwd=directory,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def _with_examples(task: PairTask) -> dict[str, Any]:
    """Return the document with examples of existing things; random names would all miss."""
    document: dict[str, Any] = json.loads(openapi.encoded())
    there = {
        "job": "c2",
        "task": b64url_encode(task.task_id),
        "url": task.files.client.configuration.helper_aggregator_endpoint,
    }
    for schema in document["components"]["schemas"].values():
        for name in there.keys() & schema.get("properties", {}).keys():
            schema["properties"][name]["examples"] = [there[name]]
    for field in document["components"]["schemas"]["AbandonRequest"]["properties"].values():
        field["examples"] = ["c1"]  # another one: in which order they are tried is not ours
    for operation in operations(document).values():
        for parameter in operation.get("parameters", []):
            if parameter["name"] in there:
                parameter["example"] = there[parameter["name"]]
    return document
