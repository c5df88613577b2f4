//! The Helper's side of an aggregation job (sections "Helper Initialization", "Input Share
//! Decryption", "Input Share Validation"; rules B2, E3).
//!
//! A job is parsed, verified on the `JOBS` pool, and finished with the outcomes that the database
//! transaction determined (replays, collected batches). Of each row, verification keeps the outcome
//! and the small outbound message; of the output shares it keeps only the sums.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use rayon::prelude::*;

use crate::error::{DecodeError, Error, Result};
use crate::hpke::Keyring;
use crate::report::{
    report_error, PlaintextInputShare, Reader, ReportId, Verdict, VerifyInit, VerifyResp, Wire,
    HELPER_INFO,
};
use crate::rules::ReportRules;
use crate::seal::Sealer;
use crate::totals::{piece, BucketTotal, Owner, JOBS};
use crate::vdaf::{
    dispatch, helper_init, subtract, Kind, Output, Rejection, Shares, Sums, Task, TaskParameters,
    P3,
};

/// The request body and the offset of each row.
struct Rows {
    body: PyBackedBytes,
    starts: Vec<usize>,
}

impl Rows {
    fn parse(body: PyBackedBytes, offset: usize) -> Result<Self> {
        let mut reader = Reader::new(&body, offset);
        let mut starts = Vec::new();
        let mut seen = HashSet::new();
        while !reader.is_empty() {
            let start = reader.offset();
            let init = VerifyInit::read(&mut reader)?;
            // A3, F4: compare whole ids, not hashes.
            if !seen.insert(init.report_share.metadata.report_id) {
                return Err(DecodeError::new(start, "repeated report id").into());
            }
            starts.push(start);
        }
        if starts.is_empty() {
            return Err(DecodeError::new(reader.offset(), "no verify_inits").into());
        }
        Ok(Self { body, starts })
    }

    fn len(&self) -> usize {
        self.starts.len()
    }

    fn init(&self, row: usize) -> VerifyInit<'_> {
        VerifyInit::read(&mut Reader::new(&self.body, self.starts[row])).expect("it was parsed")
    }

    fn id(&self, row: usize) -> &ReportId {
        let start = self.starts[row];
        self.body[start..start + 16].try_into().expect("16 bytes")
    }

    fn time(&self, row: usize) -> u64 {
        let start = self.starts[row] + 16;
        u64::from_be_bytes(self.body[start..start + 8].try_into().expect("8 bytes"))
    }
}

#[pyclass(frozen, module = "dapd._native")]
pub struct HelperJob(Arc<Rows>);

#[pymethods]
impl HelperJob {
    #[new]
    fn new(py: Python<'_>, body: PyBackedBytes, offset: usize) -> Result<Self> {
        py.detach(|| Rows::parse(body, offset)).map(|rows| Self(Arc::new(rows)))
    }

    #[getter]
    fn count(&self) -> usize {
        self.0.len()
    }

    #[getter]
    fn time_max(&self) -> u64 {
        (0..self.0.len()).map(|row| self.0.time(row)).max().expect("a job has rows")
    }

    #[getter]
    fn config_ids(&self) -> Vec<u8> {
        let mut found = [false; 256];
        for row in 0..self.0.len() {
            let init = self.0.init(row);
            found[usize::from(init.report_share.encrypted_input_share.config_id)] = true;
        }
        (0..=255).filter(|id| found[usize::from(*id)]).collect()
    }

    #[getter]
    fn ids(&self) -> Vec<u8> {
        (0..self.0.len()).flat_map(|row| *self.0.id(row)).collect()
    }

    #[allow(clippy::too_many_arguments)] // the interface of `_native.pyi`
    fn verify(
        &self,
        py: Python<'_>,
        parameters: &TaskParameters,
        rules: &ReportRules,
        keyring: &Keyring,
        sealer: Py<Sealer>,
        job_id: &[u8],
        batch_id: Option<&[u8]>,
        known: &[u8],
    ) -> Result<HelperVerified> {
        if known.len() != self.0.len() {
            let (rows, given) = (self.0.len(), known.len());
            return Err(Error::value(format!("known must be {rows} bytes, not {given}")));
        }
        let work = Work {
            rows: self.0.clone(),
            task: parameters.task.clone(),
            rules: rules.clone(),
            keyring: keyring.clone(),
        };
        let owner = Owner::new(work.task.clone(), sealer, job_id, batch_id)?;
        Ok(py.detach(|| work.verify(owner, known)))
    }
}

