//! Uploads (section "Leader Behavior" of "Uploading Reports"; rule B1).
//!
//! One call opens any number of requests and groups their reports by task and bucket. The database
//! transaction then checks for replays and collected batches, and returns a column of outcomes for
//! each part; from these columns each request gets its answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use rayon::prelude::*;

use crate::columns::{Chunk, Columns, StoredRow};
use crate::error::{DecodeError, Error, Result};
use crate::hpke::Keyring;
use crate::report::{
    put32, report_error, PlaintextInputShare, Reader, Report, ReportId, ReportUploadStatus, Wire,
    LEADER_INFO,
};
use crate::rules::ReportRules;
use crate::seal::{chunk_row_aad, Sealer};
use crate::totals::UPLOADS;
use crate::vdaf::{dispatch, leader_decodes, Rejection, Task, TaskParameters};

struct Request {
    task: Arc<Task>,
    rules: ReportRules,
    body: PyBackedBytes,
}

/// The keys that open and seal every report of a group.
struct Opening<'a> {
    keyring: &'a Keyring,
    sealer: &'a Sealer,
}

impl Opening<'_> {
    /// Check, open and seal a report: its row to store, or the reason for refusing it (rule B1).
    fn accept(&self, request: &Request, report: &Report<'_>) -> Result<Vec<u8>, Rejection> {
        let (task, metadata) = (&*request.task, &report.metadata);
        match request.rules.check(metadata.time) {
            None => {}
            Some(report_error::REPORT_TOO_EARLY) => return Err(report_error::REPORT_TOO_EARLY),
            Some(_) => return Err(report_error::REPORT_DROPPED),
        }
        let sealed = &report.leader_encrypted_input_share;
        let keypair = self.keyring.get(sealed.config_id).ok_or(report_error::OUTDATED_CONFIG)?;
        let mut share = Vec::new();
        metadata.write(&mut share);
        put32(&mut share, report.public_share);
        let aad = task.aad(&share);
        report.helper_encrypted_input_share.write(&mut share);
        let plaintext = keypair
            .open_raw(LEADER_INFO, &aad, sealed.enc, sealed.payload)
            .ok_or(report_error::HPKE_DECRYPT_ERROR)?;
        let input =
            PlaintextInputShare::decode(&plaintext).map_err(|_| report_error::INVALID_MESSAGE)?;
        let (public, private) = (metadata.public_extensions, input.private_extensions);
        let valid = request.rules.check_extensions(public, private)
            && dispatch!(&*task.vdaf, vdaf => {
                leader_decodes(vdaf, report.public_share, input.payload)
            });
        if !valid {
            return Err(report_error::INVALID_MESSAGE);
        }
        let mut sealed = Vec::new();
        let aad = chunk_row_aad(&task.task_id, metadata.report_id);
        self.sealer.seal_to(&aad, input.payload, &mut sealed);
        let mut row = Vec::with_capacity(4 + sealed.len() + share.len());
        StoredRow { sealed: &sealed, share: &share }.write(&mut row);
        Ok(row)
    }
}

/// A parsed request: its reports' ids, and each one's outcome or its place in a part.
struct Answering {
    error: Option<(usize, String)>,
    reports: Vec<(ReportId, Place)>,
}

enum Place {
    Refused(Rejection),
    Accepted { part: usize, row: usize },
}

struct Part {
    task_id: [u8; 32],
    bucket: Vec<u8>,
    rows: Vec<(ReportId, u64, Vec<u8>)>,
}

#[pyclass(frozen, skip_from_py_object, module = "dapd._native")]
#[derive(Clone)]
pub struct UploadPart(Arc<Part>);

#[pymethods]
impl UploadPart {
    #[getter]
    fn task_id(&self) -> Vec<u8> {
        self.0.task_id.to_vec()
    }

    #[getter]
    fn bucket(&self) -> Vec<u8> {
        self.0.bucket.clone()
    }

    #[getter]
    fn count(&self) -> usize {
        self.0.rows.len()
    }

    #[getter]
    fn ids(&self) -> Vec<u8> {
        self.0.rows.iter().flat_map(|(id, ..)| *id).collect()
    }

    fn chunks(&self, py: Python<'_>, rejected: &[u8], max_rows: usize) -> Result<Vec<Chunk>> {
        py.detach(|| {
            let rows = &self.0.rows;
            if max_rows == 0 || rejected.len() != rows.len() {
                return Err(Error::value("chunks needs an outcome for each row and max_rows >= 1"));
            }
            let (mut chunks, mut chunk) = (Vec::new(), Columns::default());
            for ((id, time, row), rejected) in rows.iter().zip(rejected) {
                if *rejected != 0 {
                    continue;
                }
                chunk.push(id, *time, row);
                if chunk.count() == max_rows {
                    chunks.extend(std::mem::take(&mut chunk).finish());
                }
            }
            chunks.extend(chunk.finish());
            Ok(chunks)
        })
    }
}

#[pyclass(frozen, get_all, module = "dapd._native")]
pub struct UploadAnswer {
    error: Option<(usize, String)>,
    upload_errors: Vec<u8>,
    outcomes: BTreeMap<u8, u64>,
}

