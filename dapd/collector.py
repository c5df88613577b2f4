"""Collect aggregate results (sections "Collecting Results", "Collection Job Finalization"; A8, C7).

    async with Collector("collector.toml") as collector:
        async with collector.collect(Query.interval("2026-01-01T00:00Z", 3600)) as result:
            print(result.value, result.report_count)

or, without Trio, ``collect_sync("collector.toml", Query.next_batch(), print)``.

In the leader-selected batch mode, the same query returns the same batch until the collector
confirms it to the Leader. It does so when the ``async with`` block ends without an exception, or
when the callback has returned. So a program that dies in between gets the same batch again.

Failures raise ``CollectionFailed``, with the draft's error type and a remedy. Not supported:
aggregation parameters, which Prio3 doesn't have, and collection job extensions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self, TypeVar, assert_never

import trio

from dapd.crypto import HpkeKeypair
from dapd.errors import DecodeError, PeerError, UsageError
from dapd.http import (
    DapHttp,
    Outcome,
    Patience,
    Processing,
    Ready,
    Refused,
    Unknown,
    resource_url,
    trusting,
    until_known,
)
from dapd.messages import collection
from dapd.messages.collection import AggregateShareAad, CollectionJobReq, CollectionJobResp
from dapd.messages.common import (
    BatchMode,
    HpkeCiphertext,
    MediaType,
    Role,
    b64url_encode,
)
from dapd.messages.task import TaskConfiguration
from dapd.taskfile import CollectorTask, read_task_file, refuse_insecure_http
from dapd.taskfile.values import parse_interval
from dapd.vdaf import make_vdaf, unshard

T = TypeVar("T")

_INFO = b"dap-18 aggregate share"
_FASTEST_POLL = 0.1
# Seconds between polls if the Leader sends no Retry-After: from the first to the slowest, doubling.
_FIRST_POLL, _SLOWEST_POLL = 0.5, 15.0
_MAX_RETRY_AFTER = 300.0

_REMEDIES = {
    "unrecognizedTask": "the Leader doesn't know the task, or the Helper if it is named before; "
    "ask that one's operator to add it",
    "batchInvalid": "ask for an interval within the task's interval that has not expired",
    "batchOverlap": "the batch, or a part of it, was collected before; ask for another interval",
    "invalidBatchSize": "there are too few reports so far; ask again later",
    "batchMismatch": "the Aggregators disagree on the batch; inform both operators",
    "invalidMessage": "the task file may differ from the Leader's; compare the hashes that "
    "`dapd task show` prints",
}


class CollectionFailed(PeerError):
    """A batch could not be collected. ``type`` is the draft's error token, if there is one."""

    def __init__(self, message: str, *, type: str | None = None) -> None:
        super().__init__(message)
        self.type = type


@dataclass(frozen=True, slots=True)
class Query:
    """The batch to collect: (start, duration), or ``None`` for the next leader-selected one."""

    times: tuple[int | str | date, int | str] | None

    @classmethod
    def interval(cls, start: int | str | date, duration: int | str) -> Self:
        """Query the reports of ``duration`` seconds from ``start`` on.

        ``start`` is seconds since the Epoch, a datetime with a zone, a date (its midnight in UTC),
        or one of these as text, in ISO 8601. Both must be multiples of the task's time precision.
        """
        return cls((start, duration))

    @classmethod
    def next_batch(cls) -> Self:
        """Query the next batch that the Leader has selected."""
        return cls(None)

    def request(self, configuration: TaskConfiguration) -> CollectionJobReq:
        """Return the query's request, in the task's time precision (rule C7).

        Raises ``ValueError`` if the query doesn't fit the task.
        """
        by_time = configuration.batch_mode is BatchMode.TIME_INTERVAL
        if by_time != (self.times is not None):
            raise ValueError(
                "the task's batches are time intervals; query an interval"
                if by_time
                else "the task's batches are selected by the Leader; query the next batch"
            )
        if self.times is None:
            return CollectionJobReq(collection.Query(None))
        interval = parse_interval(*self.times, configuration.time_precision)
        return CollectionJobReq(collection.Query(interval))


