"""The certificates that the listeners show, and whom the Leader trusts: read, tried, dated.

A certificate is tried in a handshake in memory, in a context of its own, before any connection
meets it: that finds a key of another certificate, a chain that can't be sent and a certificate for
another purpose, and tells when it expires. Left out: when the files are read again
(``dapd.process.reload``), and the connections (``dapd.server.listener``).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dapd.config import Admin, Config, Server
from dapd.config.keyfiles import readable
from dapd.errors import UsageError
from dapd.http import trusting

_KEY_FOR_OTHERS = 0o027
"""A key's mode may let a group read it, as Debian's ssl-cert does, and nobody else."""
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: an expired certificate is still told its date."""
_ALPN = ["http/1.1"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a listener shows from now on. Both times are in ms since the Epoch."""

    tls: ssl.SSLContext
    certificate: Path
    not_before: int
    not_after: int

    def invalid_at(self, now: int) -> str | None:
        """Why no peer accepts it at this time (ms), if so."""
        if now >= self.not_after:
            return f"{self.certificate}: this certificate has expired; renew it"
        if now < self.not_before:
            return f"{self.certificate}: this certificate is not valid yet; check the clock"
        return None


Stamp = tuple[str, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Certificates:
    """``identity`` is the public listener's, ``None`` where TLS ends in front of the daemon,
    ``admin`` that of the admin listener beyond loopback. ``peer_trust`` is ``None`` where the
    system says whom to trust. ``stamps`` tell whether a file has changed since, by its key.
    """

    identity: Identity | None = None
    admin: Identity | None = None
    peer_trust: ssl.SSLContext | None = None
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    @property
    def identities(self) -> tuple[Identity, ...]:
        """What all listeners show that have TLS."""
        return tuple(each for each in (self.identity, self.admin) if each is not None)

    @property
    def not_after(self) -> int | None:
        """When the first of them expires, in ms."""
        return min((each.not_after for each in self.identities), default=None)

    def invalid_at(self, now: int) -> Iterator[str]:
        """For each identity that no peer accepts at this time (ms), why."""
        for identity in self.identities:
            if (problem := identity.invalid_at(now)) is not None:
                yield problem

    def changed(self, config: Config) -> tuple[str, ...]:
        """The keys of ``config`` whose files are others now."""
        return tuple(key for key, stamp in _stamps(config).items() if stamp != self.stamps.get(key))


def read_certificates(config: Config) -> Certificates:
    """All that the configuration names. Raises ``UsageError``; an expired certificate is none."""
    stamps = _stamps(config)  # first: what changes while it is read is read again
    return Certificates(
        read_identity(config.server),
        read_identity(config.admin),
        None if config.leader.peer_ca is None else trusting(config.leader.peer_ca),
        stamps,
    )


def read_identity(listener: Server | Admin) -> Identity | None:
    """The listener's certificate, if it has one. Raises ``UsageError`` that names the file."""
    chain, key = listener.tls_certificate, listener.tls_key
    if chain is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_ALPN)
    try:
        key, _ = readable(key)
        mode = key.stat().st_mode
        if mode & _KEY_FOR_OTHERS:
            raise UsageError(f"{key}: others may read this private key; run `chmod 640 {key}`")
        context.load_cert_chain(chain, key, password=_no_passphrase)
        dates = _tried(context, chain)
    except _PassphraseWantedError:
        raise UsageError(f"{key}: it has a passphrase, which nobody is there to type") from None
    except ssl.SSLError as error:
        reason = _reason(error)
        raise UsageError(
            f"{chain}, {key}: no certificate chain and its key in PEM ({reason})"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{_missing(chain, key)}: {error.strerror}; let this user read it"
        ) from error
    not_before, not_after = (1000 * int(ssl.cert_time_to_seconds(date)) for date in dates)
    return Identity(context, chain, not_before, not_after)


class _PassphraseWantedError(Exception):
    pass


def _no_passphrase() -> str:
    raise _PassphraseWantedError  # else OpenSSL asks on the terminal


def _tried(server: ssl.SSLContext, chain: Path) -> tuple[str, str]:
    """notBefore and notAfter, as a peer is told them that trusts just this certificate."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    client.load_verify_locations(cafile=chain)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    unfinished = list(ends)
    while unfinished:
        for end in tuple(unfinished):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(end)
    shown = ends[0].getpeercert()
    assert shown, "a verified handshake has a certificate"
    return str(shown["notBefore"]), str(shown["notAfter"])


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")


def _missing(*paths: Path) -> Path:
    """Which of the files can't be read."""
    for path in paths:
        try:
            path.open("rb").close()
        except OSError:
            return path
    return paths[0]


def _stamps(config: Config) -> dict[str, Stamp]:
    return {
        "server.tls_certificate": _stamp(config.server.tls_certificate),
        "server.tls_key": _stamp(config.server.tls_key),
        "admin.tls_certificate": _stamp(config.admin.tls_certificate),
        "admin.tls_key": _stamp(config.admin.tls_key),
        "leader.peer_ca": _stamp(config.leader.peer_ca),
    }


def _stamp(path: Path | None) -> Stamp:
    """What differs once another file is there; a renewal may keep the size, not all of these."""
    if path is None:
        return None
    path, _ = readable(path)
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino
