"""Serve ``GET {aggregator}/hpke_config``: section "HPKE Configuration Request"."""

from __future__ import annotations

from quart import Blueprint, Response

from dapd.messages.common import MediaType
from dapd.runtime.context import Context
from dapd.server.requests import ready


def blueprint(context: Context) -> Blueprint:
    """Return the route that publishes the HPKE configurations."""
    routes = Blueprint("hpke_config", __name__)

    @routes.get("/hpke_config")
    async def get_hpke_config() -> Response:
        """Return the active keys, newest first, which is the order of preference."""
        response = ready(context.keyrings.published, MediaType.HPKE_CONFIG_LIST)
        max_age = int(context.config.server.hpke_config_max_age)
        response.headers["Cache-Control"] = f"max-age={max_age}"
        return response

    return routes
