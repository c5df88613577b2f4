"""Find out why a URL can't be reached: try its name, the connection and TLS, one after the other.

Only used after a request failed, since its own error says less. Section "HTTPS Sender
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
"""OpenSSL's X509_V_ERR_*: the certificate has no chain to a trusted authority."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a URL: ``mine`` is the remedy if it is this Aggregator's own, ``peers`` if
    it is a peer's.
    """

    detail: str
    mine: str
    peers: str
    nobody_listens: bool = False


async def trouble_at(url: str, tls: ssl.SSLContext, seconds: float) -> Trouble | None:
    """Return the first step that fails, or ``None`` if only the answer itself is wrong."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _goes_by_proxy(parts.scheme, host):
        return Trouble(
            "the request went through the proxy that the environment names",
            "check that proxy, or unset it for this command",
            "check that proxy; the daemon uses its own environment, not this shell's",
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
        "check the firewalls and routes to it, and whether the server there is overloaded",
        "check this machine's network and firewall, then ask the peer's operator",
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
            "make the server there speak TLS 1.2 or newer; see its log",
            "ask the peer's operator whether this port serves TLS",
        )
    return None


def _unnamed(host: str, error: OSError | UnicodeError) -> Trouble:
    reason = error.strerror if isinstance(error, OSError) else None
    return Trouble(
        f"the name {host} can't be resolved: {reason or error}",
        f"check this machine's network and resolver (`getent hosts {host}`), then the name's DNS "
        "records",
        f"check this machine's network and resolver (`getent hosts {host}`), then ask the peer's "
        "operator about the name's DNS records",
    )


def _unconnected(host: str, port: int, error: OSError) -> Trouble:
    causes = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else ()
    if any(isinstance(each, ConnectionRefusedError) for each in (error, error.__cause__, *causes)):
        return Trouble(
            f"{host} refuses connections to port {port}",
            "start the daemon, or the proxy in front of it",
            "ask the peer's operator whether it runs; check the firewalls between",
            nobody_listens=True,
        )
    return Trouble(
        f"{host}, port {port}, can't be reached: {error.__cause__ or error}",
        "check this machine's network and routes",
        "check this machine's network and routes",
    )


def _unverified(host: str, error: ssl.SSLCertVerificationError) -> Trouble:
    code = error.verify_code
    if code in (_EXPIRED, _NOT_YET_VALID):
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        return Trouble(
            f"its certificate {what}",
            "renew it where TLS ends, and reload that server; if its dates are right, this "
            "machine's clock is wrong",
            "ask the peer's operator to renew it; if its dates are right, this machine's clock is "
            "wrong",
        )
    if code in _OTHER_NAMES:
        return Trouble(
            f"its certificate is not for {host}",
            f"get one for {host}; if another site answers there, fix the name's DNS records",
            f"ask the peer's operator for one for {host}, or whether the URL is right",
        )
    if code in _NO_AUTHORITY:
        return Trouble(
            f"no trusted authority has issued its certificate ({error.verify_message})",
            "send the whole chain of an authority that Clients trust; if that is one of your own, "
            "run `dapd doctor` with SSL_CERT_FILE=FILE",
            "if the authority is your own, set [leader] peer_ca to its file; else ask the peer's "
            "operator to send the whole chain",
        )
    return Trouble(
        f"its certificate is refused: {error.verify_message}",
        "get one that Clients accept",
        "ask the peer's operator for a valid one",
    )


def _goes_by_proxy(scheme: str, host: str) -> bool:
    """Return whether ``DapHttp`` uses a proxy; it never does for this machine."""
    named = {scheme, "all"} & getproxies().keys()
    return bool(named) and not is_loopback(host) and not proxy_bypass(host)


def _port(parts: SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}[parts.scheme]
