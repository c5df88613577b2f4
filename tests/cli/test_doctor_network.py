"""What ``dapd doctor`` says of each answer of a URL, over real sockets and handshakes."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest
import trio
from trio.testing import MockClock

from dapd.cli.doctor import answers
from dapd.cli.doctor.diagnose import Trouble, trouble_at
from dapd.cli.doctor.findings import Finding
from dapd.cli.doctor.network import Heard, ask_all, clocks, own_urls, peers
from dapd.crypto import HpkeKeypair
from dapd.datastore.keys import SealedKeypair
from dapd.http import trusting
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType
from dapd.protocol.keys import KeyState
from dapd.server.sockets import reserved_port
from tests.certificates import Authority
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer
from tests.task_pair import X25519

SECONDS = 60
KEY = HpkeConfig(*HpkeKeypair.generate(7, *X25519).config)
UNKNOWN_SUITE = HpkeConfig(8, 0x7777, 1, 1, b"key")
GOOD = answer(200, HpkeConfigList((KEY,)).encode(), Content_Type=MediaType.HPKE_CONFIG_LIST)


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the environment's proxies."""
    for name in ("http", "https", "all", "no"):
        for spelled in (f"{name}_proxy", f"{name}_PROXY".upper()):
            monkeypatch.delenv(spelled, raising=False)


async def ask(script: Callable[[Request], bytes], nursery: trio.Nursery) -> tuple[Heard, str]:
    """Ask a server that answers so, both as the own URL and as a peer."""
    url = await ScriptedServer(script).serve(nursery) + "/"
    with trio.fail_after(SECONDS):
        return await ask_all({url}, {url}, (context(), context()), SECONDS), url


def context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def stored(config: HpkeConfig, state: KeyState = KeyState.ACTIVE) -> SealedKeypair:
    id_, *suite, public = config.as_tuple
    return SealedKeypair(id_, (suite[0], suite[1], suite[2]), public, b"", state)


def both(heard: Heard, keys: list[SealedKeypair]) -> tuple[Finding, Finding]:
    """Return the findings about the own URL and the peer."""
    (own,), (other,) = list(own_urls(heard, keys, stopped=False)), list(peers(heard))
    assert (own.check, other.check) == ("own_url", "peer")
    return own, other


async def test_a_peer_with_usable_keys_and_the_own_keys_are_fine(nursery: trio.Nursery) -> None:
    """A peer needs one known suite; the own URL must offer exactly the active keys."""
    heard, _ = await ask(lambda _: GOOD, nursery)
    own, other = both(heard, [stored(KEY), stored(UNKNOWN_SUITE, KeyState.EXPIRED)])
    assert (own.level, other.level) == ("ok", "ok")


@pytest.mark.parametrize(
    ("keys", "level", "remedy"),
    [
        ([], "failure", "another dapd or another database answers there"),
        ([stored(UNKNOWN_SUITE)], "failure", "another dapd or another database answers there"),
        (
            [stored(KEY, KeyState.EXPIRED)],
            "warning",
            "a cache in front of the daemon has an old answer",
        ),
        (
            [stored(KEY), stored(UNKNOWN_SUITE)],
            "warning",
            "a cache in front of the daemon has an old answer",
        ),
    ],
)
def test_f1_what_is_offered_at_the_own_url_is_what_is_active(
    keys: list[SealedKeypair], level: str, remedy: str
) -> None:
    """A key that the database never had is another daemon's; an older key is a cached answer."""
    found = answers.own("https://a.example/", (KEY,), keys)
    assert found.level == level
    assert (found.remedy or "").startswith(remedy)


def test_another_key_under_the_same_id_is_another_dapds() -> None:
    other = HpkeConfig(*HpkeKeypair.generate(KEY.id, *X25519).config)
    found = answers.own("https://a.example/", (KEY,), [stored(other)])
    assert found.level == "failure"
    assert "(id 7)" in found.detail


@pytest.mark.parametrize(
    "config", [UNKNOWN_SUITE, HpkeConfig(8, *X25519, bytes(32))], ids=["suite", "key"]
)
async def test_a_peer_whose_only_suite_is_unknown_or_whose_key_is_invalid(
    nursery: trio.Nursery, config: HpkeConfig
) -> None:
    body = HpkeConfigList((config,)).encode()
    reply = answer(200, body, Content_Type=MediaType.HPKE_CONFIG_LIST)
    heard, _ = await ask(lambda _: reply, nursery)
    other = both(heard, [])[1]
    assert other.level == "failure"
    assert "mandatory suite" in (other.remedy or "")


