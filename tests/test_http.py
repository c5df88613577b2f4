"""``dapd.http`` against real sockets: what each kind of answer means."""

from __future__ import annotations

import email.utils
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dapd.http import (
    DapHttp,
    Outcome,
    Processing,
    Ready,
    Refused,
    Unknown,
    resource_url,
)
from dapd.http.fields import message_of, parse_retry_after, usable_location
from dapd.messages.common import MediaType
from dapd.server.sockets import reserved_port
from tests.raw_http import Request, answer, read_request
from tests.scripted_server import ScriptedServer

JOB = MediaType.AGGREGATION_JOB_INIT_REQ
RESP = MediaType.AGGREGATION_JOB_RESP
URN = "urn:ietf:params:ppm:dap:error:"


@pytest.fixture
async def http() -> AsyncIterator[DapHttp]:
    async with DapHttp(timeout=30, max_body=1000, max_retry_after=60) as client:
        yield client


async def created(
    http: DapHttp, nursery: trio.Nursery, reply: bytes
) -> tuple[Outcome, ScriptedServer]:
    peer = ScriptedServer(lambda _: reply)
    url = await peer.serve(nursery)
    return await http.create(f"{url}/x/tasks/t/aggregation_jobs", b"body", JOB, "secret"), peer


async def test_a5_a_ready_creation_keeps_its_location_resolved_against_the_request(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """A sync answer's Location is kept; the request has the token and the media type."""
    reply = answer(200, b"shares", Content_Type=RESP, Location="aggregation_jobs/j#part")
    outcome, peer = await created(http, nursery, reply)
    assert outcome == Ready(b"shares", f"{peer.url}/x/tasks/t/aggregation_jobs/j")
    [request] = peer.requests
    assert request.method == "POST"
    assert request.body == b"body"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == JOB


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_a5_any_empty_2xx_to_a_creation_means_processing(
    http: DapHttp, nursery: trio.Nursery, status: int
) -> None:
    """The draft lets a server use any status of the class."""
    reply = answer(status, Location="/x/tasks/t/aggregation_jobs/j?step=0", Retry_After="7")
    outcome, peer = await created(http, nursery, reply)
    assert outcome == Processing(f"{peer.url}/x/tasks/t/aggregation_jobs/j?step=0", 7.0)


async def test_a5_an_empty_creation_without_location_is_unknown(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """There is nothing to poll, and the job may exist."""
    outcome, _ = await created(http, nursery, answer(200))
    assert outcome == Unknown("an empty answer without a Location", 200)


ELSEWHERE = [
    "https://elsewhere.example/job",
    "//elsewhere.example/job",
    "http://127.0.0.1:1/job",
    "https://127.0.0.1/job",
    "http://[broken",
    "http://127.0.0.1:99999999/job",
    "ftp:job",
    "/" + "a" * 3000,
]


@pytest.mark.parametrize("location", ELSEWHERE)
async def test_a5_an_empty_answer_with_a_location_of_another_origin_is_unknown(
    http: DapHttp, nursery: trio.Nursery, location: str
) -> None:
    """The token never goes to an origin that the operator did not name."""
    outcome, _ = await created(http, nursery, answer(200, Location=location))
    assert isinstance(outcome, Unknown)
    assert "Location that can't be used" in outcome.reason


@pytest.mark.parametrize("location", ELSEWHERE)
async def test_a5_a_location_of_another_origin_leaves_a_complete_answer_complete(
    http: DapHttp, nursery: trio.Nursery, location: str
) -> None:
    """Only the DELETE that the Location would be for is not possible."""
    reply = answer(200, b"shares", Content_Type=RESP, Location=location)
    outcome, _ = await created(http, nursery, reply)
    assert outcome == Ready(b"shares", elsewhere=location[:200])


async def test_a5_a_poll_goes_on_whatever_its_location_says(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """The resource is at the URL that was polled."""
    peer = ScriptedServer(
        lambda _: answer(200, Location="https://elsewhere.example/job", Retry_After="7")
    )
    job = f"{await peer.serve(nursery)}/job"
    assert await http.poll(job, "t", MediaType.AGGREGATE_SHARE) == Processing(job, 7.0)


async def test_a5_a_location_of_another_scheme_keeps_that_of_the_request(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """A server behind a TLS proxy writes ``http://``; and the reverse."""
    peer = ScriptedServer(lambda r: answer(Location=f"https://{r.headers['host']}/job?step=0"))
    url = await peer.serve(nursery)
    assert await http.create(url, b"", JOB, "secret") == Processing(f"{url}/job?step=0")


@pytest.mark.parametrize(
    ("location", "url", "usable"),
    [
        ("http://h.example/job", "https://h.example/dap", "https://h.example/job"),
        ("http://h.example:80/job", "https://h.example/dap", "https://h.example/job"),
        ("http://H.example/job", "https://h.example:443/dap", "https://h.example:443/job"),
        ("https://h.example:443/job", "http://h.example/dap", "http://h.example/job"),
        ("http://h.example:8443/job", "https://h.example:8443/dap", "https://h.example:8443/job"),
        ("http://h.example:8080/job", "https://h.example/dap", None),
        ("http://h.example/job", "https://h.example:8443/dap", None),
        ("http://i.example/job", "https://h.example/dap", None),
        ("http://eve@h.example/job", "https://h.example/dap", None),
        ("ws://h.example/job", "https://h.example/dap", None),
        ("job#part", "https://h.example/dap/", "https://h.example/dap/job"),
    ],
)
def test_a5_only_the_scheme_of_a_location_may_differ(
    location: str, url: str, usable: str | None
) -> None:
    """Another port may be another server."""
    assert usable_location(location, url) == usable


async def test_a5_user_info_in_a_location_is_unknown(http: DapHttp, nursery: trio.Nursery) -> None:
    """It would replace the bearer token by a Basic one."""
    peer = ScriptedServer(lambda r: answer(Location=f"http://eve:x@{r.headers['host']}/job"))
    url = await peer.serve(nursery)
    assert isinstance(await http.create(url, b"", JOB, "secret"), Unknown)


async def test_a5_a_get_carries_step_where_asked_and_delete_never(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """The Location's own ``step`` is replaced, other parameters stay as they are."""
    peer = ScriptedServer(lambda _: answer(200))
    job = f"{await peer.serve(nursery)}/job?x=%2F&step=5"
    assert await http.poll(job, "t", RESP, step=0) == Processing(f"{peer.url}/job?x=%2F&step=0")
    await http.poll(job, "t", MediaType.AGGREGATE_SHARE)
    assert await http.delete(job, "t") == Ready(b"")
    assert [(r.method, r.target) for r in peer.requests] == [
        ("GET", "/job?x=%2F&step=0"),
        ("GET", "/job?x=%2F"),
        ("DELETE", "/job?x=%2F"),
    ]


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("application/ppm-dap;message=upload-req", MediaType.UPLOAD_REQ),
        ('Application/PPM-DAP ; Version=18; MESSAGE="upload-req"', MediaType.UPLOAD_REQ),
        ("application/ppm-dap", None),
        ("application/ppm-dap;message=other", None),
        ("application/json;message=upload-req", None),
        ("", None),
        (None, None),
    ],
)
def test_a10_media_types_compare_type_and_message_only(
    content_type: str | None, message: MediaType | None
) -> None:
    """Other parameters don't matter, nor does their case."""
    assert message_of(content_type) == message


@pytest.mark.parametrize("content_type", ["text/html", MediaType.AGGREGATE_SHARE])
async def test_a10_another_media_type_is_unknown(
    http: DapHttp, nursery: trio.Nursery, content_type: str
) -> None:
    """A proxy's friendly page with status 200 is no answer of the Helper."""
    outcome, _ = await created(http, nursery, answer(200, b"hello", Content_Type=content_type))
    assert isinstance(outcome, Unknown)
    assert content_type in outcome.reason


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (Refused(401, None, "a token"), "HTTP 401: a token"),
        (Refused(404, "unrecognizedTask", ""), "HTTP 404 unrecognizedTask"),
        (Refused(400, "batchOverlap", "taken"), "HTTP 400 batchOverlap: taken"),
    ],
)
def test_a_refusal_has_one_wording(refused: Refused, said: str) -> None:
    """In the log, in the status and in a job's last error."""
    assert refused.reason == said


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (
            f'{{"type": "{URN}batchOverlap", "detail": "taken"}}'.encode(),
            Refused(400, "batchOverlap", "taken"),
        ),
        (b'{"type": "about:blank", "title": "No"}', Refused(400, None, "No")),
        (b'{"type": 7, "detail": 8}', Refused(400, None, "8")),
        (b"[" * 100, Refused(400, None, "[" * 100)),
        (b"\xff plain", Refused(400, None, "\ufffd plain")),
        (b"<h1>No</h1>\r\n\tway", Refused(400, None, "<h1>No</h1> way")),
        (b"\0\0a report", Refused(400, None, "")),
        (b"", Refused(400, None, "")),
    ],
)
async def test_a_problem_document_is_read_leniently(
    http: DapHttp, nursery: trio.Nursery, body: bytes, refused: Refused
) -> None:
    """Whatever a peer or a proxy sends with a 4xx, the status and its words arrive."""
    outcome, _ = await created(http, nursery, answer(400, body))
    assert outcome == refused


