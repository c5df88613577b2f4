//! A job's totals for each batch bucket (section "Batch Buckets"), and the two thread pools.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{digest, SHA256};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::report::ReportId;
use crate::seal::{batch_share_aad, Sealer};
use crate::vdaf::{Shares, Task};

fn pool(name: &'static str) -> ThreadPool {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("{name}-{i}"))
        .build()
        .expect("the system starts threads")
}

/// The pool that verifies aggregation jobs.
pub static JOBS: LazyLock<ThreadPool> = LazyLock::new(|| pool("dapd-jobs"));
/// The pool for uploads, which must not wait behind jobs (rule E3), and for the client library.
pub static UPLOADS: LazyLock<ThreadPool> = LazyLock::new(|| pool("dapd-uploads"));

/// The rows that a thread takes at once: small enough to balance the load, large enough to keep
/// partial sums few (rule E3).
pub fn piece(rows: usize) -> usize {
    rows.div_ceil(4 * rayon::current_num_threads()).max(1)
}

#[pyclass(frozen, get_all, skip_from_py_object, module = "dapd._native")]
#[derive(Clone)]
pub struct BucketTotal {
    bucket: Vec<u8>,
    count: u64,
    checksum: Vec<u8>,
    time_min: u64,
    time_max: u64,
    share: Vec<u8>,
}

/// The task and job that totals belong to: their shares are sealed with its ids as AAD.
pub struct Owner {
    pub task: Arc<Task>,
    pub sealer: Py<Sealer>,
    pub job_id: Vec<u8>,
    pub batch_id: Vec<u8>,
}

struct Tally {
    count: u64,
    checksum: [u8; 32],
    time_min: u64,
    time_max: u64,
}

impl Owner {
    pub fn new(
        task: Arc<Task>,
        sealer: Py<Sealer>,
        job_id: &[u8],
        batch_id: Option<&[u8]>,
    ) -> Result<Self> {
        if !task.bucket_by_time && batch_id.is_none() {
            return Err(Error::value("batch_id is needed where buckets are not times"));
        }
        let (job_id, batch_id) = (job_id.to_vec(), batch_id.unwrap_or_default().to_vec());
        Ok(Self { task, sealer, job_id, batch_id })
    }

    /// Seal the sum of each bucket, and compute count, checksum and times of the counted `rows`.
    pub fn totals<'a>(
        &self,
        shares: &Shares,
        rows: impl Iterator<Item = (&'a ReportId, u64)>,
    ) -> Vec<BucketTotal> {
        let mut tallies = BTreeMap::<u64, Tally>::new();
        for (id, time) in rows {
            let tally = tallies.entry(self.task.key(time)).or_insert(Tally {
                count: 0,
                checksum: [0; 32],
                time_min: time,
                time_max: time,
            });
            tally.count += 1;
            let hash = digest(&SHA256, id);
            tally.checksum.iter_mut().zip(hash.as_ref()).for_each(|(sum, byte)| *sum ^= byte);
            tally.time_min = tally.time_min.min(time);
            tally.time_max = tally.time_max.max(time);
        }
        tallies.into_iter().map(|(key, tally)| self.total(key, &tally, &shares[&key])).collect()
    }

    fn total(&self, key: u64, tally: &Tally, share: &[u8]) -> BucketTotal {
        let bucket = self.task.bucket(key, &self.batch_id);
        let aad = batch_share_aad(&self.task.task_id, &self.job_id, &bucket);
        let mut sealed = Vec::new();
        self.sealer.get().seal_to(&aad, share, &mut sealed); // F3
        BucketTotal {
            bucket,
            count: tally.count,
            checksum: tally.checksum.to_vec(),
            time_min: tally.time_min,
            time_max: tally.time_max,
            share: sealed,
        }
    }
}