@pytest.mark.parametrize(
    ("reply", "detail", "mine", "theirs"),
    [
        (
            answer(301, Location="https://www.a.example/"),
            "HTTP 301: redirected to https://www.a.example/",
            "dapd follows only redirects with 307 or 308 within the origin: make the proxy",
            "dapd follows only redirects with 307 or 308 within the origin: ask the peer's",
        ),
        (
            answer(404, b"<h1>Not Found</h1>", Content_Type="text/html"),
            "HTTP 404: nothing is there",
            "make the proxy forward this whole path",
            "check the endpoint and its path",
        ),
        (
            answer(200, b"<h1>It works!</h1>", Content_Type="text/html"),
            "a web page: ",
            "a web server or the proxy itself answers",
            "check the URL with the peer's operator",
        ),
        (
            answer(200, KEY.encode(), Content_Type="application/octet-stream"),
            "the answer's media type is application/octet-stream",
            "a proxy changes the answer",
            "ask the peer's operator which version of DAP",
        ),
        (
            answer(200, b"\0\1\2", Content_Type=MediaType.HPKE_CONFIG_LIST),
            "the answer is not an HpkeConfigList",
            "a proxy changes the answer",
            "ask the peer's operator which version of DAP",
        ),
        (answer(401), "HTTP 401", "hpke_config is public", "ask the peer's operator to open"),
        (answer(418), "HTTP 418", "see the proxy's log", "ask the peer's operator why"),
        (
            answer(502, b"\x1b[31mBad Gateway"),
            "HTTP 502",
            "the proxy can't reach the daemon",
            "the peer fails: ask its operator",
        ),
        (b"", "", "it accepts connections", "it accepts connections"),
    ],
)
async def test_each_unusable_answer_has_its_own_remedy(
    nursery: trio.Nursery, reply: bytes, detail: str, mine: str, theirs: str
) -> None:
    """One for the own proxy, and one that asks the peer's operator to fix it."""
    heard, _ = await ask(lambda _: reply, nursery)
    own, other = both(heard, [])
    assert (own.level, other.level) == ("failure", "failure")
    assert own.detail == other.detail
    assert own.detail.startswith(detail)
    assert (own.remedy or "").startswith(mine)
    assert (other.remedy or "").startswith(theirs)
    assert "\x1b" not in own.detail + other.detail


