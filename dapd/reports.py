"""Reports as columns: the part of the Rust extension that processes them, and some helpers.

Keys and sealing are in ``dapd.crypto``. Replays and collected batches are not decided here: only a
database transaction knows them, and passes them in as columns of outcomes. Sections "Uploading
Reports", "Verifying and Aggregating Reports"; rules B1, B2, B5, E3.

``dapd/_native.pyi`` documents each call. No Python code here loops over all reports of a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum

from dapd._native import (
    BucketTotal,
    HelperFinish,
    HelperJob,
    HelperVerified,
    LeaderFinish,
    LeaderStart,
    ReplayIndex,
    ReportRules,
    TaskParameters,
    UploadAnswer,
    UploadGroup,
    UploadPart,
    cut_chunk,
    leader_finish,
    leader_start,
    open_uploads,
    parse_upload_errors,
    seal_reports,
    shard,
)

__all__ = [
    "REPORT_ID_SIZE",
    "BucketTotal",
    "Chunk",
    "Extensions",
    "HelperFinish",
    "HelperJob",
    "HelperVerified",
    "LeaderFinish",
    "LeaderStart",
    "ReplayIndex",
    "ReportError",
    "ReportRules",
    "TaskParameters",
    "UploadAnswer",
    "UploadGroup",
    "UploadPart",
    "count_outcomes",
    "cut_chunk",
    "ids_where",
    "leader_finish",
    "leader_start",
    "mask_of",
    "open_uploads",
    "outcome_name",
    "parse_upload_errors",
    "seal_reports",
    "shard",
    "split_ids",
]

REPORT_ID_SIZE = 16
# Repeated from the stub, which can't be imported at run time.
Chunk = tuple[int, int, int, bytes, bytes, bytes]
"""Some accepted reports: (n, time_min, time_max, ids, lengths, rows); times inclusive."""
Extensions = Sequence[tuple[int, bytes]]
"""Report extensions as (type, data)."""


class ReportError(IntEnum):
    """``ReportError``. Peers may send codes beyond these. In a column of outcomes, 0 (reserved in
    the draft) means that nothing is wrong with the report.
    """

    FINE = 0
    BATCH_COLLECTED = 1
    REPORT_REPLAYED = 2
    REPORT_DROPPED = 3
    HPKE_UNKNOWN_CONFIG_ID = 4
    HPKE_DECRYPT_ERROR = 5
    VDAF_VERIFY_ERROR = 6
    TASK_EXPIRED = 7
    INVALID_MESSAGE = 8
    REPORT_TOO_EARLY = 9
    TASK_NOT_STARTED = 10
    OUTDATED_CONFIG = 11


_NAMES = {error.value: error.name.lower() for error in ReportError}


def outcome_name(code: int) -> str:
    """Return the draft's name of an outcome; ``report_error_N`` for one without a name."""
    return _NAMES.get(code, f"report_error_{code}")


def count_outcomes(outcomes: bytes) -> dict[int, int]:
    """Count how often each outcome occurs in a column."""
    return dict(Counter(outcomes))


def split_ids(ids: bytes) -> list[bytes]:
    """Split a column into report ids. For messages and small columns, not for hot paths."""
    return [ids[at : at + REPORT_ID_SIZE] for at in range(0, len(ids), REPORT_ID_SIZE)]


def mask_of(outcomes: bytes, code: int) -> bytes:
    """Return a byte per row for ``cut_chunk``: 1 where the outcome is ``code``, else 0."""
    table = bytearray(256)
    table[code] = 1
    return outcomes.translate(bytes(table))


def ids_where(ids: bytes, outcomes: bytes, code: int) -> bytes:
    """Return the ids of the rows whose outcome is ``code``, in order."""
    found = []
    row = outcomes.find(code)
    while row >= 0:
        found.append(ids[row * REPORT_ID_SIZE : (row + 1) * REPORT_ID_SIZE])
        row = outcomes.find(code, row + 1)
    return b"".join(found)
