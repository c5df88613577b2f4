-- compatible_from: 1
-- One statement ends at each semicolon that closes a line; keys are AUTOINCREMENT so that none is ever used twice (rule E5).

CREATE TABLE tasks (
    task_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id BLOB NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('leader', 'helper')),
    dap_version TEXT NOT NULL,
    configuration BLOB NOT NULL,          -- the exact TaskConfiguration bytes
    peer TEXT NOT NULL DEFAULT '',        -- a Leader's: the endpoint of its Helper, as in there
    verification_key_id INTEGER NOT NULL,
    verify_key BLOB NOT NULL,             -- sealed
    aggregator_token BLOB,                -- sealed; the Leader's, outbound
    inbound_token_hashes BLOB NOT NULL,   -- SHA-256 of each valid one, joined: the Leader's are the
                                          -- Collector's, the Helper's are the Leader's
    collector_hpke_config BLOB NOT NULL,
    helper_mode TEXT,                     -- NULL: the server's default
    batch_target_size INTEGER,            -- NULL: min_batch_size
    report_expiry_age INTEGER,            -- seconds; NULL: never
    expired_before INTEGER NOT NULL DEFAULT 0,  -- the watermark of rule D6, in time precisions
    quarantined_before INTEGER NOT NULL DEFAULT 0,  -- what a restore may have forgotten, likewise
    peer_accepted INTEGER NOT NULL DEFAULT 0,   -- this Helper has accepted a job of the task (rule D5)
    state TEXT NOT NULL DEFAULT 'active'        -- 'purged' is the tombstone of a deleted one
        CHECK (state IN ('active', 'draining', 'disabled', 'deleted', 'purged'))
);

CREATE TABLE hpke_keypairs (
    config_id INTEGER PRIMARY KEY,
    kem_id INTEGER NOT NULL,
    kdf_id INTEGER NOT NULL,
    aead_id INTEGER NOT NULL,
    public_key BLOB NOT NULL,
    private_key BLOB NOT NULL,            -- sealed; empty once deleted
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'expired', 'deleted')),
    changed_at INTEGER NOT NULL,          -- milliseconds by the safe clock (rules D6, F1)
    cached_for INTEGER NOT NULL DEFAULT 0 -- milliseconds; the longest max-age that it was published with
);

-- Ids of the sealing keys that some row may be sealed with (rule F2).
CREATE TABLE sealing_keys (key_id BLOB PRIMARY KEY);

-- How far the values of each sealed column have been sealed again with the first key.
CREATE TABLE reseal_progress (
    name TEXT PRIMARY KEY,                -- table and column
    key_id BLOB NOT NULL,                 -- the key that seals them now
    after_pk INTEGER NOT NULL             -- all rows up to this one are done
);

-- The clock that expires things (rule D6): one row.
CREATE TABLE safe_clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    safe_now INTEGER NOT NULL,            -- milliseconds
    doubted INTEGER NOT NULL              -- 1: the machine's clock was not believed
);

-- One row an upload transaction: what it claims first (rule D1), and the order of acceptance. Only
-- the latest are kept, for a transaction that is run again after its connection was lost in COMMIT.
CREATE TABLE upload_groups (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    group_key BLOB NOT NULL UNIQUE,
    rejected BLOB                         -- the outcomes of its parts' reports, in order
);

CREATE TABLE report_chunks (
    chunk_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    seq INTEGER NOT NULL,
    bucket BLOB NOT NULL,                 -- empty: leader-selected, not yet in a batch
    n INTEGER NOT NULL,
    time_min INTEGER NOT NULL,
    time_max INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'assigned', 'decided')),
    job_pk INTEGER,
    run_at INTEGER NOT NULL,              -- milliseconds; not assigned before
    attempts INTEGER NOT NULL DEFAULT 0,
    ids BLOB NOT NULL                     -- last: what stands behind a large value is slow to read
);
-- These cover the queries of the creator and of collections, so that those never read the ids.
CREATE INDEX report_chunks_waiting ON report_chunks
    (task_pk, seq, chunk_pk, bucket, n, run_at, time_max) WHERE state = 'waiting';
CREATE INDEX report_chunks_due ON report_chunks (run_at, task_pk) WHERE state = 'waiting';
CREATE INDEX report_chunks_undecided ON report_chunks (task_pk, bucket, state, seq, n)
    WHERE state IN ('waiting', 'assigned');
CREATE INDEX report_chunks_expiring ON report_chunks (task_pk, time_max);
CREATE INDEX report_chunks_job ON report_chunks (job_pk, chunk_pk, state, n, time_max)
    WHERE job_pk IS NOT NULL;

