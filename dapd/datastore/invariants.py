"""The invariants of a database, as queries that find the rows that violate them."""

from __future__ import annotations

from dataclasses import dataclass

RESTORE = (
    "with the daemon stopped, restore the last verified backup (`dapd restore`), and report what "
    "this says to dapd's developers"
)
REPORT = "results may be wrong; compare with the peer, and report this to dapd's developers"
HARMLESS = "nothing is lost; report this to dapd's developers"
REKEY = "restore the task's secrets with `dapd task rekey FILE`"


@dataclass(frozen=True, slots=True)
class Invariant:
    """An invariant of ``table``; ``violations`` is a query for the keys of rows that violate it."""

    table: str
    violations: str
    problem: str
    remedy: str = RESTORE


# The garbage collector deletes the rows of deleted tasks in no particular order.
_LIVE = "task_pk IN (SELECT task_pk FROM tasks WHERE state NOT IN ('deleted', 'purged'))"
_OPEN_JOB = "state IN ('assigned', 'stored', 'polling')"
_ENDED_JOB = "state NOT IN ('assigned', 'stored', 'polling', 'received')"
# A bucket is 8 bytes of time, which all its reports have, or a batch id.
_MISPLACED = """CASE length(bucket)
  WHEN 8 THEN time_min <> time_max OR hex(bucket) <> printf('%016X', time_min)
  WHEN 32 THEN time_min > time_max ELSE 1 END"""
_RANGE_OF_BUCKET = """(SELECT CASE WHEN hi > c.bucket THEN r.state END FROM collected AS r
  WHERE r.task_pk = c.task_pk AND r.lo <= c.bucket ORDER BY r.lo DESC LIMIT 1)"""

