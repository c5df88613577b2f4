"""The heads of the aggregation job requests; the reports that follow them are the Rust extension's.

Sections "Leader Initialization", "Leader Continuation", "Leader-selected Batch Mode". Left out:
``AggregationJobResp``, which holds nothing but reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dapd.messages.codec import Reader, fixed, opaque, uint
from dapd.messages.common import (
    BATCH_ID_SIZE,
    Extension,
    Extensions,
    encode_extensions,
    read_extensions,
)

LEADER_SELECTED_BATCH_ID = 1
"""The codepoint of the ``leader_selected_batch_id`` aggregation job extension."""


@dataclass(frozen=True, slots=True)
class AggregationJobInitHead:
    """``AggregationJobInitReq`` up to ``verify_inits``."""

    verification_key_id: int = 0
    agg_param: bytes = b""
    extensions: Extensions = ()

    @classmethod
    def decode(cls, body: bytes) -> tuple[Self, int]:
        """The head and the offset where ``verify_inits`` start. Raises ``DecodeError``."""
        reader = Reader(body)
        head = cls(
            reader.uint(1, "verification_key_id"),
            reader.opaque(4, "agg_param"),
            read_extensions(reader),
        )
        return head, reader.offset

    def encode(self) -> bytes:
        """The bytes before ``verify_inits``. Raises ``ValueError`` for a field out of bounds."""
        return (
            uint(self.verification_key_id, 1)
            + opaque(self.agg_param, 4)
            + encode_extensions(self.extensions)
        )


@dataclass(frozen=True, slots=True)
class AggregationJobContinueHead:
    """``AggregationJobContinueReq`` up to ``verify_continues``.

    Those are not parsed: with the VDAFs of one round, any that follows is at fault (rule A11).
    """

    step: int

    @classmethod
    def decode(cls, body: bytes) -> tuple[Self, int]:
        """The head of ``body`` and the offset where ``verify_continues`` start: at the end of
        ``body`` if there are none. Raises ``DecodeError``.
        """
        reader = Reader(body)
        return cls(reader.uint(2, "step")), reader.offset

    def encode(self) -> bytes:
        """The bytes before ``verify_continues``. Raises ``ValueError`` for a step out of bounds."""
        return uint(self.step, 2)


def aggregation_job_init_req(
    verification_key_id: int, batch_id: bytes, verify_inits: bytes
) -> bytes:
    """The ``AggregationJobInitReq``; ``batch_id`` is empty in the time-interval mode."""
    extensions = (leader_selected_batch_id_extension(batch_id),) if batch_id else ()
    head = AggregationJobInitHead(verification_key_id, b"", extensions)
    return head.encode() + verify_inits


def leader_selected_batch_id_extension(batch_id: bytes) -> Extension:
    """The extension that names the batch of a leader-selected aggregation job."""
    return Extension(LEADER_SELECTED_BATCH_ID, fixed(batch_id, BATCH_ID_SIZE))
