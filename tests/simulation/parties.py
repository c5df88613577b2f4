"""A task's client and collector, and the ledger of what they know.

Each report's measurement is a place of its own in a histogram, so that a result says exactly which
reports are in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import trio

from dapd.client import Client, UploadFailed
from dapd.collector import CollectionFailed, Collector, Query, Result
from dapd.http import DapHttp, Patience
from dapd.messages.common import BatchMode
from dapd.reports import ReportError
from dapd.taskfile import TaskFiles
from tests.simulation.clock import WorldClock
from tests.simulation.plan import PRECISION, TaskPlan
from tests.simulation.trace import Trace

LENGTH = 128
"""The most reports that a task gets in one run."""
VDAF = f"histogram:length={LENGTH},chunk_length=11"
_PATIENCE = Patience(attempts=4, minimum=0.5, maximum=5.0)
_LONGEST_WAIT = 60.0
Interval = tuple[int, int]
"""A batch interval: its first time precision, and how many there are."""


class Fate(Enum):
    """What the client knows about a report."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


@dataclass
class Ledger:
    """Which report, by its place, was sent when and became what; and every result.

    ``asked`` are the intervals that were queried, with their results.
    """

    times: list[int] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    results: list[frozenset[int]] = field(default_factory=list)
    asked: dict[Interval, frozenset[int] | None] = field(default_factory=dict)
    unconfirmed: set[frozenset[int]] = field(default_factory=set)

    @property
    def collected(self) -> frozenset[int]:
        return frozenset().union(*self.results)

    @property
    def missing_times(self) -> set[int]:
        """The times of the reports that may have been accepted, and are in no result."""
        collected = self.collected
        return {
            time
            for place, time in enumerate(self.times)
            if place not in collected and self.fates[place] is not Fate.REJECTED
        }

    def of(self, fate: Fate) -> set[int]:
        return {place for place, each in enumerate(self.fates) if each is fate}

    def take(self, result: Result, interval: Interval | None) -> frozenset[int]:
        """Enter a result. Raises ``AssertionError`` if it can't be true."""
        assert isinstance(result.value, list)
        assert set(result.value) <= {0, 1}, f"a report is in one result twice: {result.value}"
        found = frozenset(place for place, n in enumerate(result.value) if n)
        assert len(found) == result.report_count, f"{len(found)} of {result.report_count} reports"
        known = self.asked.get(interval) if interval else None
        if known is not None:
            assert found == known, f"{interval} gave {sorted(known)}, and now {sorted(found)}"
            return found
        if interval is None and found in self.unconfirmed:
            return found
        twice = found & self.collected
        assert not twice, f"{sorted(twice)} are in two results"
        rejected = found & self.of(Fate.REJECTED)
        assert not rejected, f"{sorted(rejected)} were rejected, and are in a result"
        assert max(found) < len(self.times), f"{sorted(found)} has reports that nobody sent"
        if interval is not None:
            first, size = interval
            outside = {place for place in found if not first <= self.times[place] < first + size}
            assert not outside, f"{sorted(outside)} are not of {interval}"
            self.asked[interval] = found
        self.results.append(found)
        return found


class _Forger(Client):
    """A client that spoils the Helper's share, which the Leader can't see."""

    def _reports(self, *args: Any) -> list[bytes]:
        return [report[:-1] + bytes([report[-1] ^ 1]) for report in super()._reports(*args)]


@dataclass
class Parties:
    """The client and the collector of one task.

    ``forgets_deletes``: the Leader may return a batch again that was confirmed, because a restore
    has undone that, or because a proxy's 404 was taken for the Leader's.
    """

    number: int
    plan: TaskPlan
    files: TaskFiles
    clock: WorldClock
    trace: Trace
    forgets_deletes: bool
    ledger: Ledger = field(default_factory=Ledger)
    refused: Counter[str] = field(default_factory=Counter)
    _http: DapHttp = field(default_factory=lambda: DapHttp(timeout=20.0))
    operator: trio.Lock = field(default_factory=trio.Lock)
    _collecting: trio.Lock = field(default_factory=trio.Lock)

    def __post_init__(self) -> None:
        self._client = Client(self.files.client, patience=_PATIENCE, http=self._http)
        self._forger = _Forger(self.files.client, patience=_PATIENCE, http=self._http)
        self._collector = Collector(self.files.collector, patience=_PATIENCE, http=self._http)

    @property
    def by_time(self) -> bool:
        return self.files.client.configuration.batch_mode is BatchMode.TIME_INTERVAL

    @property
    def task_id(self) -> bytes:
        return self.files.client.task_id

    async def upload(self, n: int, ago: float, *, forged: bool = False) -> None:
        """Upload ``n`` reports of one time in one request; if ``forged``, the Helper can't open its
        share of any.
        """
        ledger = self.ledger
        first = len(ledger.times)
        places = range(first, min(first + n, LENGTH))
        time, skipped = self.clock.now() - ago, self.clock.skipped
        ledger.times += [int(time) // PRECISION] * len(places)
        ledger.fates += [Fate.UNKNOWN] * len(places)
        try:
            client = self._forger if forged else self._client
            uploaded = await client.upload(list(places), time=time)
        except UploadFailed as failure:
            self.trace.note("upload_failed", task=self.number, why=failure.type)
            return
        fates = dict.fromkeys(places, Fate.ACCEPTED)
        for rejection in uploaded.rejected:
            replayed = rejection.error == ReportError.REPORT_REPLAYED  # sent twice by a proxy
            expired = self.clock.skipped != skipped  # since it was sent first
            fate = Fate.UNKNOWN if replayed or expired else Fate.REJECTED
            fates[first + rejection.index] = fate
        for place, fate in fates.items():
            ledger.fates[place] = fate
        reasons = sorted(each.reason for each in uploaded.rejected)
        self.trace.note("uploaded", task=self.number, accepted=uploaded.accepted, not_=reasons)

    async def collect(
        self, interval: Interval | None, patience: float = _LONGEST_WAIT
    ) -> str | None:
        """Ask for a batch, and wait for it for ``patience`` seconds. Return the error's type, "" if
        there was no answer, or ``None`` for a result.
        """
        if interval is not None:
            self.ledger.asked.setdefault(interval, None)
        query = (
            Query.next_batch()
            if interval is None
            else Query.interval(interval[0] * PRECISION, interval[1] * PRECISION)
        )
        why: str | None = ""
        async with self._collecting:
            found = None
            try:
                with trio.move_on_after(patience):
                    async with self._collector.collect(query) as result:
                        found = self.ledger.take(result, interval)
                        self.ledger.unconfirmed.add(found)
                        why = None
                    if not self.forgets_deletes:
                        self.ledger.unconfirmed.discard(found)
            except CollectionFailed as failure:
                if found is None:
                    why = failure.type or ""
        self.trace.note("collected", task=self.number, of=interval, n=len(found or ()), why=why)
        if why == "batchInvalid" and interval is not None:
            self.ledger.asked.pop(interval, None)  # it has expired
        if why:
            self.refused[why] += 1
        return why
