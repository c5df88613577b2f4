"""The transaction that stores an upload group: each accepted report once, even if run again (D1).

Section "Upload Request"; invariant I1; rules B1, C2. ``open_uploads`` has already made every check
that needs no database.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dapd.datastore import batches, chunks, collections, counters, tasks, upload_groups
from dapd.datastore.sqlite import Tx
from dapd.reports import ReportError, UploadAnswer, UploadGroup, UploadPart, outcome_name

_REPLAYED = bytes([ReportError.REPORT_REPLAYED])


@dataclass(frozen=True, slots=True)
class OpenedUploads:
    """An opened group with the tasks of its requests; ``key`` identifies the group.

    ``tasks`` has a task_pk for each request, ``task_pks`` one for each task id.
    """

    key: bytes
    group: UploadGroup
    tasks: Sequence[int]
    task_pks: Mapping[bytes, int]


def store_uploads(tx: Tx, opened: OpenedUploads, max_rows: int, now: int) -> list[UploadAnswer]:
    """Admit and store a group's reports, in chunks of ``max_rows`` at most; return the answers."""
    parts = opened.group.parts
    if not parts:
        answers = opened.group.answers([])
        if not any(answer.outcomes for answer in answers):
            return answers  # nothing parses; anybody may upload, so don't write for that
    seq = upload_groups.claim(tx, opened.key)
    if seq is None:
        return opened.group.answers(_by_part(parts, upload_groups.stored(tx, opened.key)))
    rejected = [
        _store_part(tx, part, opened.task_pks[part.task_id], seq, now, max_rows) for part in parts
    ]
    upload_groups.note(tx, seq, b"".join(rejected))
    answers = opened.group.answers(rejected)
    for task_pk, outcomes in _outcomes_by_task(opened.tasks, answers).items():
        counters.add(tx, task_pk, _counts(outcomes))
        # A waiting collection may have become ready to fix its cut (C3).
        collections.touch(tx, task_pk, now)
    return answers


def _store_part(tx: Tx, part: UploadPart, task_pk: int, seq: int, now: int, max_rows: int) -> bytes:
    """Store the reports that are new and in an open batch; return the outcomes of all."""
    if not tasks.takes_uploads(tx, task_pk):  # drained or deleted since the request began
        return _refuse(tx, part, task_pk, ReportError.REPORT_DROPPED)
    if batches.bucket_state(tx, task_pk, part.bucket) is not None:  # C2: closed or collected
        return _refuse(tx, part, task_pk, ReportError.BATCH_COLLECTED)
    known = tx.replay.admit(task_pk, part.ids)
    rejected = known.replace(b"\x01", _REPLAYED)
    place = chunks.Place(task_pk, seq, part.bucket, run_at=now)
    for chunk in part.chunks(rejected, max_rows):
        chunks.insert(tx, place, chunk)
    return rejected


def _refuse(tx: Tx, part: UploadPart, task_pk: int, error: ReportError) -> bytes:
    """Return ``error`` for each report that was not stored before. The others are replayed: a
    client whose first answer was lost learns that they were delivered (D7).
    """
    known = tx.replay.peek(task_pk, part.ids)
    return known.translate(bytes([error, ReportError.REPORT_REPLAYED]).ljust(256))


def _by_part(parts: Sequence[UploadPart], joined: bytes) -> list[bytes]:
    columns = []
    at = 0
    for part in parts:
        columns.append(joined[at : at + part.count])
        at += part.count
    return columns


def _outcomes_by_task(
    tasks: Sequence[int], answers: Sequence[UploadAnswer]
) -> dict[int, Counter[int]]:
    """Return how many reports of each task had which outcome."""
    totals: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for task_pk, answer in zip(tasks, answers, strict=True):
        totals[task_pk].update(answer.outcomes)
    return totals


def _counts(outcomes: Counter[int]) -> dict[str, int]:
    """Return the counts by counter: ``upload_accepted``, ``upload_report_replayed``, ..."""
    return {
        f"upload_{outcome_name(code) if code else 'accepted'}": n for code, n in outcomes.items()
    }
