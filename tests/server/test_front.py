"""What a Client gets when dapd itself fails, and how an operator finds the log line."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import structlog.testing

from dapd.datastore import open_for_command
from dapd.server.front import front
from dapd.telemetry.log_context import add_request_id
from tests.contexts import make_config, open_context
from tests.task_pair import task_pair


async def test_our_own_failure_is_a_500_problem_and_one_log_line(tmp_path: Path) -> None:
    """The Client may send the same request again. The document's ``instance`` is the request's id,
    which the log line has too; neither repeats what the Client chose.
    """
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is not read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def inner(*_: object) -> None:
        raise AssertionError("no handler is reached")

    pair = task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        command = open_for_command(context.datastore.path, holder="a command", now=0)
        command.datastore.run_sync(lambda tx: tx.execute("ALTER TABLE tasks RENAME TO elsewhere"))
        command.close()
        path = f"/chosen/tasks/{'A' * 43}/reports"
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        with structlog.testing.capture_logs(processors=[add_request_id]) as logs:
            await front(context, inner)(scope, receive, send)
    start, body = sent
    problem = json.loads(body["body"])
    assert start["status"] == problem["status"] == 500
    assert (problem["type"], "again" in problem["detail"]) == ("about:blank", True)
    [line] = logs
    assert (line["event"], line["route"]) == ("request_failed", "reports")
    assert problem["instance"] == f"urn:uuid:{uuid.UUID(line['request_id'])}"
    assert "chosen" not in f"{line} {problem}"
