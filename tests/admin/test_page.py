"""The page: what it shows of a real daemon, and that foreign text can't change it."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import httpx2
import msgspec
import pytest

from dapd.admin import status
from dapd.admin.clock import PeerClock
from dapd.admin.operation import Nothing
from dapd.admin.page import DOCUMENTS, formatting, render
from dapd.admin.page.view import MOST_TASKS, Chart, make_page
from dapd.admin.status import DiskView, ErrorView, JobsLine, TaskLine
from dapd.http import DapHttp
from dapd.messages.common import b64url_encode
from dapd.runtime.history import POINTS, History, TaskHistory
from dapd.testing import Pair
from dapd.upkeep.history import take
from tests.pair_harness import TaskHarness, open_pair, until_down

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CSP = "Content-Security-Policy"
VOID = {"meta", "link", "br"}
CALM = {"leader": {"retry_min": 60, "retry_max": 60}}


@asynccontextmanager
async def shown(directory: Path) -> AsyncIterator[tuple[Pair, DapHttp, httpx2.AsyncClient]]:
    """Run a pair without a task, with a DAP client and one on the Leader's admin socket."""
    async with open_pair(directory, leader=CALM) as (pair, http):
        transport = httpx2.AsyncHTTPTransport(uds=str(pair.leader.context.config.admin_socket))
        async with httpx2.AsyncClient(transport=transport, base_url="http://dapd") as client:
            yield pair, http, client