CREATE TABLE chunk_rows (
    chunk_pk INTEGER PRIMARY KEY,
    lengths BLOB NOT NULL,
    rows BLOB NOT NULL
);

CREATE TABLE aggregation_jobs (
    job_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    role TEXT NOT NULL CHECK (role IN ('leader', 'helper')),
    state TEXT NOT NULL,
    n INTEGER NOT NULL,
    bucket BLOB NOT NULL,                 -- the batch id; empty in the time-interval mode
    run_at INTEGER NOT NULL,              -- milliseconds
    lease_token BLOB,
    lease_until INTEGER,                  -- milliseconds
    attempts INTEGER NOT NULL DEFAULT 0,
    sends INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,   -- leases that ended with their process
    refused_ms INTEGER NOT NULL DEFAULT 0, -- how long the peer has refused the job (rule D4)
    refused_at INTEGER,                   -- safe milliseconds: the last answer, if that was a refusal
    request_hash BLOB,
    peer TEXT NOT NULL DEFAULT '',        -- its task's
    newest INTEGER NOT NULL,              -- the time that decides when it expires (rule D6): of its newest
                                          -- report, at a Helper not after its clock at its making
    location TEXT,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    buckets BLOB,                         -- what the job contributed to, for rule A7
    admitted_ids BLOB,
    UNIQUE (task_pk, id)
);
CREATE UNIQUE INDEX aggregation_jobs_identity ON aggregation_jobs (task_pk, request_hash)
    WHERE request_hash IS NOT NULL;
CREATE INDEX aggregation_jobs_computing ON aggregation_jobs (run_at, job_pk)
    WHERE state IN ('assigned', 'received');
CREATE INDEX aggregation_jobs_exchanging ON aggregation_jobs (run_at, job_pk)
    WHERE state IN ('stored', 'polling');
-- So the jobs of a peer that takes none now are passed over as a whole (rule E1).
CREATE INDEX aggregation_jobs_of_peer ON aggregation_jobs (peer, run_at, job_pk)
    WHERE state IN ('stored', 'polling');
CREATE INDEX aggregation_jobs_leased ON aggregation_jobs (lease_until) WHERE lease_token IS NOT NULL;
CREATE INDEX aggregation_jobs_expiring ON aggregation_jobs (task_pk, newest);
CREATE INDEX aggregation_jobs_answered ON aggregation_jobs (task_pk, job_pk)
    WHERE role = 'helper' AND state = 'finished';
CREATE INDEX aggregation_jobs_open ON aggregation_jobs (task_pk, bucket, n)
    WHERE state IN ('assigned', 'stored', 'polling', 'received');

CREATE TABLE job_bodies (
    job_pk INTEGER PRIMARY KEY,
    request BLOB,
    leader_state BLOB,                    -- sealed
    response BLOB
);

-- What one job added to one batch bucket, or several did that were merged under a random job_id.
CREATE TABLE batch_shares (
    share_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    bucket BLOB NOT NULL,
    job_id BLOB NOT NULL,
    n INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    time_min INTEGER NOT NULL,
    time_max INTEGER NOT NULL,
    share BLOB NOT NULL,                  -- sealed
    UNIQUE (task_pk, bucket, job_id)
);
CREATE INDEX batch_shares_counted ON batch_shares (task_pk, bucket, n, time_max);
CREATE INDEX batch_shares_expiring ON batch_shares (task_pk, time_max);

-- Intervals and batches that take no more reports (rule C1). A batch id is the range
-- from itself to itself followed by a zero byte, so both modes compare alike.
CREATE TABLE collected (
    collected_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    lo BLOB NOT NULL,
    hi BLOB NOT NULL,
    state TEXT NOT NULL                   -- quarantined: a restore may have forgotten its collection,
                                          -- given_up: its collection keeps the request for another
        CHECK (state IN ('closed', 'given_up', 'collected', 'quarantined', 'expired')),
    collection_pk INTEGER,
    newest INTEGER                        -- of a leader-selected batch that has expired at a Helper: the time
                                          -- of its newest report; one age later the row goes
);
-- The ranges of a task never overlap, so the last one that begins before a bucket decides.
CREATE INDEX collected_range ON collected (task_pk, lo, hi, state);
CREATE INDEX collected_collection ON collected (collection_pk) WHERE collection_pk IS NOT NULL;
CREATE INDEX collected_expiring ON collected (task_pk, newest) WHERE newest IS NOT NULL;
CREATE INDEX collected_quarantined ON collected (task_pk, lo, hi) WHERE state = 'quarantined';
CREATE INDEX collected_given_up ON collected (task_pk, collected_pk) WHERE state = 'given_up';

