"""The simulated network: every HTTP request of the deployment passes here and may meet a fault."""

from __future__ import annotations

import email.utils
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import trio

from tests.simulation.determinism import current
from tests.simulation.plan import Noise

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.trace import Trace

_SLOW = 12.0
PROXY_STATUS = (401, 404, 413, 429, 502)


@dataclass
class Answers:
    """What a Helper has answered to each aggregation job, by its path and bytes.

    ``contradictions`` are the jobs that got another answer later: path, bytes, when the first came.
    """

    contradictions: list[tuple[str, bytes, float]] = field(default_factory=list)
    _jobs: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _answers: dict[tuple[str, bytes], tuple[bytes, float]] = field(default_factory=dict)

    def note(self, request: httpx2.Request, body: bytes, call: Call) -> None:
        """Note an answer. A job that the Leader deletes has no identity any more (rule A1)."""
        path = request.url.path
        if "/aggregation_jobs" not in path:
            return
        if request.method == "DELETE":
            self._answers.pop(self._jobs.pop(path, ("", b"")), None)
            return
        if call.status not in (200, 201):
            return
        if request.method == "POST":
            where = dict(call.headers).get(b"location", b"").decode()
            self._jobs[httpx2.URL(where).path] = job = (path, body)
        elif path in self._jobs:
            job = self._jobs[path]
        else:
            return
        if call.answer:
            first, at = self._answers.setdefault(job, (bytes(call.answer), trio.current_time()))
            if first != call.answer:
                self.contradictions.append((*job, at))


@dataclass
class Network:
    """Routes requests by their port, and decides by chance what happens to each.

    ``silent`` are the ports that nothing answers at present: connections hang. Requests to those
    ``losing_answers`` are served, but no answer comes back; those of ``slow`` ones come late.
    """

    chance: random.Random
    noise: Noise
    trace: Trace
    routes: dict[int, Machine] = field(default_factory=dict)
    silent: Counter[int] = field(default_factory=Counter)
    losing_answers: Counter[int] = field(default_factory=Counter)
    slow: Counter[int] = field(default_factory=Counter)
    answers: Answers = field(default_factory=Answers)
    _requests: int = 0

    def transport(self, *_: object, **__: object) -> _Transport:
        """Take the place of httpx2's transport, whatever the options."""
        return _Transport(self)

    async def exchange(self, request: httpx2.Request) -> httpx2.Response:
        """Carry one request and its answer. Raises what httpx2's transport raises."""
        self._requests += 1
        port = request.url.port or 80
        what = {"n": self._requests, "method": request.method, "path": request.url.path}
        body = await request.aread()
        fault = self.noise.draw(self.chance)
        self.trace.note("request", size=len(body), fault=fault, port=port, **what)
        await self._delay()
        if self.silent[port] or fault == "hang_before":
            await trio.sleep_forever()
        if fault == "lost_before":
            raise httpx2.ConnectError("the network lost the request")
        if fault == "proxy":
            return self._of_proxy(request, self.chance.choice(PROXY_STATUS))
        if fault == "cut_request":
            body_sent, whole = body[: self.chance.randrange(len(body) + 1)], False
        else:
            body_sent, whole = body, True
        machine = self.routes[port]
        if fault == "twice":
            machine.serve(request, body, whole=True)  # a proxy sent it a second time
        call = machine.serve(request, body_sent, whole=whole)
        if not whole:
            call.hang_up()
            raise httpx2.WriteError("the connection broke in the request")
        try:
            await call.finished.wait()
        except trio.Cancelled:
            call.hang_up()
            raise
        self.trace.note("answer", status=call.status, size=len(call.answer), **what)
        self.answers.note(request, body, call)
        await self._delay()
        await self._hinder_answer(port)
        if call.status is None or fault == "lost_after":
            raise httpx2.ReadError("the connection broke before the answer")
        if fault == "hang_after":
            await trio.sleep_forever()
        if fault == "bad_gateway":
            return self._of_proxy(request, 502)
        stream = _Body(bytes(call.answer), cut=fault == "cut_answer", chance=self.chance)
        return httpx2.Response(call.status, headers=call.headers, stream=stream)

    async def _hinder_answer(self, port: int) -> None:
        if self.slow[port]:
            await trio.sleep(_SLOW)
        if self.losing_answers[port]:
            await trio.sleep_forever()

    async def _delay(self) -> None:
        slow = self.chance.random() < self.noise.slow
        await trio.sleep(self.chance.random() * (8.0 if slow else 0.02))

    def _of_proxy(self, request: httpx2.Request, status: int) -> httpx2.Response:
        headers = [("Content-Type", "text/html")]
        if status in (429, 502) and self.chance.random() < 0.5:
            headers.append(("Retry-After", str(self.chance.randrange(20))))
        page = _Body(b"<h1>proxy</h1>", cut=False, chance=self.chance)
        return httpx2.Response(status, headers=headers, stream=page)


class _Transport(httpx2.AsyncBaseTransport):
    def __init__(self, network: Network) -> None:
        self._network = network

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        process = current.get()
        if process is not None:
            process.check_alive()
        return await self._network.exchange(request)


class _Body(httpx2.AsyncByteStream):
    """An answer's body, in pieces; if ``cut``, the connection breaks before its end."""

    def __init__(self, body: bytes, *, cut: bool, chance: random.Random) -> None:
        self._body, self._cut, self._chance = body, cut, chance

    async def __aiter__(self) -> AsyncIterator[bytes]:
        middle = self._chance.randrange(len(self._body) + 1)
        yield self._body[:middle]
        await trio.sleep(self._chance.random() / 100)
        if self._cut:
            raise httpx2.RemoteProtocolError("the connection broke in the answer")
        yield self._body[middle:]


@dataclass
class Call:
    """One request at the machine that serves it, as an ASGI server runs it.

    ``finished`` is set after the whole answer, or with ``status`` ``None`` if none comes.
    """

    scope: dict[str, Any]
    body: bytes
    whole: bool
    chance: random.Random
    finished: trio.Event = field(default_factory=trio.Event)
    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    answer: bytearray = field(default_factory=bytearray)
    _hung_up: trio.Event = field(default_factory=trio.Event)
    _given: bool = False
    _began: tuple[int, list[tuple[bytes, bytes]]] | None = None

    def hang_up(self) -> None:
        """The caller has gone."""
        self._hung_up.set()

    async def run(self, app: Any, date: float) -> None:
        """Serve the request with the ASGI application ``app``; ``date`` is the machine's time."""
        try:
            await app(self.scope, self._receive, self._send)
            if self._began is not None and self.status is None:
                status, headers = self._began
                self.headers = [
                    *headers,
                    (b"date", email.utils.formatdate(date, usegmt=True).encode()),
                ]
                self.status = status
        finally:
            self.finished.set()

    async def _receive(self) -> dict[str, Any]:
        await trio.sleep(self.chance.random() / 1000)
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self.body, "more_body": not self.whole}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self._began = message["status"], list(message.get("headers", []))
        else:
            self.answer += message.get("body", b"")
