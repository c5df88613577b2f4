"""How all tests run: property tests are the same on every run, and a slow machine fails none."""

import re
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

settings.register_profile("dapd", deadline=None, derandomize=True)
settings.load_profile("dapd")

# structlog's default renderer draws the local variables of a traceback, which takes seconds, and
# requests to a daemon in the same process time out. ``running_pair`` replaces it, but not once
# ``capture_logs`` was called, which marks structlog as configured.
*_processors, _ = structlog.get_config()["processors"]
structlog.configure(
    [
        *_processors,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, with a shorter name: daemons put Unix sockets there, whose paths have 107
    bytes at most, and a process of pytest-xdist has one more directory.
    """
    return tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name)[:12])
