"""Upload measurements (section "Uploading Reports", Client Behavior).

    async with Client("client.toml") as client:
        result = await client.upload([3, 7, 1])
    for rejection in result.rejected:
        print(rejection.index, rejection.reason)

or, without Trio, ``upload_sync("client.toml", [3, 7, 1])``.

Reports that the Leader rejects are listed in the result; if the Leader can't be reached, or refuses
a request as a whole, ``UploadFailed`` is raised. Client authentication and report extensions are
not supported.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self, assert_never, cast

import trio

from dapd.crypto import hpke_usable
from dapd.errors import DecodeError, PeerError
from dapd.http import (
    DapHttp,
    Patience,
    Ready,
    Refused,
    Unknown,
    resource_url,
    trusting,
    until_known,
)
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType, b64url_encode
from dapd.reports import (
    REPORT_ID_SIZE,
    ReportError,
    outcome_name,
    parse_upload_errors,
    seal_reports,
    shard,
    split_ids,
)
from dapd.taskfile import ClientTask, read_task_file, refuse_insecure_http
from dapd.vdaf import Measurement, make_vdaf
from dapd.wording import count

# Seconds, for an Aggregator that sends no Cache-Control.
_DEFAULT_MAX_AGE = 3600


class UploadFailed(PeerError):
    """An Aggregator can't be reached, or refuses a request as a whole.

    ``type`` is the draft's error token, if the answer has one; ``delivered`` is the result of the
    batches before.
    """

    def __init__(self, message: str, *, type: str | None = None) -> None:
        super().__init__(message)
        self.type = type
        self.delivered = Uploaded(0, ())


@dataclass(frozen=True, slots=True)
class Rejection:
    """A report that the Leader rejected: the measurement's index and the draft's ReportError."""

    index: int
    error: int

    @property
    def reason(self) -> str:
        """The error's name in the draft, such as "report_too_early"."""
        return outcome_name(self.error)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The result of an upload: the number of accepted reports, and the rejections in order."""

    accepted: int
    rejected: tuple[Rejection, ...]

    def __add__(self, other: Uploaded) -> Uploaded:
        return Uploaded(self.accepted + other.accepted, self.rejected + other.rejected)


@dataclass(frozen=True, slots=True)
class _Keys:
    leader: HpkeConfig
    helper: HpkeConfig
    stale_at: float


class Client:
    """Uploads measurements for one task.

    It is an async context manager, and several Trio tasks may use it at once.

    Args:
        task: the path of a ``client.toml``, or the result of ``read_task_file``.
        batch_size: reports per request.
        patience: how long to keep trying while an Aggregator can't be reached.
        http: connections to share with others; by default the client opens its own.
        ca: a PEM file with certificate authorities to trust instead of the system's; only without
            ``http``.
        allow_insecure_http: accept ``http://`` endpoints beyond loopback. The network can then
            replace the Aggregators' HPKE keys, and so read the measurements.
        clock: returns seconds since the Epoch, for reports without a time.

    Raises ``UsageError`` for a task file that can't be used.
    """

    def __init__(  # noqa: PLR0913 - options, each by its name
        self,
        task: ClientTask | Path | str,
        *,
        batch_size: int = 100,
        patience: Patience | None = None,
        http: DapHttp | None = None,
        ca: Path | str | None = None,
        allow_insecure_http: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not isinstance(task, ClientTask):
            task = read_task_file(task)
        if not allow_insecure_http:
            refuse_insecure_http(task.configuration)
        self._task = task
        self._configuration = task.configuration
        self._configuration_bytes = task.configuration.encode()
        self._vdaf = make_vdaf(task.configuration.vdaf)
        self._batch_size = batch_size
        self._patience = patience or Patience()
        self._http = http or DapHttp(tls=None if ca is None else trusting(Path(ca)))
        self._owns_http = http is None
        self._clock = clock
        self._keys: _Keys | None = None
        self._keys_lock = trio.Lock()
        self._url = resource_url(
            self._configuration.leader_aggregator_endpoint,
            "tasks",
            b64url_encode(task.task_id),
            "reports",
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._owns_http:
            await self._http.aclose()

    async def upload(
        self,
        measurements: Iterable[Measurement],
        *,
        time: float | datetime | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Uploaded:
        """Upload any number of measurements, one batch at a time.

        ``time`` is when they were made: seconds since the Epoch or a datetime with a zone; by
        default, now. ``progress`` is called after each batch with the number of its reports.

        Raises:
            ValueError: the VDAF can't encode a measurement; its batch was not sent.
            UploadFailed: an Aggregator can't be reached, or refuses a request.
        """
        total = Uploaded(0, ())
        for index, batch in _batches(measurements, self._batch_size):
            try:
                total += await self._batch(index, batch, time)
            except UploadFailed as error:
                error.delivered = total
                raise
            if progress is not None:
                progress(len(batch))
        return total

    async def _batch(
        self, first: int, batch: Sequence[Measurement], time: float | datetime | None
    ) -> Uploaded:
        when = self._time(time)
        keys = await self._current_keys()
        errors = await self._send(keys, first, range(len(batch)), batch, when)
        outdated = [i for i, error in errors.items() if error == ReportError.OUTDATED_CONFIG]
        if outdated:
            # Try once more, with the current keys and as new reports (D7); then it is final.
            if self._keys is keys:
                self._keys = None
            keys = await self._current_keys()
            again = await self._send(keys, first, outdated, [batch[i] for i in outdated], when)
            errors = {i: error for i, error in errors.items() if i not in outdated} | again
        rejected = tuple(Rejection(first + i, errors[i]) for i in sorted(errors))
        return Uploaded(len(batch) - len(rejected), rejected)

    async def _send(
        self,
        keys: _Keys,
        first: int,
        places: Sequence[int],
        batch: Sequence[Measurement],
        when: int,
    ) -> dict[int, int]:
        """Send one request; return the ReportError of each place in the batch that was rejected."""
        ids = os.urandom(REPORT_ID_SIZE * len(batch))
        try:
            reports = await trio.to_thread.run_sync(self._reports, keys, ids, batch, when)
        except ValueError as error:
            where = f" (counted from measurement {first})" if first else ""
            raise ValueError(f"{error}{where}") from None
        body = b"".join(reports)
        outcome, sends = await until_known(
            lambda: self._http.upload(self._url, body), self._patience
        )
        if not isinstance(outcome, Ready):
            raise _failed(outcome, "the Leader", self._url)
        try:
            statuses = parse_upload_errors(outcome.body)
        except DecodeError as error:
            raise UploadFailed(
                f"{self._url}: the Leader's UploadErrors are invalid: {error}"
            ) from None
        place_of = dict(zip(split_ids(ids), places, strict=True))
        if not all(report_id in place_of for report_id, _ in statuses):
            raise UploadFailed(f"{self._url}: the Leader rejects reports that were not sent")
        return {
            place_of[report_id]: error
            for report_id, error in statuses
            # D7: a report that was accepted in a lost answer comes back as a replay.
            if not (error == ReportError.REPORT_REPLAYED and sends > 1)
        }

    def _reports(
        self, keys: _Keys, ids: bytes, batch: Sequence[Measurement], when: int
    ) -> list[bytes]:
        task_id = self._task.task_id
        measurements = cast(Sequence[int], batch)  # or sequences of lists, depending on the VDAF
        public, leader, helper = shard(self._vdaf, task_id, measurements, ids)
        return seal_reports(
            task_id,
            self._configuration_bytes,
            keys.leader.as_tuple,
            keys.helper.as_tuple,
            ids,
            [when] * len(batch),
            public,
            leader,
            helper,
        )

    def _time(self, given: float | datetime | None) -> int:
        """Return a report's time in the task's time precision, which hides the exact time."""
        if given is None:
            given = self._clock()
        elif isinstance(given, datetime):
            if given.tzinfo is None:
                raise ValueError(f"time {given} has no time zone; add one, such as UTC")
            given = given.timestamp()
        return int(given) // self._configuration.time_precision

    async def _current_keys(self) -> _Keys:
        async with self._keys_lock:  # fetch once, even if many uploads wait
            keys = self._keys
            if keys is None or trio.current_time() >= keys.stale_at:
                keys = self._keys = await self._fetch_keys()
            return keys

    async def _fetch_keys(self) -> _Keys:
        leader, leader_age = await self._fetch_key(
            "the Leader", self._configuration.leader_aggregator_endpoint
        )
        helper, helper_age = await self._fetch_key(
            "the Helper", self._configuration.helper_aggregator_endpoint
        )
        return _Keys(leader, helper, trio.current_time() + min(leader_age, helper_age))

    async def _fetch_key(self, who: str, endpoint: str) -> tuple[HpkeConfig, int]:
        """Return the first HPKE configuration that dapd can seal to, and how long to use it (s)."""
        url = resource_url(endpoint, "hpke_config")
        outcome, _ = await until_known(
            lambda: self._http.get(url, MediaType.HPKE_CONFIG_LIST), self._patience
        )
        if not isinstance(outcome, Ready):
            raise _failed(outcome, who, url)
        try:
            configs = HpkeConfigList.decode(outcome.body).configs
        except DecodeError as error:
            raise UploadFailed(f"{url}: {who}'s HpkeConfigList is invalid: {error}") from None
        for config in configs:
            if hpke_usable(config.as_tuple):
                age = _DEFAULT_MAX_AGE if outcome.max_age is None else outcome.max_age
                return config, age
        raise UploadFailed(
            f"{url}: dapd can use none of {who}'s {count(len(configs), 'HPKE configuration')}: the"
            " suite is not supported, or the key is invalid"
        )


def upload_sync(
    task: ClientTask | Path | str,
    measurements: Iterable[Measurement],
    *,
    time: float | datetime | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Uploaded:
    """Upload measurements from a program without Trio; see ``Client`` and ``Client.upload``.

    result = upload_sync("client.toml", [3, 7, 1])
    """

    async def run() -> Uploaded:
        async with Client(task, **options) as client:
            return await client.upload(measurements, time=time, progress=progress)

    return trio.run(run)


def _batches(
    measurements: Iterable[Measurement], size: int
) -> Iterator[tuple[int, list[Measurement]]]:
    rest = iter(measurements)
    for index in itertools.count(step=size):
        batch = list(itertools.islice(rest, size))
        if not batch:
            return
        yield index, batch


def _failed(outcome: Refused | Unknown, who: str, url: str) -> UploadFailed:
    match outcome:
        case Unknown(reason):
            return UploadFailed(f"{who} can't be reached: {reason}; try again later")
        case Refused(413):
            return UploadFailed(f"{url}: request too large for {who}; use a smaller batch size")
        case Refused(type="unrecognizedTask"):
            return UploadFailed(
                f"{url}: {who} doesn't know the task; ask its operator to add it, or to send you"
                " the current client.toml",
                type="unrecognizedTask",
            )
        case Refused(status, type_, detail):
            what = " ".join(part for part in (type_, detail) if part)
            return UploadFailed(
                f"{url}: {who} refuses the request with {status} {what}".rstrip(), type=type_
            )
        case _:
            assert_never(outcome)
