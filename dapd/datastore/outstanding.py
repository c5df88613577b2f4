"""Leader-selected batches that no collection has taken yet (rule C6).

Left out: binding one to a collection job (``dapd.datastore.collections``).
"""

from __future__ import annotations

from dapd.datastore.engines import Tx
from dapd.protocol.batches import OpenBatch

_Q_OPEN = """
SELECT b.batch_id,
  (SELECT COALESCE(sum(s.n), 0) FROM batch_shares AS s
   WHERE s.task_pk = b.task_pk AND s.bucket = b.batch_id) AS aggregated,
  (SELECT COALESCE(sum(j.n), 0) FROM aggregation_jobs AS j
   WHERE j.task_pk = b.task_pk AND j.bucket = b.batch_id
     AND j.state IN ('assigned', 'stored', 'polling', 'received')) AS in_flight
FROM outstanding_batches AS b WHERE b.task_pk = :task_pk AND b.collection_pk IS NULL
  AND NOT EXISTS (SELECT 1 FROM collected AS c WHERE c.task_pk = b.task_pk AND c.lo = b.batch_id
    AND c.state = 'quarantined')
ORDER BY b.batch_pk"""
_Q_IDS = """
SELECT batch_id FROM outstanding_batches WHERE task_pk = :task_pk AND collection_pk IS NULL"""
_Q_INSERT = "INSERT INTO outstanding_batches (task_pk, batch_id) VALUES (:task_pk, :batch_id)"


def open_batches(tx: Tx, task_pk: int) -> list[OpenBatch]:
    """The batches that may take more reports, oldest first."""
    return [OpenBatch(*row) for row in tx.all(_Q_OPEN, task_pk=task_pk)]


def unbound(tx: Tx, task_pk: int) -> list[bytes]:
    """The ids of the batches that no collection has, quarantined ones too."""
    return [row[0] for row in tx.all(_Q_IDS, task_pk=task_pk)]


def insert(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    """Open a batch; its id is unique in the task (section "Leader-selected Batch Mode")."""
    tx.execute(_Q_INSERT, task_pk=task_pk, batch_id=batch_id)