class Read(HTMLParser):
    """A parsed document; checks that elements are closed where they must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[dict[str, str]] = []
        """Rows of all tables: cells by column name, the row's head as "head"."""
        self.scripted: list[str] = []
        self.text = ""
        self._cell: str | None = None
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert len(named) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, named))
        if tag not in VOID:
            self._open.append(tag)
        if named.get("role") == "row":
            self.rows.append({})
        if tag in ("td", "th"):
            self._cell = "head" if tag == "th" else named["data-name"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self._open, f"{tag} can't close itself"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripted.append(data)
        self.text += data
        if self._cell is not None and data.strip():
            row = self.rows[-1]
            row[self._cell] = f"{row.get(self._cell, '')} {' '.join(data.split())}".strip()

    def row(self, head: str) -> dict[str, str]:
        """Return the one row whose head begins so."""
        (found,) = [row for row in self.rows if row.get("head", "").startswith(head)]
        return found

    def labels(self) -> list[str]:
        """Return the charts' labels."""
        return [str(named["aria-label"]) for tag, named in self.elements if tag == "svg"]


async def read(client: httpx2.AsyncClient) -> Read:
    """Get the page; check that it is well-formed, accessible, and uses only its own files."""
    answer = await client.get("/")
    assert answer.status_code == 200, answer.text
    assert all(each.isprintable() or each == "\n" for each in answer.text)
    found = Read(answer.text)
    assert found.scripted == []
    ids = [named["id"] for _, named in found.elements if "id" in named]
    assert len(set(ids)) == len(ids)
    for tag, named in found.elements:
        assert tag not in ("style", "iframe", "form", "img", "object"), tag
        for name, value in named.items():
            assert name != "style", (tag, value)
            assert not name.startswith("on"), (tag, value)
            assert "://" not in (value or ""), (tag, name, value)
            if name in ("href", "src"):
                assert f"/{value}" in DOCUMENTS
        if tag == "th":
            assert named["scope"] in ("col", "row")
        if tag == "svg":
            assert named["role"] == "img"
            assert named["aria-label"]
    headings = [int(tag[1]) for tag, _ in found.elements if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert found.elements[0] == ("html", {"lang": "en"})
    return found


async def test_a_daemon_without_a_task_says_what_to_type_first(tmp_path: Path) -> None:
    """Each empty part says so, and which command fills it."""
    async with shown(tmp_path) as (_, _, client):
        page = await read(client)
    for said in (
        "No task yet: dapd task add FILE",
        "No unfinished job.",
        "No peer",
        "The first numbers will appear within a minute.",
        "there is no backup yet: dapd backup DIR every night, to another disk",
        "none since the daemon started",
    ):
        assert said in " ".join(page.text.split()), said
    assert "One thing to do" in page.text
    assert page.row("id 0")["State"] == "active"


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_each_of_its_documents_is_read_only_and_guarded(tmp_path: Path, path: str) -> None:
    """No foreign script, style, frame or base; no caching, sniffing or referrer."""
    async with shown(tmp_path) as (_, _, client):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert (await client.post(path, content=b"{}")).status_code == 405
    headers = answer.headers
    policy = dict(each.strip().split(" ", 1) for each in headers[CSP].split(";"))
    assert policy == {
        "default-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    kind = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert headers["Content-Type"].split(";")[0] == kind[path.partition(".")[2]]
    foreign = answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, not a place
    assert "url(" not in foreign
    assert "@import" not in foreign
    assert path == "/" or "://" not in foreign


async def test_tasks_have_counts_rates_and_the_last_hour(tmp_path: Path) -> None:
    """The Leader's page and the Helper's: each has its own counts."""
    async with shown(tmp_path) as (pair, http, client):
        leader, helper = pair.leader.context, pair.helper.context
        for context in (leader, helper):
            await take(context)
        task = await pair.new_task(task_info=b64url_encode(b"Schlaf & Traum"))
        hands = TaskHarness(task, http)
        reports = hands.seal([1] * 5, "once")
        await hands.upload(reports)
        await hands.upload(reports[:2])
        await hands.until_counted(pair.leader, "aggregate_finished", 5)
        for context in (leader, helper):
            await take(context)
        row = (await read(client)).row("Schlaf & Traum")
        charts = (await read(client)).labels()
        status_code, _, body = await DOCUMENTS["/"](helper, {})
    assert row["head"] == f"Schlaf & Traum {b64url_encode(task.task_id)[:8]} Leader active"
    assert row["Accepted"].split()[0] == "5"
    assert row["Accepted"].endswith("/s")
    assert row["Refused"] == "2"
    assert row["Aggregated"].split()[0] == "5"
    assert (row["Left out"], row["In no job"], row["Jobs"]) == ("0", "0", "0")
    assert len(charts) == 7
    assert charts[-1].startswith("Uploads accepted, the last hour: lowest ")
    assert charts[2] == "Unfinished jobs, the last hour: lowest 0, highest 0, last 0"
    theirs = Read(body.decode())
    assert status_code == 200
    assert theirs.row("Schlaf & Traum")["Accepted"] == "0"
    assert theirs.row("Schlaf & Traum")["Aggregated"].split()[0] == "5"
    assert theirs.labels()[-1].startswith("Reports aggregated, the last hour: lowest ")


async def test_jobs_that_wait_say_why_and_peers_how_they_are(tmp_path: Path) -> None:
    """The Helper is down: the page shows what waits, since when, and the remedy."""
    async with shown(tmp_path) as (pair, http, client):
        hands = TaskHarness(await pair.new_task(), http)
        reports = hands.seal([1] * 3, "waits")
        await pair.helper.stop()
        await hands.upload(reports)
        await until_down(pair.leader.context, pair.helper.url)
        page = await read(client)
    job = page.row("Aggregation")
    assert job["head"] == "Aggregation Leader, stored"
    assert (job["Count"], job["Reports"]) == ("1", "3")
    assert job["Oldest"].startswith("a1 ")
    assert f"{pair.helper.url} can't be reached" in job["Why it waits"]
    assert f"dapd peer probe {pair.helper.url}" in job["Why it waits"]
    peer = page.row(pair.helper.url)
    assert peer["State"] == "failing"
    assert peer["Down"].startswith("for ")
    assert peer["Requests"].startswith("0 of ")


async def test_foreign_text_is_text(tmp_path: Path) -> None:
    """A task's name comes from outside: it becomes no element, attribute or hidden character."""
    names = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</title></bdi><style>*{display:none}</style>",
        "\u202egnp.exe\u2066",
        "\x00\x1b[2J\n\x7f\u200b\ufeff",
        "{{ page.status }}{% include 'page.html' %}",
        "`dapd task delete`",
        "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    ]
    async with shown(tmp_path) as (pair, _, client):
        for name in names:
            await pair.new_task(task_info=b64url_encode(name.encode()))
        await pair.new_task(task_info=b64url_encode(b"\xff\xfe" + b"x" * 200))
        page = await read(client)
    heads = [row["head"] for row in page.rows if "Accepted" in row]
    for name, head in zip(names, heads[:-1], strict=True):
        assert head.startswith(str(formatting.shown(name))), name
    assert heads[3].startswith("\\u202egnp.exe\\u2066 ")
    assert heads[-1].startswith("\\xff\\xfexxx")


async def test_of_too_many_tasks_the_busiest_are_shown(tmp_path: Path) -> None:
    """The page stays short. Unreadable tasks are always on it, and all are in the order in which
    they were added.
    """
    async with shown(tmp_path) as (pair, _, _):
        found = await status.show(pair.leader.context, Nothing())
    ids = [bytes([0, number]) for number in range(MOST_TASKS + 5)]
    lines = [TaskLine(b64url_encode(each), "leader", "active", "", 0, 0, None) for each in ids]
    lines[0] = msgspec.structs.replace(lines[0], state="unreadable")
    history = History(
        seconds=array("d", [30.0]),
        tasks={
            each: TaskHistory(array("d", [1.0 + place]), array("d", [0.0]))
            for place, each in enumerate(ids)
        },
    )
    page = make_page(msgspec.structs.replace(found, tasks=tuple(lines)), {}, history, NOW)
    assert [row.line for row in page.tasks] == [lines[0], *lines[6:]]
    assert page.left_out == 5
    everything = make_page(msgspec.structs.replace(found, tasks=tuple(lines[:3])), {}, history, NOW)
    assert [row.line for row in everything.tasks] == lines[:3]
    assert everything.left_out == 0


async def test_it_shows_all_that_is_wrong(tmp_path: Path) -> None:
    """Rare states: stopping, a held clock that differs from a peer's, a full disk, a certificate
    and reports that expire soon, an error, a key that never changes.
    """
    async with shown(tmp_path) as (pair, _, _):
        calm = await status.show(pair.leader.context, Nothing())
    replace, soon = msgspec.structs.replace, NOW + timedelta(hours=5)
    line = TaskLine(b64url_encode(bytes(32)), "leader", "unreadable", "", 7, 1234, soon)
    others = [bytes([1, number]) for number in range(MOST_TASKS)]
    peers = (PeerClock("https://a.example", -7.0), PeerClock("https://b.example", 0.5))
    wrong = replace(
        calm,
        stopping=True,
        tasks=(line, *(replace(line, task=b64url_encode(each)) for each in others)),
        jobs=(JobsLine("collection", "leader", "frozen", 3, 1000, None),),
        keys=(replace(calm.keys[0], next_at=None),),
        clock=replace(calm.clock, held="it has jumped", peers=peers),
        disk=DiskView(free=5 << 20, refused_below=1 << 30, database=77 << 20),
        backup_of=NOW - timedelta(days=3),
        certificate_until=soon,
        last_error=ErrorView("2026-01-02T03:00:00Z", "gc_failed", "no room", "make `room`"),
    )
    page = Read(render(make_page(wrong, {}, History(), NOW)).decode())
    said = " ".join(page.text.split())
    for each in (
        "stopping The daemon finishes what runs and starts nothing new.",
        "Less busy tasks that are not shown: 1; dapd task list shows all.",
        "held it has jumped",
        "https://a.example is 7 seconds behind",
        "https://b.example agrees",
        "low 5.0 MiB free the daemon refuses uploads below 1.0 GiB",
        "of 3 days ago",
        "expires in 5 hours",
        "4 minutes ago gc_failed no room make room",
    ):
        assert each in said, each
    task, *_ = (row for row in page.rows if "Accepted" in row)
    assert task["head"] == "no task_info AAAAAAAA Leader unreadable"
    assert (task["In no job"], task["Jobs"], task["Collect"]) == ("1,234", "7", "in 5 hours")
    assert page.row("Collection")["Why it waits"] == "–"
    assert page.row("id ")["Next"] == "–"


@pytest.mark.parametrize(
    ("to_do", "headline"),
    [
        ((), "Nothing to do"),
        (("one",), "One thing to do"),
        (("one", "two"), "2 things to do"),
    ],
)
async def test_the_headline_says_whether_there_is_something_to_do(
    tmp_path: Path, to_do: tuple[str, ...], headline: str
) -> None:
    """It is one line."""
    async with shown(tmp_path) as (pair, _, _):
        found = await status.show(pair.leader.context, Nothing())
    found = msgspec.structs.replace(found, to_do=to_do)
    assert make_page(found, {}, History(), NOW).headline == headline


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0.0], "119,29"),
        ([0.0, 2.0, 4.0], "117,29 118,15 119,1"),
    ],
)
def test_a_chart_begins_at_nothing_and_ends_at_the_right(
    values: Sequence[float], line: str
) -> None:
    """The highest value is at its top; a series shorter than an hour leaves the left empty."""
    assert Chart("x", values, formatting.number).line == line