/// Everything needed to verify a row, now or a second time.
struct Work {
    rows: Arc<Rows>,
    task: Arc<Task>,
    rules: ReportRules,
    keyring: Keyring,
}

/// The result of verifying some consecutive rows.
struct Piece<T: Kind> {
    outcomes: Vec<u8>,
    messages: Vec<u8>,
    sums: Sums<T>,
    spent: Duration,
}

impl<T: Kind> Piece<T> {
    fn new() -> Self {
        let (outcomes, messages) = (Vec::new(), Vec::new());
        Self { outcomes, messages, sums: Sums::default(), spent: Duration::ZERO }
    }

    fn merge(mut self, other: Self) -> Self {
        self.outcomes.extend(other.outcomes);
        self.messages.extend(other.messages);
        self.sums = self.sums.merge(other.sums);
        self.spent += other.spent;
        self
    }
}

impl Work {
    fn verify(self, owner: Owner, known: &[u8]) -> HelperVerified {
        let task = self.task.clone();
        dispatch!(&*task.vdaf, vdaf => self.verify_with(vdaf, owner, known))
    }

    fn verify_with<T: Kind>(self, vdaf: &P3<T>, owner: Owner, known: &[u8]) -> HelperVerified {
        let all = JOBS.install(|| {
            let size = piece(known.len());
            let pieces = known.par_chunks(size).enumerate();
            pieces
                .map(|(index, known)| self.verify_piece(vdaf, index * size, known))
                .reduce(Piece::new, Piece::merge)
        });
        let verified = known.iter().filter(|outcome| **outcome == 0).count();
        HelperVerified {
            seconds_per_report: match verified {
                0 => 0.0,
                _ => all.spent.as_secs_f64() / verified as f64,
            },
            work: self,
            owner,
            outcomes: all.outcomes,
            messages: all.messages,
            shares: all.sums.encode(),
        }
    }

    fn verify_piece<T: Kind>(&self, vdaf: &P3<T>, first: usize, known: &[u8]) -> Piece<T> {
        let started = Instant::now();
        let mut done = Piece::new();
        for (row, &known) in (first..).zip(known) {
            let outcome = match known {
                report_error::FINE => self.verify_row(vdaf, row).map_or_else(
                    |rejection| rejection,
                    |(output, message)| {
                        done.sums.add(self.task.key(self.rows.time(row)), output);
                        done.messages.extend(message);
                        report_error::FINE
                    },
                ),
                known => known,
            };
            done.outcomes.push(outcome);
        }
        done.spent = started.elapsed();
        done
    }

    fn verify_row<T: Kind>(
        &self,
        vdaf: &P3<T>,
        row: usize,
    ) -> Result<(Output<T>, Vec<u8>), Rejection> {
        let init = self.rows.init(row);
        let share = &init.report_share;
        let (metadata, sealed) = (&share.metadata, &share.encrypted_input_share);
        if let Some(rejection) = self.rules.check(metadata.time) {
            return Err(rejection);
        }
        let keypair = self.keyring.get(sealed.config_id).ok_or(report_error::HPKE_DECRYPT_ERROR)?;
        // Metadata and public share are adjacent here, as in the AAD.
        let aad_len = 16 + 8 + 2 + metadata.public_extensions.len() + 4 + share.public_share.len();
        let start = self.rows.starts[row];
        let aad = self.task.aad(&self.rows.body[start..start + aad_len]);
        let plaintext = keypair
            .open_raw(HELPER_INFO, &aad, sealed.enc, sealed.payload)
            .ok_or(report_error::HPKE_DECRYPT_ERROR)?;
        let input =
            PlaintextInputShare::decode(&plaintext).map_err(|_| report_error::INVALID_MESSAGE)?;
        if !self.rules.check_extensions(metadata.public_extensions, input.private_extensions) {
            return Err(report_error::INVALID_MESSAGE);
        }
        let (id, public) = (metadata.report_id, share.public_share);
        helper_init(vdaf, &self.task, id, public, input.payload, init.payload)
    }
}

