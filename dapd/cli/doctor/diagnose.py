"""Why a URL can't be reached: its name, the connection, or TLS, one after the other.

Asked only after a request has failed, whose own error says less. Section "HTTPS Sender
Authentication": certificates are checked as for any request.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import trio

from dapd.config import is_loopback

_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAMES = (62, 64)
_NO_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's X509_V_ERR_*: a certificate without a chain to an authority that is trusted."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """``mine`` is the remedy if the URL is this Aggregator's own, ``peers`` if it is a peer's."""

    detail: str
    mine: str
    peers: str
    nobody_listens: bool = False


async def trouble_at(url: str, tls: ssl.SSLContext, seconds: float) -> Trouble | None:
    """The first step that fails; ``None`` if none does, so that the answer itself is what fails."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _goes_by_proxy(parts.scheme, host):
        return Trouble(
            "the request went through the proxy that the environment names",
            "look at that proxy, or unset it for this command",
            "look at that proxy; the daemon goes by its own environment, not by this shell's",
        )
    stage = f"no address for the name {host}"
    with trio.move_on_after(seconds):
        try:
            await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return _unnamed(host, error)
        stage = "no connection"
        try:
            stream = await trio.open_tcp_stream(host, _port(parts))
        except OSError as error:
            return _unconnected(host, _port(parts), error)
        try:
            if parts.scheme != "https":
                return None
            stage = "no TLS handshake"
            return await _shake(stream, host, tls)
        finally:
            await trio.aclose_forcefully(stream)
    return Trouble(
        f"{stage} within {seconds:g} s",
        "look at the firewalls and routes to it, and whether what listens there is overloaded",
        "look at this machine's network and firewall, then ask the peer's operator",
    )


async def _shake(stream: trio.SocketStream, host: str, tls: ssl.SSLContext) -> Trouble | None:
    secured = trio.SSLStream(stream, tls, server_hostname=host)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _unverified(host, cause)
        reason = cause.reason if isinstance(cause, ssl.SSLError) else None
        return Trouble(
            f"TLS fails: {(reason or str(cause)).lower().replace('_', ' ')}",
            "let what listens there speak TLS 1.2 or newer; look at its log",
            "ask the peer's operator whether TLS is served at this port",
        )
    return None


def _unnamed(host: str, error: OSError | UnicodeError) -> Trouble:
    reason = error.strerror if isinstance(error, OSError) else None
    return Trouble(
        f"the name {host} could not be looked up: {reason or error}",
        f"look at this machine's network and resolver (`getent hosts {host}`), then at the name's "
        "records",
        f"look at this machine's network and resolver (`getent hosts {host}`), then ask the peer's "
        "operator for the name's records",
    )


def _unconnected(host: str, port: int, error: OSError) -> Trouble:
    causes = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else ()
    if any(isinstance(each, ConnectionRefusedError) for each in (error, error.__cause__, *causes)):
        return Trouble(
            f"{host} refuses connections to port {port}",
            "start what listens there, the daemon or the proxy in front of it",
            "ask the peer's operator whether it runs; look at the firewalls between",
            nobody_listens=True,
        )
    return Trouble(
        f"{host}, port {port}, could not be reached: {error.__cause__ or error}",
        "look at this machine's network and routes",
        "look at this machine's network and routes",
    )


def _unverified(host: str, error: ssl.SSLCertVerificationError) -> Trouble:
    code = error.verify_code
    if code in (_EXPIRED, _NOT_YET_VALID):
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        return Trouble(
            f"its certificate {what}",
            "renew it where TLS ends, then reload that; if its dates are right, this machine's "
            "clock is wrong",
            "ask the peer's operator to renew it; if its dates are right, this machine's clock is "
            "wrong",
        )
    if code in _OTHER_NAMES:
        return Trouble(
            f"its certificate is not for {host}",
            f"get one for {host}; if another site answers there, mend the name's records",
            f"ask the peer's operator for one for {host}, or whether the URL is right",
        )
    if code in _NO_AUTHORITY:
        return Trouble(
            f"its certificate is from no authority that is trusted ({error.verify_message})",
            "send the whole chain of an authority that Clients trust; if they trust one of your "
            "own, run this with SSL_CERT_FILE=FILE",
            "if the authority is your own, name its file as [leader] peer_ca; else let the peer's "
            "operator send the whole chain",
        )
    return Trouble(
        f"its certificate is refused: {error.verify_message}",
        "get one that Clients accept",
        "ask the peer's operator for one that is accepted",
    )


def _goes_by_proxy(scheme: str, host: str) -> bool:
    """As ``DapHttp`` decides, which reaches this machine without one."""
    named = {scheme, "all"} & getproxies().keys()
    return bool(named) and not is_loopback(host) and not proxy_bypass(host)


def _port(parts: SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}[parts.scheme]