INVARIANTS = (
    Invariant(
        "tasks",
        "SELECT task_pk FROM tasks WHERE state NOT IN ('purged', 'deleted') AND (verify_key = x'' "
        "OR role = 'leader' AND length(COALESCE(aggregator_token, x'')) = 0)",
        "the task has lost its secrets, so it is not served",
        REKEY,
    ),
    Invariant(
        "tasks",
        "SELECT task_pk FROM tasks WHERE length(inbound_token_hashes) % 32 <> 0 "
        "OR state NOT IN ('purged', 'deleted') AND length(inbound_token_hashes) = 0",
        "the task has no inbound tokens, or damaged ones",
        REKEY,
    ),
    Invariant(
        "tasks",
        "SELECT task_pk FROM tasks WHERE expired_before < 0 OR quarantined_before < 0",
        "a watermark of the task is negative",
    ),
    Invariant(
        "hpke_keypairs",
        "SELECT config_id FROM hpke_keypairs WHERE (state = 'deleted') <> (private_key = x'')",
        "a key pair has no private key, or a deleted one has one",
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks WHERE n < 1 OR length(ids) <> 16 * n",
        "the chunk does not have one id per report",
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks "  # noqa: S608 - constants alone
        f"WHERE time_min > time_max OR length(bucket) > 0 AND {_MISPLACED}",
        "the chunk's times do not fit its bucket",
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks AS c WHERE "  # noqa: S608 - constants alone
        f"{_LIVE} AND (SELECT role FROM tasks WHERE tasks.task_pk = c.task_pk) <> 'leader'",
        "the chunk belongs to a task of which this is not the Leader",
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks AS c WHERE state <> 'decided' "
        "AND NOT EXISTS (SELECT 1 FROM chunk_rows AS r WHERE r.chunk_pk = c.chunk_pk)",
        "the chunk's reports are missing, though they are not aggregated yet",
    ),
    Invariant(
        "chunk_rows",
        "SELECT chunk_pk FROM chunk_rows AS r WHERE NOT EXISTS (SELECT 1 FROM report_chunks AS c "
        "WHERE c.chunk_pk = r.chunk_pk AND c.state <> 'decided')",
        "reports are kept without an undecided chunk",
        HARMLESS,
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks WHERE state = 'waiting' "
        "AND (job_pk IS NOT NULL OR length(bucket) = 32)",
        "the chunk is waiting, but has a job or batch",
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks AS c WHERE state = 'assigned' AND NOT EXISTS "  # noqa: S608
        "(SELECT 1 FROM aggregation_jobs AS j WHERE j.job_pk = c.job_pk AND j.task_pk = c.task_pk "
        f"AND j.role = 'leader' AND j.{_OPEN_JOB})",
        "the chunk is assigned, but not to an unfinished job, so its reports are stuck",
    ),
    Invariant(
        "report_chunks",
        "SELECT chunk_pk FROM report_chunks AS c WHERE state = 'assigned' "  # noqa: S608
        f"AND {_RANGE_OF_BUCKET} IN ('closed', 'given_up', 'collected')",
        "the chunk is in a job, though its batch is closed (rule C2)",
        REPORT,
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs WHERE CASE role WHEN 'leader' THEN state NOT IN "
        "('assigned', 'stored', 'polling', 'finished', 'abandoned', 'expired', 'lost') "
        "ELSE state NOT IN ('received', 'finished', 'deleted') END",
        "the job has a state of the other role",
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs AS j WHERE "  # noqa: S608 - constants alone
        f"{_LIVE} AND (SELECT role FROM tasks WHERE tasks.task_pk = j.task_pk) <> role",
        "the job's role differs from its task's",
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs AS j "  # noqa: S608 - constants alone
        f"WHERE role = 'leader' AND {_OPEN_JOB} AND {_LIVE} AND "
        "(SELECT peer FROM tasks WHERE tasks.task_pk = j.task_pk) <> peer",
        "the job names another Helper than its task, so it may never be sent",
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs AS j "  # noqa: S608 - constants alone
        f"WHERE role = 'leader' AND {_OPEN_JOB} AND (n, newest) IS NOT "
        "(SELECT sum(n), max(time_max) FROM report_chunks AS c "
        "WHERE c.job_pk = j.job_pk AND c.state = 'assigned')",
        "the job's count or newest time differs from its chunks'",
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs LEFT JOIN job_bodies USING (job_pk) WHERE CASE state "
        "WHEN 'stored' THEN request IS NULL OR leader_state IS NULL "
        "WHEN 'polling' THEN leader_state IS NULL WHEN 'received' THEN request IS NULL END",
        "the job lacks the data for its next step",
    ),
    Invariant(
        "job_bodies",
        "SELECT b.job_pk FROM job_bodies AS b LEFT JOIN aggregation_jobs AS j USING (job_pk) "
        "WHERE j.job_pk IS NULL OR j.state NOT IN ('stored', 'polling', 'received', 'finished') "
        "OR j.role = 'leader' AND j.state = 'finished' "
        "OR j.role = 'helper' AND j.state = 'finished' AND b.request IS NOT NULL",
        "bodies are kept that no job needs",
        HARMLESS,
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs "  # noqa: S608 - constants alone
        "WHERE (lease_token IS NULL) <> (lease_until IS NULL) "
        f"OR lease_token IS NOT NULL AND {_ENDED_JOB}",
        "the job has half a lease, or has ended with one",
        HARMLESS,
    ),
    Invariant(
        "aggregation_jobs",
        "SELECT job_pk FROM aggregation_jobs WHERE length(admitted_ids) % 16 <> 0 "
        "OR length(admitted_ids) > 16 * n "
        "OR admitted_ids IS NOT NULL AND state NOT IN ('finished', 'deleted')",
        "the job's admitted ids are damaged or too many, or it is not finished",
    ),
    Invariant(
        "batch_shares",
        "SELECT share_pk FROM batch_shares "  # noqa: S608 - constants alone
        f"WHERE n < 1 OR length(checksum) <> 32 OR {_MISPLACED}",
        "a contribution's count, checksum or times do not fit its bucket",
    ),
    Invariant(
        "batch_shares",
        "SELECT share_pk FROM batch_shares AS s JOIN aggregation_jobs AS j "
        "ON j.task_pk = s.task_pk AND j.id = s.job_id "
        "WHERE s.n > j.n OR j.state NOT IN ('finished', 'deleted') "
        "OR j.role = 'helper' AND instr(j.buckets, s.bucket) = 0",
        "a job has a contribution that it did not aggregate",
        REPORT,
    ),
    Invariant(
        "batch_shares",
        "SELECT task_pk || ' (task_pk)' FROM tasks AS t WHERE "  # noqa: S608 - constants alone
        f"{_LIVE} AND (SELECT sum(n) FROM batch_shares AS s WHERE s.task_pk = t.task_pk) > "
        "COALESCE((SELECT value FROM task_counters AS c WHERE c.task_pk = t.task_pk "
        "AND name = 'aggregate_finished'), 0)",
        "the task's batches contain more reports than were ever aggregated",
        REPORT,
    ),
    Invariant(
        "task_counters",
        "SELECT task_pk || ' (task_pk)' FROM tasks AS t "  # noqa: S608 - constants alone
        f"WHERE role = 'leader' AND {_LIVE} AND "
        "(SELECT COALESCE(sum(CASE WHEN name = 'upload_accepted' THEN value ELSE -value END), 0) "
        "FROM task_counters AS c WHERE c.task_pk = t.task_pk "
        r"AND (name = 'upload_accepted' OR name LIKE 'aggregate\_%' ESCAPE '\')) <> "
        "(SELECT COALESCE(sum(n), 0) FROM report_chunks AS c "
        "WHERE c.task_pk = t.task_pk AND state <> 'decided')",
        "some accepted reports are neither aggregated, nor rejected and counted, nor waiting",
        REPORT,
    ),
    Invariant(
        "task_counters",
        "SELECT task_pk || ' ' || name FROM task_counters WHERE value < 0",
        "a counter is negative",
        REPORT,
    ),
    Invariant(
        "collected",
        "SELECT collected_pk FROM (SELECT collected_pk, lo, hi, "
        "lead(lo) OVER (PARTITION BY task_pk ORDER BY lo, hi) AS next FROM collected) "
        "WHERE lo >= hi OR next < hi",
        "closed ranges overlap, or one is empty (rule C1)",
        REPORT,
    ),
    Invariant(
        "collected",
        "SELECT collected_pk FROM collected AS r WHERE "  # noqa: S608 - constants alone
        f"{_LIVE} AND state = 'closed' AND NOT EXISTS (SELECT 1 FROM collection_jobs AS c "
        "WHERE c.collection_pk = r.collection_pk AND c.task_pk = r.task_pk "
        "AND c.state IN ('frozen', 'polling') AND c.lo = r.lo AND c.hi = r.hi)",
        "the range is closed for a collection that is not running",
    ),
    Invariant(
        "collected",
        "SELECT collected_pk FROM collected AS r WHERE "  # noqa: S608 - constants alone
        f"{_LIVE} AND state = 'given_up' AND NOT EXISTS (SELECT 1 FROM collection_jobs AS c "
        "WHERE c.collection_pk = r.collection_pk AND c.task_pk = r.task_pk "
        "AND c.state IN ('failed', 'deleted') AND c.share_request IS NOT NULL "
        "AND c.leader_share IS NOT NULL AND c.lo = r.lo AND c.hi = r.hi)",
        "the range is closed for a collection that was given up, but keeps no request",
    ),
    Invariant(
        "collection_jobs",
        "SELECT collection_pk FROM collection_jobs AS c "  # noqa: S608 - constants alone
        f"WHERE state IN ('frozen', 'polling') AND {_LIVE} AND NOT EXISTS "
        "(SELECT 1 FROM collected AS r WHERE r.collection_pk = c.collection_pk "
        "AND r.state IN ('closed', 'collected'))",
        "the collection is frozen, but its batch still takes reports",
        REPORT,
    ),
    Invariant(
        "collection_jobs",
        "SELECT collection_pk FROM collection_jobs WHERE CASE state "
        "WHEN 'waiting' THEN hi <> x'' AND lo >= hi "
        "WHEN 'frozen' THEN share_request IS NULL OR leader_share IS NULL OR n IS NULL "
        "WHEN 'polling' THEN location IS NULL OR leader_share IS NULL OR n IS NULL "
        "WHEN 'finished' THEN response IS NULL "
        "WHEN 'failed' THEN error IS NULL AND detail IS NULL "
        "WHEN 'deleted' THEN request_hash IS NOT NULL ELSE 1 END",
        "the collection lacks data that its state needs",
    ),
    Invariant(
        "collection_jobs",
        "SELECT collection_pk FROM collection_jobs "
        "WHERE (lease_token IS NULL) <> (lease_until IS NULL) "
        "OR state IN ('finished', 'failed', 'deleted') AND (lease_token IS NOT NULL "
        "OR leader_share IS NOT NULL AND NOT EXISTS (SELECT 1 FROM collected AS r "
        "WHERE r.collection_pk = collection_jobs.collection_pk AND r.state = 'given_up'))",
        "the collection has half a lease, or has ended with a lease or share",
        HARMLESS,
    ),
    Invariant(
        "collection_jobs",
        "SELECT collection_pk FROM collection_jobs AS c "  # noqa: S608 - constants alone
        f"WHERE state IN ('waiting', 'frozen', 'polling') AND {_LIVE} AND "
        "(SELECT peer FROM tasks WHERE tasks.task_pk = c.task_pk) <> peer",
        "the collection names another Helper than its task, so it may never be sent",
    ),
    Invariant(
        "aggregate_share_jobs",
        "SELECT share_job_pk FROM aggregate_share_jobs WHERE response IS NULL",
        "the aggregate share is missing",
    ),
    Invariant(
        "outstanding_batches",
        "SELECT batch_pk FROM outstanding_batches AS b WHERE length(batch_id) <> 32 OR EXISTS "
        "(SELECT 1 FROM collection_jobs AS c WHERE c.collection_pk = b.collection_pk "
        "AND (c.task_pk <> b.task_pk OR c.lo <> b.batch_id))",
        "the batch is bound to a collection of another batch (rule A8)",
        REPORT,
    ),
    Invariant(
        "suspect_batches",
        "SELECT task_pk || ' ' || hex(bucket) FROM suspect_batches "
        "WHERE length(bucket) NOT IN (8, 32)",
        "what is suspect is neither a time nor a batch",
        HARMLESS,
    ),
)