def test_a_chart_of_an_hour_fills_its_width_and_tells_its_numbers() -> None:
    """Its label has them for screen readers."""
    chart = Chart("Jobs", [*range(1, POINTS + 1), 3][-POINTS:], formatting.number)
    assert chart.line.startswith("0,")
    assert chart.area.startswith("0,30 0,")
    assert chart.area.endswith(" 119,30")
    assert chart.label == "Jobs, the last hour: lowest 2, highest 120, last 3"


@pytest.mark.parametrize(
    ("per_second", "said"),
    [
        (0, "0"),
        (1234.4, "1,234/s"),
        (12.34, "12/s"),
        (1.0, "1.0/s"),
        (0.5, "30/min"),
        (1 / 60, "1.0/min"),
        (3 / 3600, "3.0/h"),
        (0.1 / 3600, "0.1/h"),
    ],
)
def test_a_rate_is_said_in_a_unit_in_which_it_happens(per_second: float, said: str) -> None:
    """0.0008/s would be hard to read."""
    assert formatting.rate(per_second) == said


def test_sizes_and_times_are_said_as_people_say_them() -> None:
    """With two digits."""
    sizes = [formatting.size(each) for each in (0, 240 << 10, 5 << 20, 77 << 30, 3 << 40)]
    assert sizes == ["0 KiB", "240 KiB", "5.0 MiB", "77 GiB", "3.0 TiB"]
    assert formatting.milliseconds(0.00123) == "1.2 ms"
    assert formatting.ago(NOW, NOW) == "a moment ago"
    assert formatting.ago(NOW - timedelta(minutes=5), NOW) == "5 minutes ago"
    assert formatting.ago(NOW + timedelta(days=3), NOW) == "in 3 days"


def test_commands_in_a_sentence_are_marked_and_nothing_else_of_it_is() -> None:
    """The backticks are dapd's, but foreign text may be between them."""
    said = formatting.coded("`dapd peer probe <b>` says\n why")
    assert said == "<code>dapd peer probe &lt;b&gt;</code> says\\n why"