async def test_i9_a_token_that_a_peer_echoes_is_not_in_its_words(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """A page of a proxy's that shows the request's header is quoted in the log."""
    for status in (400, 502):
        page = b"<pre>Authorization: Bearer secret</pre>"
        outcome, _ = await created(http, nursery, answer(status, page))
        assert "Bearer (the token)" in str(outcome)
        assert "secret" not in str(outcome)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_d4_a_request_that_was_not_judged_is_unknown(
    http: DapHttp, nursery: trio.Nursery, status: int
) -> None:
    """A server in trouble says nothing about the request; Retry-After is kept, and bounded."""
    outcome, _ = await created(http, nursery, answer(status, b"later", Retry_After="600"))
    assert outcome == Unknown(f"HTTP {status}: later", status, 60.0)


async def test_e1_a_busy_peer_can_be_told_from_a_broken_one() -> None:
    """429 and 503 alone don't grow the back-off."""
    assert Unknown("", 429).busy
    assert Unknown("", 503).busy
    assert not Unknown("", 500).busy
    assert not Unknown("").busy


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a5_a_redirect_to_another_origin_is_not_followed(
    http: DapHttp, nursery: trio.Nursery, status: int
) -> None:
    """Neither the body nor the token goes to the other origin, nor by another scheme."""
    elsewhere = ScriptedServer(lambda _: answer(200))
    for place in (f"{await elsewhere.serve(nursery)}/job", "https://{host}/job"):

        def redirect(request: Request, place: str = place) -> bytes:
            return answer(status, Location=place.format(host=request.headers["host"]))

        peer = ScriptedServer(redirect)
        outcome = await http.create(await peer.serve(nursery), b"body", JOB, "secret")
        assert isinstance(outcome, Unknown)
        assert f"HTTP {status}: redirected to {place[:8]}" in outcome.reason
        assert "not followed" in outcome.reason
        assert len(peer.requests) == 1
    assert not elsewhere.requests


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a5_a_redirect_that_may_change_the_method_is_not_followed(
    http: DapHttp, nursery: trio.Nursery, status: int
) -> None:
    """A POST must not become a GET."""
    outcome, peer = await created(http, nursery, answer(status, Location="/elsewhere"))
    reason = f"HTTP {status}: redirected to /elsewhere, not followed"
    assert outcome == Unknown(reason, status)
    assert len(peer.requests) == 1


@pytest.mark.parametrize("status", [307, 308])
async def test_a5_a_redirect_within_the_origin_is_followed(
    http: DapHttp, nursery: trio.Nursery, status: int
) -> None:
    """With method, body and token; a Location is resolved against the URL that answered."""

    def script(request: Request) -> bytes:
        if request.target == "/dap":
            return answer(status, b"moved", Location=f"{peer.url}/other/dap#part")
        return answer(201, Location="job")

    peer = ScriptedServer(script)
    url = await peer.serve(nursery)
    assert await http.create(f"{url}/dap", b"body", JOB, "secret") == Processing(f"{url}/other/job")
    assert await http.delete(f"{url}/dap", "secret") == Ready(b"")
    assert [(r.method, r.target, r.body) for r in peer.requests] == [
        ("POST", "/dap", b"body"),
        ("POST", "/other/dap", b"body"),
        ("DELETE", "/dap", b""),
        ("DELETE", "/other/dap", b""),
    ]
    assert {r.headers["authorization"] for r in peer.requests} == {"Bearer secret"}
    assert {r.headers.get("content-type") for r in peer.requests[:2]} == {JOB}


async def test_a5_a_redirect_to_itself_ends(http: DapHttp, nursery: trio.Nursery) -> None:
    """A proxy that redirects in a circle costs four requests, not the whole timeout."""
    outcome, peer = await created(http, nursery, answer(307, Location="/elsewhere"))
    assert outcome == Unknown("HTTP 307: redirected to /elsewhere, not followed", 307)
    assert len(peer.requests) == 4


async def test_d4_the_timeout_bounds_all_redirects_together(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A peer that redirects slowly occupies its permit no longer than a silent one."""

    async def slow(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await trio.sleep(2)
            await stream.send_all(answer(307, Location="/again"))

    listeners = await nursery.start(trio.serve_tcp, slow, 0)
    port = listeners[0].socket.getsockname()[1]
    began = trio.current_time()
    async with DapHttp(timeout=5) as http:
        outcome = await http.create(f"http://127.0.0.1:{port}/", b"", JOB, "t")
    assert isinstance(outcome, Unknown)
    assert "no whole answer within 5 s" in outcome.reason
    assert trio.current_time() - began == pytest.approx(5)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 10\r\nContent-Type: " + RESP.encode() + b"\r\n\r\nabc",
    ],
)
async def test_d4_a_cut_answer_is_unknown(
    http: DapHttp, nursery: trio.Nursery, reply: bytes
) -> None:
    """The peer may have committed: nothing may be concluded from half an answer."""
    outcome, peer = await created(http, nursery, reply)
    assert isinstance(outcome, Unknown)
    assert outcome.status is None
    assert peer.url in outcome.reason


async def test_d4_no_connection_is_unknown(http: DapHttp) -> None:
    """Nobody listening is an outcome, not an exception."""
    with reserved_port() as port:
        outcome = await http.create(f"http://127.0.0.1:{port}/", b"", JOB, "t")
    assert isinstance(outcome, Unknown)
    assert outcome.status is None


async def test_d4_silence_is_unknown_after_the_timeout(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """The timeout bounds the whole exchange, also a peer that accepts and says nothing."""

    async def mute(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    listeners = await nursery.start(trio.serve_tcp, mute, 0)
    port = listeners[0].socket.getsockname()[1]
    async with DapHttp(timeout=5) as http:
        outcome = await http.create(f"http://127.0.0.1:{port}/", b"", JOB, "t")
    assert isinstance(outcome, Unknown)
    assert "no whole answer within 5 s" in outcome.reason
    nursery.cancel_scope.cancel()


async def test_a_peer_that_is_silent_in_the_handshake_leaves_no_connection_open(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A Helper that is away for days costs no descriptors."""
    left = trio.Event()

    async def mute(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        left.set()

    listeners = await nursery.start(trio.serve_tcp, mute, 0)
    port = listeners[0].socket.getsockname()[1]
    async with DapHttp(timeout=5) as http:
        outcome = await http.create(f"https://127.0.0.1:{port}/", b"", JOB, "t")
        with trio.fail_after(60):
            await left.wait()
    assert isinstance(outcome, Unknown)
    assert "no connection within 2.5 s" in outcome.reason
    nursery.cancel_scope.cancel()


async def test_connections_of_a_replaced_trust_store_end_with_their_last_exchange(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """An idle one ends at once; one in an exchange carries it to its end."""
    ended = trio.Event()
    arrived, go_on = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            arrived.set()
            await go_on.wait()
            await stream.send_all(answer(200, b"shares", Content_Type=RESP))
        ended.set()

    async def exchange() -> None:
        assert await http.create(url, b"", JOB, "secret") == Ready(b"shares")

    listeners = await nursery.start(trio.serve_tcp, serve, 0)
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
    with trio.fail_after(60):
        async with trio.open_nursery() as exchanges:
            exchanges.start_soon(exchange)
            await arrived.wait()
            await http.trust(None)
            go_on.set()
        await ended.wait()
        ended = trio.Event()
        await exchange()
        assert not ended.is_set()
        await http.trust(None)
        await ended.wait()
    nursery.cancel_scope.cancel()


async def test_an_answer_beyond_the_cap_is_unknown(http: DapHttp, nursery: trio.Nursery) -> None:
    """A peer can't fill this process's memory."""
    outcome, _ = await created(http, nursery, answer(200, b"x" * 100_000, Content_Type=RESP))
    assert isinstance(outcome, Unknown)
    assert "an answer longer than 1000 bytes" in outcome.reason


async def test_a_compressed_answer_is_unknown(http: DapHttp, nursery: trio.Nursery) -> None:
    """Nothing is decompressed: the cap would say nothing about its size."""
    reply = answer(200, b"x", Content_Type=RESP, Content_Encoding="gzip")
    outcome, peer = await created(http, nursery, reply)
    assert isinstance(outcome, Unknown)
    assert peer.requests[0].headers["accept-encoding"] == "identity"


async def test_an_empty_upload_answer_is_ready(http: DapHttp, nursery: trio.Nursery) -> None:
    """All reports accepted: there is nothing to poll."""
    peer = ScriptedServer(lambda _: answer(200))
    assert await http.upload(await peer.serve(nursery), b"reports") == Ready(b"")
    assert "authorization" not in peer.requests[0].headers


@pytest.mark.parametrize(
    ("cache_control", "max_age"),
    [
        ("max-age=86400", 86400),
        ("public, Max-Age=60", 60),
        ("max-age=60, no-store", 0),
        ("no-cache", 0),
        ("max-age=soon", None),
        ("", None),
    ],
)
async def test_cache_control_is_kept(
    http: DapHttp, nursery: trio.Nursery, cache_control: str, max_age: int | None
) -> None:
    """How long an ``HpkeConfigList`` may be used."""
    headers = {
        "Content_Type": MediaType.HPKE_CONFIG_LIST,
        "Cache_Control": cache_control,
    }
    peer = ScriptedServer(lambda _: answer(200, b"list", **headers))
    outcome = await http.get(await peer.serve(nursery), MediaType.HPKE_CONFIG_LIST)
    assert outcome == Ready(b"list", max_age=max_age)


async def test_connections_are_kept_and_cookies_are_not(
    http: DapHttp, nursery: trio.Nursery
) -> None:
    """One connection serves many requests; a server can't mark a client."""
    peer = ScriptedServer(lambda _: answer(200, Set_Cookie="id=7"))
    url = await peer.serve(nursery)
    for _ in range(3):
        await http.upload(url, b"reports")
    assert peer.connections == 1
    assert all("cookie" not in request.headers for request in peer.requests)


@pytest.mark.parametrize("method", ["create", "poll", "delete", "upload", "get"])
async def test_d4_every_call_ends_as_a_value(
    http: DapHttp, nursery: trio.Nursery, method: str
) -> None:
    """A cut connection raises from none of them."""
    peer = ScriptedServer(lambda _: b"")
    url = await peer.serve(nursery)
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: http.create(url, b"", JOB, "t"),
        "poll": lambda: http.poll(url, "t", MediaType.AGGREGATE_SHARE),
        "delete": lambda: http.delete(url, "t"),
        "upload": lambda: http.upload(url, b""),
        "get": lambda: http.get(url, MediaType.HPKE_CONFIG_LIST),
    }
    outcome = await calls[method]()  # type: ignore[misc]
    assert isinstance(outcome, Unknown)


async def test_d6_each_answers_date_is_told_with_its_origin(nursery: trio.Nursery) -> None:
    """Also a refusal's; not one that a cache kept, nor what is no date."""
    date = "Fri, 15 Jan 2027 08:00:00 GMT"
    replies = [
        answer(200, b"x", Content_Type=MediaType.HPKE_CONFIG_LIST, Date=date),
        answer(404, Date=date),
        answer(503, Date=date, Age="60"),
        answer(200),
        answer(200, Date="soon"),
    ]
    told: list[tuple[str, int]] = []
    peer = ScriptedServer(lambda _: replies[len(peer.requests) - 1])
    url = await peer.serve(nursery)
    async with DapHttp(
        timeout=60, on_request=lambda: lambda origin, ms: told.append((origin, ms))
    ) as client:
        for _ in replies:
            await client.get(f"{url}/dap/hpke_config", MediaType.HPKE_CONFIG_LIST)
    assert told == [(url, 1_800_000_000_000)] * 2


async def test_d6_a_request_is_told_before_it_is_sent(nursery: trio.Nursery) -> None:
    """However early the peer dates its answer, that was after the request was told."""
    told: list[str] = []

    def script(_: Request) -> bytes:
        told.append("dated")
        return answer(404, Date="Fri, 15 Jan 2027 08:00:00 GMT")

    def on_request() -> Callable[[str, int], None]:
        told.append("asked")
        return lambda _, __: told.append("answered")

    url = await ScriptedServer(script).serve(nursery)
    async with DapHttp(on_request=on_request) as client:
        await client.get(f"{url}/dap/hpke_config", MediaType.HPKE_CONFIG_LIST)
    assert told == ["asked", "dated", "answered"]


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("120", None, 120.0),
        (" 0 ", None, 0.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", "Thu, 01 Jan 1970 00:01:00 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", None, 20.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", None, 0.0),
        ("-5", None, None),
        ("1.5", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(
    value: str | None, date: str | None, seconds: float | None
) -> None:
    """A date is measured by the peer's own clock where it shows it."""
    assert parse_retry_after(value, date, now=100.0) == seconds


DATES = st.datetimes().map(email.utils.format_datetime)
SECONDS = st.from_regex(r"[0-9]{1,30}", fullmatch=True)


@given(st.text() | SECONDS | DATES, st.none() | st.text() | DATES)
def test_retry_after_of_any_text_never_raises(value: str, date: str | None) -> None:
    """A peer's header can't break the driver."""
    seconds = parse_retry_after(value, date, now=100.0)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("endpoint", ["https://a.example/dap", "https://a.example/dap/"])
def test_b7_no_slash_is_added_or_doubled(endpoint: str) -> None:
    """Operators write endpoints with and without the last slash."""
    assert resource_url(endpoint, "tasks", "t") == "https://a.example/dap/tasks/t"
