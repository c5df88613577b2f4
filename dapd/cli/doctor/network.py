"""Check this Aggregator's own URLs as others see them, its peers, and their clocks.

Each URL is asked for its ``hpke_config`` once, however many tasks use it. All are asked at the same
time, each with a deadline.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import trio

from dapd.advice.thresholds import CLOCK_OFF
from dapd.cli.doctor import answers
from dapd.cli.doctor.daemon import Running
from dapd.cli.doctor.database import Contents
from dapd.cli.doctor.diagnose import Trouble, trouble_at
from dapd.cli.doctor.findings import Finding, Steps, check, failure, ok, skipped
from dapd.config import Config
from dapd.datastore.keys import SealedKeypair
from dapd.datastore.tasks import UnreadableTask
from dapd.http import DapHttp, Unknown, resource_url, trusting
from dapd.messages.common import HpkeConfig, MediaType
from dapd.wording import duration

Answer = tuple[HpkeConfig, ...] | Trouble


@dataclass(frozen=True, slots=True)
class Heard:
    """The answers, by endpoint. ``ahead`` is how many seconds each origin's clock is ahead of this
    machine's.
    """

    own: dict[str, Answer]
    peers: dict[str, Answer]
    ahead: dict[str, float] = field(default_factory=dict)

    def note_date(self, origin: str, milliseconds: int) -> None:
        # A Date has whole seconds: half a second later is the middle of that second.
        self.ahead[origin] = milliseconds / 1000 + 0.5 - time.time()


def network(
    config: Config, contents: Contents | None, running: Running | None, seconds: float
) -> Iterator[Finding]:
    """Run all checks that send requests."""
    if contents is None or not contents.tasks:
        return
    heard = yield from listen(config, contents, seconds)
    if heard is not None:
        stopped = running is not None and running.status is None
        yield from own_urls(heard, contents.keys, stopped=stopped)
        yield from peers(heard)
        yield from clocks(heard)


@check("network")
def listen(config: Config, contents: Contents, seconds: float) -> Steps[Heard]:
    """Ask every URL of the served tasks."""
    yield from ()  # other checks judge the answers
    system, authorities = httpx2.create_ssl_context(), config.leader.peer_ca
    trust = system, system if authorities is None else trusting(authorities)
    return trio.run(ask_all, *_endpoints(contents), trust, seconds)


async def ask_all(
    own: set[str], others: set[str], trust: tuple[ssl.SSLContext, ssl.SSLContext], seconds: float
) -> Heard:
    """Ask all URLs for their ``hpke_config``.

    Each has ``seconds`` to answer, and as many again for finding out why it failed. ``trust`` is
    for the own URLs, then for the peers'.
    """
    heard = Heard({}, {})
    async with trio.open_nursery() as nursery:
        for urls, tls, into in zip((own, others), trust, (heard.own, heard.peers), strict=True):
            for url in urls:
                nursery.start_soon(_ask, url, tls, seconds, heard, into)
    return heard


@check("own_url")
def own_urls(heard: Heard, stored: list[SealedKeypair], *, stopped: bool) -> Steps[None]:
    """Check that the tasks' own URLs lead to this daemon, which may be ``stopped``."""
    for url, answer in sorted(heard.own.items()):
        if not isinstance(answer, Trouble):
            yield answers.own(url, answer, stored)
        elif stopped and answer.nobody_listens:
            yield skipped(url, f"no daemon runs, so {answer.detail}")
        else:
            yield failure(url, answer.detail, answer.mine)


@check("peer")
def peers(heard: Heard) -> Steps[None]:
    """Check that the other Aggregators answer."""
    for url, answer in sorted(heard.peers.items()):
        if isinstance(answer, Trouble):
            yield failure(url, answer.detail, answer.peers)
        else:
            yield answers.peer(url, answer)


@check("clock")
def clocks(heard: Heard) -> Steps[None]:
    """Compare this machine's clock with those of the servers that answered."""
    for origin, ahead in sorted(heard.ahead.items()):
        side = "ahead of" if ahead > 0 else "behind"
        offset = f"its clock is {duration(int(1000 * abs(ahead)))} {side} this machine's"
        if abs(ahead) > CLOCK_OFF.total_seconds():
            yield failure(
                origin,
                offset,
                "find out which is wrong: let NTP set this machine's clock (`timedatectl set-ntp "
                "true`), or tell the peer's operator",
            )
        else:
            yield ok(origin, "its clock agrees with this machine's")


def _endpoints(contents: Contents) -> tuple[set[str], set[str]]:
    """Return the own URLs of the served tasks, and the peers'."""
    own, others = set(), set()
    for known in contents.tasks:
        try:
            task = known.sealed.public()
        except UnreadableTask:
            continue  # `dapd.cli.doctor.tasks` tells it
        if task.state.is_served:
            agreed = task.configuration
            both = agreed.leader_aggregator_endpoint, agreed.helper_aggregator_endpoint
            mine, theirs = both if task.is_leader else both[::-1]
            own.add(mine)
            others.add(theirs)
    return own, others


async def _ask(
    endpoint: str, tls: ssl.SSLContext, seconds: float, heard: Heard, into: dict[str, Answer]
) -> None:
    url = resource_url(endpoint, "hpke_config")
    async with DapHttp(timeout=seconds, tls=tls, on_request=lambda: heard.note_date) as http:
        outcome = await http.get(url, MediaType.HPKE_CONFIG_LIST)
    if not isinstance(outcome, Unknown) or outcome.status is not None:
        into[endpoint] = answers.configs_of(outcome)
        return
    into[endpoint] = await trouble_at(url, tls, seconds) or Trouble(
        outcome.reason.removeprefix(f"GET {url}: "),
        "it accepts connections: see the logs of the daemon and of the proxy in front",
        "it accepts connections: ask the peer's operator what is wrong there",
    )
