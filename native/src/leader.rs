//! The Leader's side of an aggregation job (section "Leader Initialization"; rules B2, B5, B6).
//!
//! Between the two calls the database keeps one sealed state, with an entry for every report of the
//! job's chunks: id, outcome, time, and the VDAF's state (empty for a rejected report).

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use rayon::prelude::*;

use crate::columns::{damaged, read_columns, StoredRow};
use crate::error::{DecodeError, Error, Result};
use crate::report::{
    put32, report_error, Reader, ReportId, ReportShare, Verdict, VerifyResp, Wire,
};
use crate::rules::ReportRules;
use crate::seal::{chunk_row_aad, leader_state_aad, Sealer};
use crate::totals::{piece, BucketTotal, Owner, JOBS};
use crate::vdaf::{
    dispatch, leader_continue, leader_init, leader_state, Kind, Rejection, Shares, Sums, Task,
    TaskParameters, P3,
};

#[pyclass(frozen, get_all, module = "dapd._native")]
#[derive(Default)]
pub struct LeaderStart {
    verify_inits: Vec<u8>,
    state: Vec<u8>,
    outcomes: Vec<u8>,
}

#[pyclass(frozen, get_all, module = "dapd._native")]
pub struct LeaderFinish {
    outcomes: Vec<u8>,
    buckets: Vec<BucketTotal>,
}

/// One report's entry in the state. `inbound`, the Helper's message, is not stored.
struct Entry<'a> {
    id: &'a ReportId,
    outcome: u8,
    time: u64,
    state: &'a [u8],
    inbound: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id);
        out.push(self.outcome);
        out.extend_from_slice(&self.time.to_be_bytes());
        put32(out, self.state);
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.array("report id")?,
            outcome: reader.u8("outcome")?,
            time: reader.u64("time")?,
            state: reader.opaque32(0, "VDAF state")?,
            inbound: None,
        })
    }
}

struct Starting<'a> {
    task: &'a Task,
    rules: &'a ReportRules,
    sealer: &'a Sealer,
}

impl Starting<'_> {
    fn piece<T: Kind>(&self, vdaf: &P3<T>, rows: &[(&ReportId, &[u8])]) -> Result<LeaderStart> {
        let mut done = LeaderStart::default();
        for (id, row) in rows {
            self.row(vdaf, id, StoredRow::read(row)?, &mut done)?;
        }
        Ok(done)
    }

    fn row<T: Kind>(
        &self,
        vdaf: &P3<T>,
        id: &ReportId,
        row: StoredRow<'_>,
        done: &mut LeaderStart,
    ) -> Result<()> {
        let share = ReportShare::decode(row.share).map_err(|_| damaged())?;
        if share.metadata.report_id != id {
            return Err(damaged());
        }
        let mut input = Vec::new();
        let aad = chunk_row_aad(&self.task.task_id, id);
        self.sealer.open_to(&aad, row.sealed, &mut input)?;
        let started = self.start(vdaf, &share, &input);
        let (outcome, state) = match &started {
            Ok((state, message)) => {
                done.verify_inits.extend_from_slice(row.share);
                put32(&mut done.verify_inits, message);
                (report_error::FINE, state.as_slice())
            }
            Err(rejection) => (*rejection, [].as_slice()),
        };
        done.outcomes.push(outcome);
        Entry { id, outcome, time: share.metadata.time, state, inbound: None }
            .write(&mut done.state);
        Ok(())
    }

    fn start<T: Kind>(
        &self,
        vdaf: &P3<T>,
        share: &ReportShare<'_>,
        input: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), Rejection> {
        // Since the upload, time has passed and the rules may have changed (B2).
        if let Some(rejection) = self.rules.check(share.metadata.time) {
            return Err(rejection);
        }
        if !self.rules.check_extensions(share.metadata.public_extensions, &[]) {
            return Err(report_error::INVALID_MESSAGE);
        }
        leader_init(vdaf, self.task, share.metadata.report_id, share.public_share, input)
    }
}

fn joined(mut first: LeaderStart, second: LeaderStart) -> Result<LeaderStart> {
    first.verify_inits.extend(second.verify_inits);
    first.state.extend(second.state);
    first.outcomes.extend(second.outcomes);
    Ok(first)
}

