"""The heads of aggregation job requests: everything before the reports, which Rust parses.

Sections "Leader Initialization", "Leader Continuation", "Leader-selected Batch Mode".
``AggregationJobResp`` is not here, because it contains only reports.
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
        """Return the head and the offset of ``verify_inits``. Raises ``DecodeError``."""
        reader = Reader(body)
        head = cls(
            reader.uint(1, "verification_key_id"),
            reader.opaque(4, "agg_param"),
            read_extensions(reader),
        )
        return head, reader.offset

    def encode(self) -> bytes:
        """Return the bytes before ``verify_inits``. Raises ``ValueError`` for bad fields."""
        return (
            uint(self.verification_key_id, 1)
            + opaque(self.agg_param, 4)
            + encode_extensions(self.extensions)
        )


@dataclass(frozen=True, slots=True)
class AggregationJobContinueHead:
    """``AggregationJobContinueReq`` up to ``verify_continues``.

    Those are not parsed: our VDAFs have one round, so any continuation is an error (rule A11).
    """

    step: int

    @classmethod
    def decode(cls, body: bytes) -> tuple[Self, int]:
        """Return the head and the offset of ``verify_continues``, which is the end of ``body`` if
        there are none. Raises ``DecodeError``.
        """
        reader = Reader(body)
        return cls(reader.uint(2, "step")), reader.offset

    def encode(self) -> bytes:
        """Return the bytes before ``verify_continues``. Raises ``ValueError`` for a bad step."""
        return uint(self.step, 2)


def aggregation_job_init_req(
    verification_key_id: int, batch_id: bytes, verify_inits: bytes
) -> bytes:
    """Encode the ``AggregationJobInitReq``; ``batch_id`` is empty in the time-interval mode."""
    extensions = (leader_selected_batch_id_extension(batch_id),) if batch_id else ()
    head = AggregationJobInitHead(verification_key_id, b"", extensions)
    return head.encode() + verify_inits


def leader_selected_batch_id_extension(batch_id: bytes) -> Extension:
    """Build the extension that names the batch of a leader-selected aggregation job."""
    return Extension(LEADER_SELECTED_BATCH_ID, fixed(batch_id, BATCH_ID_SIZE))