#[pyclass(frozen, module = "dapd._native")]
pub struct UploadGroup {
    requests: Vec<Answering>,
    #[pyo3(get)]
    parts: Vec<UploadPart>,
    #[pyo3(get)]
    unknown_config_ids: Vec<u8>,
}

#[pymethods]
impl UploadGroup {
    fn answers(&self, py: Python<'_>, rejected: Vec<PyBackedBytes>) -> Result<Vec<UploadAnswer>> {
        py.detach(|| {
            let sizes = self.parts.iter().map(|part| part.0.rows.len());
            if !sizes.eq(rejected.iter().map(|column| column.len())) {
                return Err(Error::value("answers needs an outcome for each row of each part"));
            }
            Ok(self.requests.iter().map(|request| request.answer(&rejected)).collect())
        })
    }
}

impl Answering {
    fn answer(&self, rejected: &[PyBackedBytes]) -> UploadAnswer {
        let mut outcomes = BTreeMap::new();
        let mut upload_errors = Vec::new();
        for (report_id, place) in &self.reports {
            let error = match *place {
                Place::Refused(error) => error,
                Place::Accepted { part, row } => rejected[part][row],
            };
            *outcomes.entry(error).or_insert(0) += 1;
            if error != report_error::FINE {
                ReportUploadStatus { report_id, error }.write(&mut upload_errors);
            }
        }
        UploadAnswer { error: self.error.clone(), upload_errors, outcomes }
    }
}

/// The parts of a group while they are being filled.
#[derive(Default)]
struct Parts {
    parts: Vec<Part>,
    places: HashMap<([u8; 32], u64), usize>,
}

impl Parts {
    fn place(&mut self, task: &Task, id: ReportId, time: u64, row: Vec<u8>) -> Place {
        let key = (task.task_id, task.key(time));
        let part = *self.places.entry(key).or_insert_with(|| {
            let bucket = task.bucket(time, &[]);
            self.parts.push(Part { task_id: task.task_id, bucket, rows: Vec::new() });
            self.parts.len() - 1
        });
        let rows = &mut self.parts[part].rows;
        rows.push((id, time, row));
        Place::Accepted { part, row: rows.len() - 1 }
    }
}

type Parsed<'a> = Result<Vec<Report<'a>>, DecodeError>;

fn open_group(requests: &[Request], opening: &Opening<'_>) -> UploadGroup {
    let parsed: Vec<Parsed<'_>> =
        requests.iter().map(|request| Reader::new(&request.body, 0).list()).collect();
    let reports: Vec<(&Request, &Report<'_>)> = requests
        .iter()
        .zip(&parsed)
        .flat_map(|(request, reports)| {
            reports.iter().flatten().map(move |report| (request, report))
        })
        .collect();
    let accept = |(request, report): &(&Request, &Report<'_>)| opening.accept(request, report);
    let opened: Vec<Result<Vec<u8>, Rejection>> = match reports.as_slice() {
        // Opening a single report takes less time than waking a thread of the pool.
        [report] => vec![accept(report)],
        reports => UPLOADS.install(|| reports.par_iter().map(accept).collect()),
    };
    group(requests, parsed, opened)
}

fn group(
    requests: &[Request],
    parsed: Vec<Parsed<'_>>,
    opened: Vec<Result<Vec<u8>, Rejection>>,
) -> UploadGroup {
    let (mut parts, mut unknown, mut answering) = (Parts::default(), Vec::new(), Vec::new());
    let mut opened = opened.into_iter();
    for (request, reports) in requests.iter().zip(parsed) {
        let error = reports.as_ref().err().map(|e| (e.offset, e.reason.to_string()));
        let mut places = Vec::new();
        for report in reports.into_iter().flatten() {
            let (id, time) = (*report.metadata.report_id, report.metadata.time);
            let place = match opened.next().expect("one for each report") {
                Ok(row) => parts.place(&request.task, id, time, row),
                Err(rejection) => {
                    if rejection == report_error::OUTDATED_CONFIG {
                        unknown.push(report.leader_encrypted_input_share.config_id);
                    }
                    Place::Refused(rejection)
                }
            };
            places.push((id, place));
        }
        answering.push(Answering { error, reports: places });
    }
    unknown.sort_unstable();
    unknown.dedup();
    let parts = parts.parts.into_iter().map(|part| UploadPart(Arc::new(part))).collect();
    UploadGroup { requests: answering, parts, unknown_config_ids: unknown }
}

#[pyfunction]
pub fn open_uploads(
    py: Python<'_>,
    requests: Vec<(PyRef<'_, TaskParameters>, PyRef<'_, ReportRules>, PyBackedBytes)>,
    keyring: &Keyring,
    sealer: &Sealer,
) -> UploadGroup {
    let requests: Vec<Request> = requests
        .into_iter()
        .map(|(parameters, rules, body)| Request {
            task: parameters.task.clone(),
            rules: rules.clone(),
            body,
        })
        .collect();
    py.detach(|| open_group(&requests, &Opening { keyring, sealer }))
}