#[pyfunction]
pub fn leader_start(
    py: Python<'_>,
    parameters: &TaskParameters,
    rules: &ReportRules,
    sealer: &Sealer,
    job_id: &[u8],
    chunks: Vec<(PyBackedBytes, PyBackedBytes, PyBackedBytes)>,
) -> Result<LeaderStart> {
    let task = &*parameters.task;
    let starting = Starting { task, rules, sealer };
    py.detach(|| {
        let mut rows = Vec::new();
        for (ids, lengths, sealed) in &chunks {
            rows.extend(read_columns(ids, lengths, sealed)?);
        }
        let mut all = dispatch!(&*task.vdaf, vdaf => JOBS.install(|| {
            rows.par_chunks(piece(rows.len()))
                .map(|rows| starting.piece(vdaf, rows))
                .try_reduce(LeaderStart::default, joined)
        }))?;
        let mut sealed = Vec::new();
        sealer.seal_to(&leader_state_aad(&task.task_id, job_id), &all.state, &mut sealed);
        all.state = sealed;
        Ok(all)
    })
}

/// Match the Helper's answers to the state's entries, and check that none is missing, extra or out
/// of order (rule B5). An entry that the Helper continues gets its message.
fn answered<'a>(state: &'a [u8], response: &'a [u8]) -> Result<Vec<Entry<'a>>> {
    let mut entries = Reader::new(state, 0);
    let mut answers = Reader::new(response, 0);
    let mut out = Vec::new();
    while !entries.is_empty() {
        let mut entry = Entry::read(&mut entries).map_err(|_| damaged_state())?;
        if entry.outcome == report_error::FINE {
            let offset = answers.offset();
            if answers.is_empty() {
                return Err(DecodeError::new(offset, "a VerifyResp is missing").into());
            }
            let answer = VerifyResp::read(&mut answers)?;
            if answer.report_id != entry.id {
                return Err(DecodeError::new(offset, "report id differs from the request's").into());
            }
            match answer.verdict {
                Verdict::Continue(message) => entry.inbound = Some(message),
                Verdict::Finish => {
                    return Err(DecodeError::new(offset, "finish instead of continue").into())
                }
                // Code 0 is `reserved`: a rejection without a reason. In a column it means "fine".
                Verdict::Reject(report_error::FINE) => entry.outcome = report_error::REPORT_DROPPED,
                Verdict::Reject(error) => entry.outcome = error,
            }
        }
        out.push(entry);
    }
    if !answers.is_empty() {
        return Err(DecodeError::new(answers.offset(), "a VerifyResp too many").into());
    }
    Ok(out)
}

fn damaged_state() -> Error {
    Error::value("a Leader's stored state does not parse")
}

type Finished<T> = (Vec<u8>, Sums<T>);

fn finish_piece<T: Kind>(vdaf: &P3<T>, task: &Task, entries: &[Entry<'_>]) -> Result<Finished<T>> {
    let (mut outcomes, mut sums) = (Vec::with_capacity(entries.len()), Sums::default());
    for entry in entries {
        let mut outcome = entry.outcome;
        if let Some(inbound) = entry.inbound {
            let state = leader_state(vdaf, entry.state).ok_or_else(damaged_state)?;
            match leader_continue(vdaf, task, state, inbound) {
                Ok(output) => sums.add(task.key(entry.time), output),
                Err(rejection) => outcome = rejection,
            }
        }
        outcomes.push(outcome);
    }
    Ok((outcomes, sums))
}

fn finish_all<T: Kind>(
    vdaf: &P3<T>,
    task: &Task,
    entries: &[Entry<'_>],
) -> Result<(Vec<u8>, Shares)> {
    let none = || (Vec::new(), Sums::default());
    let (outcomes, sums) = JOBS.install(|| {
        entries
            .par_chunks(piece(entries.len()))
            .map(|entries| finish_piece(vdaf, task, entries))
            .try_reduce(none, |(mut outcomes, sums), (more, other)| {
                outcomes.extend(more);
                Ok((outcomes, sums.merge(other)))
            })
    })?;
    Ok((outcomes, sums.encode()))
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the interface of `_native.pyi`
pub fn leader_finish(
    py: Python<'_>,
    parameters: &TaskParameters,
    sealer: Py<Sealer>,
    job_id: &[u8],
    batch_id: Option<&[u8]>,
    state: &[u8],
    response: &[u8],
) -> Result<LeaderFinish> {
    let task = parameters.task.clone();
    let owner = Owner::new(task.clone(), sealer, job_id, batch_id)?;
    py.detach(|| {
        let mut opened = Vec::new();
        let aad = leader_state_aad(&task.task_id, job_id);
        owner.sealer.get().open_to(&aad, state, &mut opened)?;
        let entries = answered(&opened, response)?;
        let (outcomes, shares) = dispatch!(&*task.vdaf, vdaf => finish_all(vdaf, &task, &entries))?;
        let counted = entries.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == 0);
        let rows = counted.map(|(entry, _)| (entry.id, entry.time));
        let buckets = owner.totals(&shares, rows);
        Ok(LeaderFinish { outcomes, buckets })
    })
}