-- Batches, or time-interval buckets, of a Leader's jobs that ended with their outcome at the Helper unknown.
CREATE TABLE suspect_batches (
    task_pk INTEGER NOT NULL REFERENCES tasks,
    bucket BLOB NOT NULL,
    PRIMARY KEY (task_pk, bucket)
);

-- A task that is added after a restore may have been here before, and be forgotten as a whole.
CREATE TABLE restores (
    forgotten_before INTEGER PRIMARY KEY  -- milliseconds: the newest report there may have been
);

CREATE TABLE outstanding_batches (
    batch_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    batch_id BLOB NOT NULL,
    collection_pk INTEGER,                -- the one collection job it is bound to (rule A8)
    room INTEGER,                         -- how many more reports it could take when the creator last
                                          -- looked at it (NULL: a job of it has ended since)
    UNIQUE (task_pk, batch_id)
);
CREATE INDEX outstanding_open ON outstanding_batches (task_pk) WHERE collection_pk IS NULL;
CREATE INDEX outstanding_roomy ON outstanding_batches (task_pk, room)
    WHERE collection_pk IS NULL AND room IS NOT 0;

CREATE TABLE collection_jobs (
    collection_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    state TEXT NOT NULL,
    lo BLOB NOT NULL,                     -- the batch; empty until a leader-selected one is bound
    hi BLOB NOT NULL,
    cut INTEGER,
    run_at INTEGER NOT NULL,
    lease_token BLOB,
    lease_until INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    sends INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,   -- leases that ended with their process
    refused_ms INTEGER NOT NULL DEFAULT 0, -- as in aggregation_jobs
    refused_at INTEGER,
    request_hash BLOB,
    peer TEXT NOT NULL DEFAULT '',        -- its task's
    request BLOB NOT NULL,                -- the exact CollectionJobReq
    share_request BLOB,                   -- the exact AggregateShareReq; kept, with the share, of a
    leader_share BLOB,                    -- collection that was given up; sealed
    n INTEGER,
    time_min INTEGER,
    time_max INTEGER,
    location TEXT,
    response BLOB,                        -- the exact CollectionJobResp
    error TEXT,                           -- the error token of a failed job, NULL if it has none
    detail TEXT,
    last_error TEXT,
    served_at INTEGER,                    -- milliseconds; when the result was first served
    created_at INTEGER NOT NULL,          -- milliseconds by the safe clock
    UNIQUE (task_pk, id)
);
CREATE UNIQUE INDEX collection_jobs_identity ON collection_jobs (task_pk, request_hash)
    WHERE request_hash IS NOT NULL;
CREATE INDEX collection_jobs_computing ON collection_jobs (run_at, collection_pk)
    WHERE state IN ('waiting');
CREATE INDEX collection_jobs_exchanging ON collection_jobs (run_at, collection_pk)
    WHERE state IN ('frozen', 'polling');
CREATE INDEX collection_jobs_of_peer ON collection_jobs (peer, run_at, collection_pk)
    WHERE state IN ('frozen', 'polling');
CREATE INDEX collection_jobs_leased ON collection_jobs (lease_until) WHERE lease_token IS NOT NULL;
CREATE INDEX collection_jobs_expiring ON collection_jobs (task_pk, created_at, state);
CREATE INDEX collection_jobs_keeping ON collection_jobs (task_pk, time_max)
    WHERE leader_share IS NOT NULL;
CREATE INDEX collection_jobs_waiting ON collection_jobs (task_pk) WHERE state = 'waiting';

CREATE TABLE aggregate_share_jobs (
    share_job_pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL,
    task_pk INTEGER NOT NULL REFERENCES tasks,
    request_hash BLOB,
    response BLOB,
    created_at INTEGER NOT NULL,          -- milliseconds by the safe clock
    UNIQUE (task_pk, id)
);
CREATE INDEX aggregate_share_jobs_expiring ON aggregate_share_jobs (task_pk, created_at);
CREATE UNIQUE INDEX aggregate_share_jobs_identity ON aggregate_share_jobs (task_pk, request_hash)
    WHERE request_hash IS NOT NULL;

CREATE TABLE task_counters (
    task_pk INTEGER NOT NULL REFERENCES tasks,
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (task_pk, name)
);
