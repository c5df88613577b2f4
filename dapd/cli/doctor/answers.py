"""What an answer to ``hpke_config`` says: about this Aggregator's own URL, and about a peer's."""

from __future__ import annotations

from collections.abc import Iterable

from dapd.cli.doctor.diagnose import Trouble
from dapd.cli.doctor.findings import Finding, failure, ok, warning
from dapd.crypto import hpke_supported
from dapd.datastore.keys import SealedKeypair
from dapd.errors import DecodeError
from dapd.http import Ready, Refused, Unknown
from dapd.messages.common import HpkeConfig, HpkeConfigList
from dapd.protocol.keys import KeyState


def configs_of(outcome: Ready | Refused | Unknown) -> tuple[HpkeConfig, ...] | Trouble:
    """The offered HPKE configurations, or what else an answer is that has arrived."""
    match outcome:
        case Ready(body):
            try:
                return HpkeConfigList.decode(body).configs
            except DecodeError as error:
                return _other_content(f"an answer that is no HpkeConfigList: {error}")
        case Refused(status):
            return _status(status, f"HTTP {status}")
        case Unknown(reason, status):
            assert status is not None, "it has arrived"
            if status < 300:
                return _other_content(reason)
            return _status(status, reason if status < 400 else f"HTTP {status}")


def own(url: str, offered: Iterable[HpkeConfig], stored: list[SealedKeypair]) -> Finding:
    """Whether what is offered at the own URL are the keys of this database that are active."""
    at_url = {config.as_tuple for config in offered}
    kept = {(key.config_id, *key.suite, key.public_key): key.state for key in stored}
    active = {config for config, state in kept.items() if state is KeyState.ACTIVE}
    if at_url == active:
        return ok(url, f"offers the HPKE keys that are active here: {_ids(active)}")
    if strange := at_url - kept.keys():
        return failure(
            url,
            f"offers HPKE keys that this database does not have (id {_ids(strange)})",
            "another dapd or another database answers there: look where the proxy forwards to, and "
            "at the name's records. Reports sealed to those keys can't be opened here",
        )
    return warning(
        url,
        f"offers the HPKE keys {_ids(at_url)}, and active are {_ids(active) or 'none'}",
        "a cache in front keeps an old answer: let it go by Cache-Control, or keep none; if there "
        "is none, restart the daemon",
    )


def peer(url: str, offered: Iterable[HpkeConfig]) -> Finding:
    """Whether Clients can seal reports to a peer."""
    usable = [each.as_tuple for each in offered if hpke_supported(*each.as_tuple[1:4])]
    if usable:
        return ok(url, f"answers, with HPKE keys that can be used: {_ids(usable)}")
    return failure(
        url,
        "offers no HPKE suite that is known here",
        "ask the peer's operator for a key of the mandatory suite: X25519, HKDF-SHA256, "
        "AES-128-GCM",
    )


def _ids(configs: Iterable[tuple[int, int, int, int, bytes]]) -> str:
    return ", ".join(str(config[0]) for config in sorted(configs))


def _other_content(detail: str) -> Trouble:
    if "text/html" in detail:
        return Trouble(
            f"a web page: {detail}",
            "a web server or the proxy itself answers: let it forward this path to the daemon",
            "compare the URL with the peer's operator: something else than an Aggregator is there",
        )
    return Trouble(
        detail,
        "something in front changes the answer or gives its own: let it forward to the daemon",
        "ask the peer's operator which DAP it speaks; something between may change the answer",
    )


def _status(status: int, detail: str) -> Trouble:
    if status < 400:
        return Trouble(
            detail,
            "redirects are not followed: let the proxy forward this URL, or make tasks with the "
            "other one",
            "redirects are not followed: ask the peer's operator to serve this URL itself",
        )
    if status in (401, 403, 407):
        return Trouble(
            f"{detail}: something asks for a permission",
            "hpke_config is open to all: let the proxy ask for nothing there",
            "ask the peer's operator to open hpke_config; something between may block it",
        )
    if status in (404, 410):
        return Trouble(
            f"{detail}: nothing is there",
            "let the proxy forward this whole path to the daemon, prefix included or stripped",
            "compare the endpoint, with its path, with the peer's operator",
        )
    if status >= 500:
        return Trouble(
            detail,
            "the proxy can't reach the daemon, or that one is overloaded: look at both logs",
            "the peer is out of order: ask its operator",
        )
    return Trouble(
        detail, "look at the proxy's log for what it refuses", "ask the peer's operator why"
    )
