"""Read and test the listeners' TLS certificates, and the CAs that the Leader trusts.

Before any connection uses a certificate, it is tested in a handshake in memory, in a context of its
own. That finds the key of another certificate, a chain that can't be sent and a certificate for
another purpose, and tells when it expires. Left out: when to read the files again
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

_FORBIDDEN_KEY_MODE = 0o027
"""A group may read a private key, as Debian's ssl-cert does; no other user may."""
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: the handshake tells an expired certificate's dates too."""
_ALPN = ["http/1.1"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A listener's certificate and its TLS context; it is valid between two times (ms)."""

    tls: ssl.SSLContext
    certificate: Path
    not_before: int
    not_after: int

    def invalid_at(self, now: int) -> str | None:
        """Return why no peer accepts the certificate at this time (ms); ``None`` if it is valid."""
        if now >= self.not_after:
            return f"{self.certificate}: this certificate has expired; renew it"
        if now < self.not_before:
            return f"{self.certificate}: this certificate is not valid yet; check the clock"
        return None


Stamp = tuple[str, int, int, int] | None
"""A file's path, modification time (ns), size and inode; ``None`` for a key that isn't set."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """All certificates of the daemon, as read at one time.

    ``identity`` is the public listener's, ``None`` if a proxy in front does TLS; ``admin`` is that
    of the admin listener beyond loopback. ``peer_trust`` is ``None`` if the Leader trusts the
    system's CAs. ``stamps`` tell, by the configuration's key, whether a file has changed since.
    """

    identity: Identity | None = None
    admin: Identity | None = None
    peer_trust: ssl.SSLContext | None = None
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    @property
    def identities(self) -> tuple[Identity, ...]:
        """The certificates of all listeners that have one."""
        return tuple(each for each in (self.identity, self.admin) if each is not None)

    @property
    def not_after(self) -> int | None:
        """When the first certificate expires, in ms."""
        return min((each.not_after for each in self.identities), default=None)

    def invalid_at(self, now: int) -> Iterator[str]:
        """For each certificate that no peer accepts at this time (ms), yield why."""
        for identity in self.identities:
            if (problem := identity.invalid_at(now)) is not None:
                yield problem

    def changed(self, config: Config) -> tuple[str, ...]:
        """Return the keys of ``config`` whose files have changed since they were read."""
        return tuple(key for key, stamp in _stamps(config).items() if stamp != self.stamps.get(key))


def read_certificates(config: Config) -> Certificates:
    """Read all that the configuration names. Raises ``UsageError``, but not for one that has
    expired.
    """
    stamps = _stamps(config)  # first: a file that changes while it is read is read again
    return Certificates(
        read_identity(config.server),
        read_identity(config.admin),
        None if config.leader.peer_ca is None else trusting(config.leader.peer_ca),
        stamps,
    )


def read_identity(listener: Server | Admin) -> Identity | None:
    """Read and test the listener's certificate, if it has one. Raises ``UsageError``."""
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
        if mode & _FORBIDDEN_KEY_MODE:
            raise UsageError(f"{key}: others may read this private key; run `chmod 640 {key}`")
        context.load_cert_chain(chain, key, password=_no_passphrase)
        dates = _dates_by_handshake(context, chain)
    except _PassphraseWantedError:
        raise UsageError(
            f"{key}: this private key has a passphrase; remove it with `openssl pkey`"
        ) from None
    except ssl.SSLError as error:
        reason = _reason(error)
        raise UsageError(
            f"{chain}, {key}: not a certificate chain and its private key in PEM ({reason})"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{_unreadable_of(chain, key)}: {error.strerror}; let this user read it"
        ) from error
    not_before, not_after = (1000 * int(ssl.cert_time_to_seconds(date)) for date in dates)
    return Identity(context, chain, not_before, not_after)


class _PassphraseWantedError(Exception):
    pass


def _no_passphrase() -> str:
    raise _PassphraseWantedError  # else OpenSSL asks on the terminal


def _dates_by_handshake(server: ssl.SSLContext, chain: Path) -> tuple[str, str]:
    """Handshake with a client that trusts just this certificate. Return notBefore and notAfter."""
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
    certificate = ends[0].getpeercert()
    assert certificate, "a verified handshake has a certificate"
    return str(certificate["notBefore"]), str(certificate["notAfter"])


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")


def _unreadable_of(*paths: Path) -> Path:
    """Return the first file that can't be read."""
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
    """Return the file's stamp. A renewal may keep a file's size, but not all of these."""
    if path is None:
        return None
    path, _ = readable(path)
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino
