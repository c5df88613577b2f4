"""Judge answers to ``hpke_config``, from this Aggregator's own URLs and from peers."""

from __future__ import annotations

from collections.abc import Iterable

from dapd.cli.doctor.diagnose import Trouble
from dapd.cli.doctor.findings import Finding, failure, ok, warning
from dapd.crypto import hpke_usable
from dapd.datastore.keys import SealedKeypair
from dapd.errors import DecodeError
from dapd.http import Ready, Refused, Unknown
from dapd.messages.common import HpkeConfig, HpkeConfigList
from dapd.protocol.keys import KeyState

_REDIRECTS = "dapd follows only redirects with 307 or 308 within the origin"


def configs_of(outcome: Ready | Refused | Unknown) -> tuple[HpkeConfig, ...] | Trouble:
    """Return the HPKE configurations in an answer, or what is wrong with the answer."""
    match outcome:
        case Ready(body):
            try:
                return HpkeConfigList.decode(body).configs
            except DecodeError as error:
                return _other_content(f"the answer is not an HpkeConfigList: {error}")
        case Refused(status):
            return _status(status, f"HTTP {status}")
        case Unknown(reason, status):
            assert status is not None, "there was an answer"
            if status < 300:
                return _other_content(reason)
            return _status(status, reason if status < 400 else f"HTTP {status}")


def own(url: str, offered: Iterable[HpkeConfig], stored: list[SealedKeypair]) -> Finding:
    """Check that an own URL offers exactly the active keys of this database."""
    at_url = {config.as_tuple for config in offered}
    kept = {(key.config_id, *key.suite, key.public_key): key.state for key in stored}
    active = {config for config, state in kept.items() if state is KeyState.ACTIVE}
    if at_url == active:
        return ok(url, f"offers the active HPKE keys: {_ids(active)}")
    if strange := at_url - kept.keys():
        return failure(
            url,
            f"offers HPKE keys that this database does not have (id {_ids(strange)})",
            "another dapd or another database answers there: check where the proxy forwards to, "
            "and the name's DNS records. This daemon can't open reports sealed to those keys",
        )
    return warning(
        url,
        f"offers the HPKE keys {_ids(at_url)}, but the active ones are {_ids(active) or 'none'}",
        "a cache in front of the daemon has an old answer: let it obey Cache-Control, or turn it "
        "off; if there is no cache, restart the daemon",
    )


def peer(url: str, offered: Iterable[HpkeConfig]) -> Finding:
    """Check that Clients can seal reports to a peer."""
    usable = [each.as_tuple for each in offered if hpke_usable(each.as_tuple)]
    if usable:
        return ok(url, f"answers, and offers usable HPKE keys: {_ids(usable)}")
    return failure(
        url,
        "offers no HPKE key that dapd can use: its suite is not supported, or it is invalid",
        "ask the peer's operator for a key of the mandatory suite: X25519, HKDF-SHA256, "
        "AES-128-GCM",
    )


def _ids(configs: Iterable[tuple[int, int, int, int, bytes]]) -> str:
    return ", ".join(str(config[0]) for config in sorted(configs))


def _other_content(detail: str) -> Trouble:
    if "text/html" in detail:
        return Trouble(
            f"a web page: {detail}",
            "a web server or the proxy itself answers: make it forward this path to the daemon",
            "check the URL with the peer's operator: no Aggregator answers there",
        )
    return Trouble(
        detail,
        "a proxy changes the answer or gives its own: make it forward requests to the daemon",
        "ask the peer's operator which version of DAP it speaks, and about proxies on the way",
    )


def _status(status: int, detail: str) -> Trouble:
    if status < 400:
        return Trouble(
            detail,
            f"{_REDIRECTS}: make the proxy forward this URL, or put the other URL into the tasks",
            f"{_REDIRECTS}: ask the peer's operator to serve this URL itself",
        )
    if status in (401, 403, 407):
        return Trouble(
            f"{detail}: a login is required",
            "hpke_config is public: make the proxy require no login there",
            "ask the peer's operator to open hpke_config; a proxy may block it",
        )
    if status in (404, 410):
        return Trouble(
            f"{detail}: nothing is there",
            "make the proxy forward this whole path to the daemon, with or without its prefix",
            "check the endpoint and its path with the peer's operator",
        )
    if status >= 500:
        return Trouble(
            detail,
            "the proxy can't reach the daemon, or the daemon is overloaded: see both logs",
            "the peer fails: ask its operator",
        )
    return Trouble(detail, "see the proxy's log for what it refuses", "ask the peer's operator why")
