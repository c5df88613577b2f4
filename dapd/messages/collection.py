"""The messages about batches, collection jobs and aggregate shares.

Sections "Collection Job Initialization", "Obtaining Aggregate Shares", "Aggregate Share
Encryption", "Batch Modes".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, assert_never

from dapd.messages.codec import Message, Reader, fixed, opaque, uint
from dapd.messages.common import (
    BATCH_ID_SIZE,
    CHECKSUM_SIZE,
    TASK_ID_SIZE,
    BatchMode,
    Extensions,
    HpkeCiphertext,
    Interval,
    encode_extensions,
    read_extensions,
)
from dapd.messages.task import TaskConfiguration


@dataclass(frozen=True, slots=True)
class Query(Message):
    """``Query``: a batch interval, or ``None`` for the next batch that the Leader selects."""

    batch_interval: Interval | None

    @property
    def batch_mode(self) -> BatchMode:
        """The batch mode of this query."""
        if self.batch_interval is None:
            return BatchMode.LEADER_SELECTED
        return BatchMode.TIME_INTERVAL

    @classmethod
    def read(cls, reader: Reader) -> Self:
        mode = BatchMode.read(reader)
        config = reader.vector(2, "query.config")
        match mode:
            case BatchMode.TIME_INTERVAL:
                query = cls(Interval.read(config))
            case BatchMode.LEADER_SELECTED:
                query = cls(None)
            case _:
                assert_never(mode)
        config.finish("query.config")
        return query

    def encode(self) -> bytes:
        config = self.batch_interval.encode() if self.batch_interval is not None else b""
        return uint(self.batch_mode, 1) + opaque(config, 2)


@dataclass(frozen=True, slots=True)
class BatchSelector(Message):
    """``BatchSelector``: a batch interval or a 32-byte batch id."""

    batch: Interval | bytes

    @property
    def batch_mode(self) -> BatchMode:
        """The batch mode of this selector."""
        if isinstance(self.batch, Interval):
            return BatchMode.TIME_INTERVAL
        return BatchMode.LEADER_SELECTED

    @classmethod
    def read(cls, reader: Reader) -> Self:
        mode = BatchMode.read(reader)
        config = reader.vector(2, "batch_selector.config")
        match mode:
            case BatchMode.TIME_INTERVAL:
                selector = cls(Interval.read(config))
            case BatchMode.LEADER_SELECTED:
                selector = cls(config.raw(BATCH_ID_SIZE, "batch_id"))
            case _:
                assert_never(mode)
        config.finish("batch_selector.config")
        return selector

    def encode(self) -> bytes:
        if isinstance(self.batch, Interval):
            config = self.batch.encode()
        else:
            config = fixed(self.batch, BATCH_ID_SIZE)
        return uint(self.batch_mode, 1) + opaque(config, 2)


@dataclass(frozen=True, slots=True)
class CollectionJobReq(Message):
    """``CollectionJobReq``. ``encode`` returns exactly the bytes that the Collector sent."""

    query: Query
    agg_param: bytes = b""
    extensions: Extensions = ()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(Query.read(reader), reader.opaque(4, "agg_param"), read_extensions(reader))

    def encode(self) -> bytes:
        return self.query.encode() + opaque(self.agg_param, 4) + encode_extensions(self.extensions)


@dataclass(frozen=True, slots=True)
class CollectionJobResp(Message):
    """``CollectionJobResp``."""

    report_count: int
    interval: Interval
    leader_encrypted_agg_share: HpkeCiphertext
    helper_encrypted_agg_share: HpkeCiphertext

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.uint(8, "report_count"),
            Interval.read(reader),
            HpkeCiphertext.read(reader),
            HpkeCiphertext.read(reader),
        )

    def encode(self) -> bytes:
        return (
            uint(self.report_count, 8)
            + self.interval.encode()
            + self.leader_encrypted_agg_share.encode()
            + self.helper_encrypted_agg_share.encode()
        )


@dataclass(frozen=True, slots=True)
class AggregateShareReq(Message):
    """``AggregateShareReq``; ``collection_job_req`` is the Collector's request."""

    collection_job_req: CollectionJobReq
    batch_selector: BatchSelector
    report_count: int
    checksum: bytes

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            CollectionJobReq.read(reader),
            BatchSelector.read(reader),
            reader.uint(8, "report_count"),
            reader.raw(CHECKSUM_SIZE, "checksum"),
        )

    def encode(self) -> bytes:
        return (
            self.collection_job_req.encode()
            + self.batch_selector.encode()
            + uint(self.report_count, 8)
            + fixed(self.checksum, CHECKSUM_SIZE)
        )


@dataclass(frozen=True, slots=True)
class AggregateShare(Message):
    """``AggregateShare``."""

    encrypted_aggregate_share: HpkeCiphertext

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(HpkeCiphertext.read(reader))

    def encode(self) -> bytes:
        return self.encrypted_aggregate_share.encode()


@dataclass(frozen=True, slots=True)
class AggregateShareAad(Message):
    """``AggregateShareAad``: the associated data of an encrypted aggregate share."""

    task_id: bytes
    task_configuration: TaskConfiguration
    collection_job_req: CollectionJobReq

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.raw(TASK_ID_SIZE, "task_id"),
            TaskConfiguration.read(reader),
            CollectionJobReq.read(reader),
        )

    def encode(self) -> bytes:
        return (
            fixed(self.task_id, TASK_ID_SIZE)
            + self.task_configuration.encode()
            + self.collection_job_req.encode()
        )
