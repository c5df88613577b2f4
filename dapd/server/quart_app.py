"""The Quart application: every resource but uploads, and what becomes of a handler's failure."""

from __future__ import annotations

import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from dapd.errors import Abort
from dapd.runtime.context import Context
from dapd.server import aggregate_shares, aggregation_jobs, collection_jobs, hpke_config
from dapd.server.problems import FAILED, problem_document

_log = structlog.get_logger()


def build(context: Context) -> QuartTrio:
    """An ASGI application that expects paths without a prefix and ``scope["dapd.task"]``."""
    app = QuartTrio("dapd", static_folder=None)
    app.url_map.merge_slashes = False  # a resource has one URL; no redirect to it from others
    app.config["MAX_CONTENT_LENGTH"] = context.config.server.max_body_bytes
    app.config["BODY_TIMEOUT"] = None
    app.config["RESPONSE_TIMEOUT"] = None
    for module in (hpke_config, aggregation_jobs, aggregate_shares, collection_jobs):
        app.register_blueprint(module.blueprint(context))

    @app.errorhandler(Abort)
    async def aborted(abort: Abort) -> Response:
        return _problem(abort)

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        status = error.code or 500
        allowed = dict(error.get_headers()).get("Allow")
        headers = {"Allow": allowed} if allowed else {}
        return _problem(
            Abort(None, error.description or error.name, status=status, headers=headers)
        )

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        _log.error("request_failed", route=request.path, exc_info=error)
        return _problem(FAILED)

    return app


def _problem(abort: Abort) -> Response:
    task = request.scope.get("dapd.task")
    status, headers, body = problem_document(abort, task.id_text if task else None)  # type: ignore[attr-defined]
    return Response(body, status=status, headers=dict(headers))