@dataclass(frozen=True, slots=True)
class Result:
    """The aggregate result of one batch.

    ``value`` is a number for Count and Sum, and a list of numbers for the other VDAFs. All reports
    are from the ``duration`` seconds that begin at ``start``, in seconds since the Epoch.
    """

    value: int | list[int]
    report_count: int
    start: int
    duration: int


class Collector:
    """Collects the batches of one task; an async context manager.

    Args:
        task: the path of a ``collector.toml``, or the result of ``read_task_file``.
        patience: how long to keep trying while the Leader can't be reached.
        http: connections to share with others; by default the collector opens its own.
        ca: a PEM file with certificate authorities to trust instead of the system's; only without
            ``http``.
        allow_insecure_http: accept an ``http://`` Leader beyond loopback. The network can then
            read the token, and collect in this Collector's place.

    Raises ``UsageError`` for a task file that can't be used.
    """

    def __init__(
        self,
        task: CollectorTask | Path | str,
        *,
        patience: Patience | None = None,
        http: DapHttp | None = None,
        ca: Path | str | None = None,
        allow_insecure_http: bool = False,
    ) -> None:
        if not isinstance(task, CollectorTask):
            task = read_collector_task(task)
        if not allow_insecure_http:
            refuse_insecure_http(task.configuration, ["leader_aggregator_endpoint"])
        self._task = task
        self._configuration = task.configuration
        self._vdaf = make_vdaf(task.configuration.vdaf)
        self._keypair = HpkeKeypair(
            *task.collector_hpke_config.as_tuple, task.collector_hpke_private_key
        )
        self._token = task.collector_auth_token
        self._patience = patience or Patience()
        tls = None if ca is None else trusting(Path(ca))
        self._http = http or DapHttp(max_retry_after=_MAX_RETRY_AFTER, tls=tls)
        self._owns_http = http is None
        self._url = resource_url(
            self._configuration.leader_aggregator_endpoint,
            "tasks",
            b64url_encode(task.task_id),
            "collection_jobs",
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._owns_http:
            await self._http.aclose()

    @asynccontextmanager
    async def collect(self, query: Query) -> AsyncIterator[Result]:
        """Wait for the batch and yield its result. There is no time limit; set one yourself.

        Raises:
            ValueError: the query doesn't fit the task.
            CollectionFailed: the Leader refuses, can't be reached, or gives an invalid answer.
        """
        request = query.request(self._configuration)
        ready = await self._wait(request.encode())
        yield self._open(request, ready.body)
        if query.times is None:  # A8
            await self._release(ready)

    async def _wait(self, body: bytes) -> Ready:
        """Start or find the collection job, and poll it until it is ready."""
        outcome: Outcome
        outcome, _ = await until_known(
            lambda: self._http.create(self._url, body, MediaType.COLLECTION_JOB_REQ, self._token),
            self._patience,
        )
        unhurried = _FIRST_POLL
        while isinstance(outcome, Processing):
            location, retry_after = outcome.location, outcome.retry_after
            wait = unhurried if retry_after is None else retry_after
            await trio.sleep(max(wait, _FASTEST_POLL))
            unhurried = min(unhurried * 2, _SLOWEST_POLL)
            outcome, _ = await until_known(lambda: self._poll(location), self._patience)  # noqa: B023 - awaited here
        if isinstance(outcome, Ready):
            return outcome
        raise _failed(outcome, self._url)

    async def _poll(self, location: str) -> Outcome:
        outcome = await self._http.poll(location, self._token, MediaType.COLLECTION_JOB_RESP)
        if isinstance(outcome, Ready) and outcome.location is None:
            return Ready(outcome.body, location)
        return outcome

    async def _release(self, ready: Ready) -> None:
        location = ready.location
        if location is None:
            raise _unconfirmed(f"the Location in its answer is {ready.elsewhere or 'missing'}")
        outcome, _ = await until_known(
            lambda: self._http.delete(location, self._token), self._patience
        )
        match outcome:
            case Ready() | Refused(status=404):  # gone already
                return
            case Refused() | Unknown():
                raise _unconfirmed(_what(outcome))
            case _:
                assert_never(outcome)

    def _open(self, request: CollectionJobReq, body: bytes) -> Result:
        """Check the Leader's answer, decrypt both aggregate shares, and combine them."""
        try:
            response = CollectionJobResp.decode(body)
        except DecodeError as error:
            raise CollectionFailed(f"the Leader's CollectionJobResp is invalid: {error}") from None
        self._check(request, response)
        aad = AggregateShareAad(self._task.task_id, self._configuration, request).encode()
        leader = self._open_share(Role.LEADER, response.leader_encrypted_agg_share, aad)
        helper = self._open_share(Role.HELPER, response.helper_encrypted_agg_share, aad)
        try:
            value = unshard(self._vdaf, leader, helper, response.report_count)
        except ValueError as error:
            raise CollectionFailed(f"the aggregate shares don't fit the VDAF: {error}") from None
        precision = self._configuration.time_precision
        interval = response.interval
        return Result(
            value, response.report_count, interval.start * precision, interval.duration * precision
        )

    def _check(self, request: CollectionJobReq, response: CollectionJobResp) -> None:
        reports, minimum = response.report_count, self._configuration.min_batch_size
        if reports < minimum:
            raise CollectionFailed(
                f"the Leader's batch has fewer reports ({reports}) than the task's minimum"
                f" ({minimum}): it breaks the protocol, don't use its result"
            )
        interval, asked = response.interval, request.query.batch_interval
        outside = asked is not None and (interval.start < asked.start or interval.end > asked.end)
        if interval.duration < 1 or outside:
            raise CollectionFailed(
                f"the Leader's batch spans {interval}, which is outside the query: it breaks the"
                " protocol, don't use its result"
            )

    def _open_share(self, role: Role, share: HpkeCiphertext, aad: bytes) -> bytes:
        own = self._task.collector_hpke_config.id
        whose = f"the {role.name.capitalize()}'s aggregate share"
        if share.config_id != own:
            raise CollectionFailed(
                f"{whose} is encrypted to HPKE config {share.config_id}, not to {own}: that"
                " Aggregator has another Collector's key; send it the current task file"
            )
        try:
            return self._keypair.open(_INFO + bytes([role, 0]), aad, share.enc, share.payload)
        except ValueError:
            raise CollectionFailed(
                f"{whose} can't be decrypted: that Aggregator's task differs from this task file;"
                " compare the hashes that `dapd task show` prints"
            ) from None


def collect_sync(
    task: CollectorTask | Path | str, query: Query, use: Callable[[Result], T], **options: Any
) -> T:
    """Collect a batch from a program without Trio; see ``Collector`` and ``Collector.collect``.

    Calls ``use`` with the result and returns what it returns; confirms a leader-selected batch to
    the Leader only after that.

        total = collect_sync("collector.toml", Query.next_batch(), lambda result: result.value)
    """

    async def run() -> T:
        async with Collector(task, **options) as collector, collector.collect(query) as result:
            return use(result)

    return trio.run(run)


def read_collector_task(path: Path | str) -> CollectorTask:
    """Read a ``collector.toml``. Raises ``UsageError``, also for another party's file."""
    task = read_task_file(path)
    if not isinstance(task, CollectorTask):
        raise UsageError(f"{path}: not the Collector's file; use collector.toml")
    return task


def _unconfirmed(why: str) -> CollectionFailed:
    return CollectionFailed(
        f"the result is complete, but confirming it to the Leader failed ({why}):"
        " the next query will return the same batch again"
    )


def _failed(outcome: Refused | Unknown, url: str) -> CollectionFailed:
    match outcome:
        case Unknown(reason):
            return CollectionFailed(
                f"no answer from the Leader: {reason}; run the same query again later; it finds"
                " the job that this one may have started"
            )
        case Refused(status=401 | 403):
            return CollectionFailed(
                f"{url}: the Leader doesn't accept collector_auth_token ({_what(outcome)}); ask its"
                " operator for the current one"
            )
        case Refused(type=type_):
            remedy = _REMEDIES.get(type_ or "")
            hint = f"; {remedy}" if remedy else ""
            return CollectionFailed(f"{url}: {_what(outcome)}{hint}", type=type_)
        case _:
            assert_never(outcome)


def _what(outcome: Refused | Unknown) -> str:
    if isinstance(outcome, Unknown):
        return outcome.reason
    return ", ".join(
        part for part in (outcome.type or f"HTTP {outcome.status}", outcome.detail) if part
    )
