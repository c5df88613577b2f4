"""``GET /``: the state of the daemon as a web page, which changes nothing.

One HTML document, its style, its icon, and a script that refreshes the page; without scripts the
browser reloads it. The page uses nothing from other sites, and its Content-Security-Policy forbids
it. Left out: access (``dapd.admin.access``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import trio
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dapd.admin import status
from dapd.admin.operation import Document, Nothing, rfc3339
from dapd.admin.page import formatting
from dapd.admin.page.view import Page, make_page
from dapd.datastore import counters
from dapd.runtime.context import Context
from dapd.wording import exact_moment

_HEADERS = (
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


async def show(context: Context, _: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return the page as of now. Raises ``DatastoreError``."""
    found = await status.show(context, Nothing())
    totals = await context.read(counters.by_task)
    page = make_page(found, totals, context.history, rfc3339(context.now()))
    body = await trio.to_thread.run_sync(render, page)
    return 200, _headers("text/html; charset=utf-8"), body


def _file(name: str, content_type: str) -> Document:
    @cache
    def read() -> bytes:
        return files(__name__).joinpath(name).read_bytes()

    async def document(
        _context: Context, _headers_asked: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        return 200, _headers(content_type), read()

    return document


def render(page: Page) -> bytes:
    """Render the HTML document."""
    return _template().render(page=page, status=page.status, now=page.now).encode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dapd.admin.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=formatting.shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        ago=formatting.ago,
        coded=formatting.coded,
        exactly=exact_moment,
        number=formatting.number,
        rate=formatting.rate,
        size=formatting.size,
        spelled=formatting.spelled,
    )
    return environment.get_template("page.html")


def _headers(content_type: str) -> list[tuple[str, str]]:
    return [("Content-Type", content_type), *_HEADERS]


DOCUMENTS: Mapping[str, Document] = MappingProxyType(
    {
        "/": show,
        "/page.css": _file("page.css", "text/css; charset=utf-8"),
        "/page.js": _file("page.js", "text/javascript; charset=utf-8"),
        "/page.svg": _file("page.svg", "image/svg+xml"),
    }
)