#[pyclass(frozen, module = "dapd._native")]
pub struct HelperVerified {
    work: Work,
    owner: Owner,
    /// The outcomes of verification. 1 (collected) and 2 (replayed) come only from `known`; the
    /// transaction decides about these rows again.
    outcomes: Vec<u8>,
    /// The outbound messages of the rows with outcome 0, all of the same length.
    messages: Vec<u8>,
    shares: Shares,
    #[pyo3(get)]
    seconds_per_report: f64,
}

/// The final outcome of every row, and how it differs from what verification summed.
struct Decision {
    outcomes: Vec<u8>,
    /// Rows that are in the sums but don't count.
    surplus: Vec<usize>,
    /// Whether a row counts that is not in the sums.
    lacking: bool,
}

/// Return whether the transaction decides about a row with this outcome.
fn undecided(outcome: u8) -> bool {
    matches!(
        outcome,
        report_error::FINE | report_error::BATCH_COLLECTED | report_error::REPORT_REPLAYED
    )
}

impl HelperVerified {
    fn key(&self, row: usize) -> u64 {
        self.work.task.key(self.work.rows.time(row))
    }

    /// The keys of those collected buckets that this job may add to.
    fn keys(&self, collected: &[PyBackedBytes]) -> HashSet<u64> {
        let by_time = self.work.task.bucket_by_time;
        let key = |bucket: &PyBackedBytes| match by_time {
            true => bucket.as_ref().try_into().ok().map(u64::from_be_bytes),
            false => (**bucket == *self.owner.batch_id).then_some(0),
        };
        collected.iter().filter_map(key).collect()
    }

    fn candidate_rows<'a>(
        &'a self,
        collected: &'a HashSet<u64>,
    ) -> impl Iterator<Item = usize> + 'a {
        (0..self.outcomes.len())
            .filter(|row| undecided(self.outcomes[*row]) && !collected.contains(&self.key(*row)))
    }

    fn decide(&self, collected: &[PyBackedBytes], replayed: &[u8]) -> Result<Decision> {
        let collected = self.keys(collected);
        let mut outcomes: Vec<u8> = self
            .outcomes
            .iter()
            .map(
                |outcome| {
                    if undecided(*outcome) {
                        report_error::BATCH_COLLECTED
                    } else {
                        *outcome
                    }
                },
            )
            .collect();
        let mut mask = replayed.iter();
        for row in self.candidate_rows(&collected) {
            outcomes[row] = match mask.next() {
                Some(0) => report_error::FINE,
                Some(_) => report_error::REPORT_REPLAYED,
                None => return Err(Error::value("replayed must have a byte for each candidate")),
            };
        }
        if mask.next().is_some() {
            return Err(Error::value("replayed must have a byte for each candidate"));
        }
        let rows = || outcomes.iter().zip(&self.outcomes).enumerate();
        let kept: HashSet<u64> =
            rows().filter(|(_, (new, _))| **new == 0).map(|(row, _)| self.key(row)).collect();
        // A bucket without counted rows has no total, so nothing need be subtracted from it.
        let surplus = rows()
            .filter(|(row, (new, old))| **old == 0 && **new != 0 && kept.contains(&self.key(*row)))
            .map(|(row, _)| row)
            .collect();
        let lacking = rows().any(|(_, (new, old))| *new == 0 && *old != 0);
        Ok(Decision { outcomes, surplus, lacking })
    }

    /// Subtract the surplus rows from the sums, verifying each once more for its output share (E3).
    fn without<T: Kind>(&self, vdaf: &P3<T>, surplus: &[usize]) -> Result<Shares> {
        let mut shares = self.shares.clone();
        for &row in surplus {
            let sum = shares.get_mut(&self.key(row));
            let output = self.work.verify_row(vdaf, row).ok().map(|(output, _)| output);
            let (Some(sum), Some(output)) = (sum, output) else {
                return Err(Error::value("a report that was verified can't be verified again"));
            };
            *sum = subtract(vdaf, sum, &output)
                .ok_or_else(|| Error::value("a sum of this job does not decode"))?;
        }
        Ok(shares)
    }

    fn finish_with(&self, collected: &[PyBackedBytes], replayed: &[u8]) -> Result<HelperFinish> {
        let decision = self.decide(collected, replayed)?;
        if decision.lacking {
            return Err(Error::value("a report that was left out must count: verify again"));
        }
        let shares = match decision.surplus.as_slice() {
            [] => None,
            rows => Some(dispatch!(&*self.work.task.vdaf, vdaf => self.without(vdaf, rows))?),
        };
        let rows = &self.work.rows;
        let admitted = || (0..rows.len()).filter(|row| decision.outcomes[*row] == 0);
        let buckets = self.owner.totals(
            shares.as_ref().unwrap_or(&self.shares),
            admitted().map(|row| (rows.id(row), rows.time(row))),
        );
        Ok(HelperFinish {
            response: self.response(&decision.outcomes),
            admitted_ids: admitted().flat_map(|row| *rows.id(row)).collect(),
            admitted_min: admitted().map(|row| rows.time(row)).min().unwrap_or(0),
            outcomes: decision.outcomes,
            buckets,
        })
    }

    /// Encode the `AggregationJobResp`: every report, in the request's order (I6).
    fn response(&self, outcomes: &[u8]) -> Vec<u8> {
        let verified = self.outcomes.iter().filter(|outcome| **outcome == 0).count();
        let mut messages = self.messages.chunks(self.messages.len().max(1) / verified.max(1));
        let mut response = Vec::with_capacity(outcomes.len() * 21 + self.messages.len());
        for (row, (&outcome, &old)) in outcomes.iter().zip(&self.outcomes).enumerate() {
            let message = if old == 0 { messages.next() } else { None };
            let verdict = match (outcome, message) {
                (report_error::FINE, Some(message)) => Verdict::Continue(message),
                _ => Verdict::Reject(outcome),
            };
            let report_id = self.work.rows.id(row);
            VerifyResp { report_id, verdict }.write(&mut response);
        }
        response
    }
}

