"""Build problem documents: section "Errors" of the draft, RFC 9457 (rule A10).

If dapd itself failed, ``instance`` is the request's id, by which an operator finds the log line.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec
import structlog

from dapd.errors import Abort
from dapd.telemetry.log_context import request_id

_log = structlog.get_logger()
_URN = "urn:ietf:params:ppm:dap:error:"
TITLES = {
    "invalidMessage": "The message could not be parsed or was invalid.",
    "unrecognizedTask": "The task ID is unknown.",
    "unrecognizedAggregationJob": "The aggregation job ID is unknown.",
    "batchInvalid": "The batch boundary check for the query failed.",
    "invalidBatchSize": "There is an invalid number of reports in the batch.",
    "invalidAggregationParameter": "The aggregation parameter is invalid.",
    "batchMismatch": "The Aggregators disagree on the reports in the batch.",
    "stepMismatch": "The Aggregators disagree on the step of the aggregation job.",
    "batchOverlap": "The query includes reports that were collected in a different batch.",
    "unsupportedExtension": "An extensions list includes an unknown extension.",
    "invalidExtension": "An extensions list is out of order or has an invalid encoding.",
}
"""The eleven error types of the draft's table; only these carry its URN."""

_FAILED = Abort(None, "the server failed; you may send the same request again", status=500)

Headers = list[tuple[str, str]]


def failure_document(
    error: Exception, route: str, task_id: str | None, answer: Abort = _FAILED
) -> tuple[int, Headers, bytes]:
    """Log an exception that is dapd's fault, and return the response to its request."""
    _log.error(
        "request_failed",
        route=route,
        exc_info=error,
        remedy="if this repeats, run `dapd datastore check` and report this line",
    )
    return problem_document(answer, task_id, request_id())


def problem_document(
    abort: Abort, task_id: str | None, request: str | None = None
) -> tuple[int, Headers, bytes]:
    """Return the status, headers and body of an error response.

    ``task_id`` is the task's id as in URLs, if known; ``request`` the request's id, if the log says
    more.
    """
    document: dict[str, object] = {
        "type": _URN + abort.type if abort.type else "about:blank",
        "title": TITLES[abort.type] if abort.type else HTTPStatus(abort.status).phrase,
        "status": abort.status,
        "detail": abort.detail,
    }
    if task_id is not None:
        document["taskid"] = task_id
    if request is not None:
        document["instance"] = f"urn:uuid:{request}"
    headers = [("Content-Type", "application/problem+json"), *abort.headers.items()]
    return abort.status, headers, msgspec.json.encode(document)
