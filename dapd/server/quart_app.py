"""Build the Quart application: every resource but uploads, and the responses to exceptions."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from dapd.errors import Abort
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server import aggregate_shares, aggregation_jobs, collection_jobs, hpke_config
from dapd.server.problems import Headers, failure_document, problem_document


def build(context: Context) -> QuartTrio:
    """Return an ASGI application that expects paths without a prefix and ``scope["dapd.task"]``."""
    app = QuartTrio("dapd", static_folder=None)
    app.url_map.merge_slashes = False  # a resource has one URL; nothing redirects to it
    app.config["MAX_CONTENT_LENGTH"] = context.config.server.max_body_bytes
    app.config["BODY_TIMEOUT"] = None
    app.config["RESPONSE_TIMEOUT"] = None
    for module in (hpke_config, aggregation_jobs, aggregate_shares, collection_jobs):
        app.register_blueprint(module.blueprint(context))

    @app.errorhandler(Abort)
    async def aborted(abort: Abort) -> Response:
        return _response(*problem_document(abort, _task_id()))

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        status = error.code or 500
        allowed = dict(error.get_headers()).get("Allow")
        headers = {"Allow": allowed} if allowed else {}
        abort = Abort(None, error.description or error.name, status=status, headers=headers)
        return _response(*problem_document(abort, _task_id()))

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        return _response(*failure_document(error, request.blueprint or "unknown", _task_id()))

    return app


def _task_id() -> str | None:
    task: Task | None = request.scope.get("dapd.task")  # type: ignore[assignment]
    return task.id_text if task else None


def _response(status: int, headers: Headers, body: bytes) -> Response:
    return Response(body, status=status, headers=dict(headers))