#[pymethods]
impl HelperVerified {
    #[getter]
    fn buckets(&self) -> Vec<Vec<u8>> {
        let mut keys: Vec<u64> = (0..self.outcomes.len())
            .filter(|row| undecided(self.outcomes[*row]))
            .map(|row| self.key(row))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys.iter().map(|key| self.work.task.bucket(*key, &self.owner.batch_id)).collect()
    }

    fn candidates(&self, py: Python<'_>, collected: Vec<PyBackedBytes>) -> Vec<u8> {
        py.detach(|| {
            let collected = self.keys(&collected);
            self.candidate_rows(&collected).flat_map(|row| *self.work.rows.id(row)).collect()
        })
    }

    fn rework_seconds(
        &self,
        py: Python<'_>,
        collected: Vec<PyBackedBytes>,
        replayed: &[u8],
    ) -> Result<f64> {
        let decision = py.detach(|| self.decide(&collected, replayed))?;
        Ok(match decision.lacking {
            true => f64::INFINITY,
            false => decision.surplus.len() as f64 * self.seconds_per_report,
        })
    }

    fn known(
        &self,
        py: Python<'_>,
        collected: Vec<PyBackedBytes>,
        replayed: &[u8],
    ) -> Result<Vec<u8>> {
        py.detach(|| self.decide(&collected, replayed)).map(|decision| decision.outcomes)
    }

    fn finish(
        &self,
        py: Python<'_>,
        collected: Vec<PyBackedBytes>,
        replayed: &[u8],
    ) -> Result<HelperFinish> {
        py.detach(|| self.finish_with(&collected, replayed))
    }
}

#[pyclass(frozen, get_all, module = "dapd._native")]
pub struct HelperFinish {
    response: Vec<u8>,
    admitted_ids: Vec<u8>,
    admitted_min: u64,
    outcomes: Vec<u8>,
    buckets: Vec<BucketTotal>,
}