@pytest.mark.parametrize(
    ("seconds", "level", "detail"),
    [(0, "ok", "agrees"), (-3600, "failure", "behind this"), (3600, "failure", "ahead of this")],
)
async def test_a_clock_that_is_off_is_told_by_the_date_of_an_answer(
    nursery: trio.Nursery, seconds: int, level: str, detail: str
) -> None:
    """Either clock may be wrong, so the remedy names both."""

    def dated(_: Request) -> bytes:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        return GOOD.replace(b"\r\n", f"\r\nDate: {date}\r\n".encode(), 1)

    heard, url = await ask(dated, nursery)
    (found,) = clocks(heard)
    assert (found.check, found.subject, found.level) == ("clock", url.rstrip("/"), level)
    assert detail in found.detail
    assert level == "ok" or "NTP" in (found.remedy or "")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Provide a port on which nothing listens, and nothing will."""
    with reserved_port() as port:
        yield port


async def test_refused_connections_while_the_daemon_is_stopped_are_no_news(
    closed_port: int,
) -> None:
    """Another check says that the daemon is stopped; if it runs, its proxy is missing."""
    url = f"http://127.0.0.1:{closed_port}/"
    heard = await ask_all({url}, {url}, (context(), context()), SECONDS)
    (stopped,) = own_urls(heard, [], stopped=True)
    (running,) = own_urls(heard, [], stopped=False)
    (other,) = peers(heard)
    assert [each.level for each in (stopped, running, other)] == ["skipped", "failure", "failure"]
    assert "refuses connections" in running.detail
    assert "start the daemon, or the proxy" in (running.remedy or "")
    assert "ask the peer's operator whether it runs" in (other.remedy or "")


def test_a_server_that_never_answers_is_given_up_after_the_timeout() -> None:
    """Measured with Trio's clock, which jumps when all is idle. It delays no other server."""

    async def silent(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def main() -> tuple[Heard, str, str]:
        async with trio.open_nursery() as nursery:
            good = await ScriptedServer(lambda _: GOOD).serve(nursery)
            listeners = await nursery.start(trio.serve_tcp, silent, 0)
            port = listeners[0].socket.getsockname()[1]
            url = f"http://127.0.0.1:{port}/"
            heard = await ask_all(set(), {url, good}, (context(), context()), 10)
            secured = await trouble_at(url.replace("http:", "https:"), context(), 10)
            assert trio.current_time() == 20
            nursery.cancel_scope.cancel()
        assert secured is not None
        return heard, url, secured.detail

    heard, url, secured = trio.run(main, clock=MockClock(autojump_threshold=0.5))
    found = {each.subject: each for each in peers(heard)}
    assert sorted(each.level for each in found.values()) == ["failure", "ok"]
    assert found[url].detail == "no whole answer within 10 s"
    assert secured == "no TLS handshake within 10 s"


async def serve_tls(authority: Authority, nursery: trio.Nursery) -> int:
    """Serve TLS with the certificate that the authority has issued."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.chain, authority.key)

    async def shake(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.do_handshake()

    listeners = await nursery.start(trio.serve_ssl_over_tcp, shake, 0, tls)
    port: int = listeners[0].transport_listener.socket.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("name", "host", "days", "detail"),
    [
        ("127.0.0.1", "127.0.0.1", -1, "its certificate has expired"),
        ("a.example", "127.0.0.1", 9, "its certificate is not for 127.0.0.1"),
        ("a.example", "localhost", 9, "its certificate is not for localhost"),
    ],
)
async def test_a_certificate_that_is_refused_says_why(
    nursery: trio.Nursery, tmp_path: Path, name: str, host: str, days: int, detail: str
) -> None:
    """Expired, or for another name, but from a trusted authority."""
    expires = datetime.now(UTC) + timedelta(days=days)
    authority = Authority(tmp_path).issue(name, expires=expires)
    url = f"https://{host}:{await serve_tls(authority, nursery)}/"
    tls = trusting(authority.file)
    heard = await ask_all({url}, {url}, (tls, tls), SECONDS)
    own, other = both(heard, [])
    assert own.detail == other.detail == detail
    assert (other.remedy or "").startswith("ask the peer's operator")
    assert not (own.remedy or "").startswith("ask the peer's operator")


async def test_an_authority_that_is_not_trusted_is_named_peer_ca_for_peers_alone(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """[leader] peer_ca is for peers; Clients use their systems' authorities."""
    authority = Authority(tmp_path / "one").issue()
    other_authority = trusting(Authority(tmp_path / "other").file)
    url = f"https://127.0.0.1:{await serve_tls(authority, nursery)}/"
    heard = await ask_all({url}, {url}, (other_authority, other_authority), SECONDS)
    own, other = both(heard, [])
    assert own.detail.startswith("no trusted authority has issued its certificate")
    assert "SSL_CERT_FILE" in (own.remedy or "")
    assert "[leader] peer_ca" in (other.remedy or "")


@pytest.mark.parametrize(
    ("reply", "detail"),
    [(answer(400), "TLS fails: wrong version number"), (b"", "TLS fails: unexpected eof")],
)
async def test_something_else_than_tls(nursery: trio.Nursery, reply: bytes, detail: str) -> None:
    """Plain HTTP behind an https URL, or a server that hangs up."""

    async def speak(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)

    listeners = await nursery.start(trio.serve_tcp, speak, 0)
    url = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}/hpke_config"
    found = await trouble_at(url, context(), SECONDS)
    assert isinstance(found, Trouble)
    assert found.detail.startswith(detail)


async def test_a_name_that_has_no_address() -> None:
    """No name in .invalid exists; an offline machine gets the same remedy."""
    found = await trouble_at("https://helper.invalid/hpke_config", context(), SECONDS)
    assert isinstance(found, Trouble)
    assert "helper.invalid" in found.detail
    assert "this machine's network" in found.peers


async def test_a_proxy_of_the_environment_is_named_and_not_passed_by(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """If requests use a proxy, a direct connection to the peer proves nothing."""
    port = closed_port
    monkeypatch.setenv("https_proxy", f"http://user:secret@127.0.0.1:{port}")
    here = await trouble_at(f"https://127.0.0.1:{port}/hpke_config", context(), SECONDS)
    assert isinstance(here, Trouble)
    assert "refuses connections" in here.detail
    found = await trouble_at("https://helper.example/hpke_config", context(), SECONDS)
    assert isinstance(found, Trouble)
    assert "the proxy that the environment names" in found.detail
    assert "secret" not in repr(found)
