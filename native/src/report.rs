//! The report-level structures of DAP-18 as views of their bytes, and the rules of
//! "Input Share Validation" that need nothing else (rules B2, B3).
//!
//! Message-level structures are Python's. `ReportError` is an open number, `VerifyRespType` closed.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{DecodeError, Error, Result};

/// `ReportError` (section "Basic Type Definitions"); 0, reserved there, is "fine" in a column.
pub mod report_error {
    pub const FINE: u8 = 0;
    pub const BATCH_COLLECTED: u8 = 1;
    pub const REPORT_REPLAYED: u8 = 2;
    pub const REPORT_DROPPED: u8 = 3;
    pub const HPKE_UNKNOWN_CONFIG_ID: u8 = 4;
    pub const HPKE_DECRYPT_ERROR: u8 = 5;
    pub const VDAF_VERIFY_ERROR: u8 = 6;
    pub const TASK_EXPIRED: u8 = 7;
    pub const INVALID_MESSAGE: u8 = 8;
    pub const REPORT_TOO_EARLY: u8 = 9;
    pub const TASK_NOT_STARTED: u8 = 10;
    pub const OUTDATED_CONFIG: u8 = 11;
}

/// HPKE's `info` for an input share, sender Client (0x01), recipient the Leader (0x02).
pub const LEADER_INFO: &[u8] = b"dap-18 input share\x01\x02";
/// The same, recipient the Helper (0x03).
pub const HELPER_INFO: &[u8] = b"dap-18 input share\x01\x03";

type Decoded<T> = Result<T, DecodeError>;
pub type ReportId = [u8; 16];

/// A bounds-checked cursor. Offsets in its errors count from the start of `data`.
pub struct Reader<'a> {
    data: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Reads `data` from `offset` on (its end at most).
    pub fn new(data: &'a [u8], offset: usize) -> Self {
        Self { data, offset: offset.min(data.len()) }
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn is_empty(&self) -> bool {
        self.offset == self.data.len()
    }

    pub fn take(&mut self, len: usize, name: &str) -> Decoded<&'a [u8]> {
        let rest = &self.data[self.offset..];
        let Some(bytes) = rest.get(..len) else {
            let left = rest.len();
            let reason = format!("{name} needs {len} bytes, {left} are left");
            return Err(DecodeError::new(self.offset, reason));
        };
        self.offset += len;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self, name: &str) -> Decoded<&'a [u8; N]> {
        self.take(N, name).map(|bytes| bytes.try_into().expect("take gives N bytes"))
    }

    pub fn u8(&mut self, name: &str) -> Decoded<u8> {
        self.array(name).map(|&[byte]| byte)
    }

    pub fn u16(&mut self, name: &str) -> Decoded<u16> {
        self.array(name).map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub fn u64(&mut self, name: &str) -> Decoded<u64> {
        self.array(name).map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// `opaque name<min..2^16-1>`
    pub fn opaque16(&mut self, min: usize, name: &str) -> Decoded<&'a [u8]> {
        let len = self.u16(name)?.into();
        self.body(len, min, name)
    }

    /// `opaque name<min..2^32-1>`
    pub fn opaque32(&mut self, min: usize, name: &str) -> Decoded<&'a [u8]> {
        let len = u32::from_be_bytes(*self.array(name)?) as usize;
        self.body(len, min, name)
    }

    fn body(&mut self, len: usize, min: usize, name: &str) -> Decoded<&'a [u8]> {
        if len < min {
            return Err(DecodeError::new(self.offset, format!("{name} is empty")));
        }
        self.take(len, name)
    }

    /// All structures up to the end.
    pub fn list<T: Wire<'a>>(&mut self) -> Decoded<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_empty() {
            items.push(T::read(self)?);
        }
        Ok(items)
    }
}

fn put16(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("the field is below 2^16 bytes");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put32(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("the field is below 2^32 bytes");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A structure of the draft, borrowed from the message that holds it.
pub trait Wire<'a>: Sized {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self>;
    fn write(&self, out: &mut Vec<u8>);

    /// The whole of `data`; trailing bytes are an error.
    fn decode(data: &'a [u8]) -> Decoded<Self> {
        let mut reader = Reader::new(data, 0);
        let value = Self::read(&mut reader)?;
        if !reader.is_empty() {
            return Err(DecodeError::new(reader.offset, "trailing bytes"));
        }
        Ok(value)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}

/// `Extension`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    pub extension_type: u16,
    pub extension_data: &'a [u8],
}

impl<'a> Wire<'a> for Extension<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            extension_type: reader.u16("extension_type")?,
            extension_data: reader.opaque16(0, "extension_data")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.extension_type.to_be_bytes());
        put16(out, self.extension_data);
    }
}

/// Reads `Extension name<0..2^16-1>`, seeing that its items parse; gives the raw items.
fn read_extensions<'a>(reader: &mut Reader<'a>, name: &str) -> Decoded<&'a [u8]> {
    let raw = reader.opaque16(0, name)?;
    let end = reader.offset;
    let mut items = Reader { data: &reader.data[..end], offset: end - raw.len() };
    while !items.is_empty() {
        Extension::read(&mut items)?;
    }
    Ok(raw)
}

/// The raw items of an extension list. Raises `ValueError` beyond 2^16-1 bytes.
pub fn encode_extensions(extensions: &[(u16, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (extension_type, extension_data) in extensions {
        if out.len() + 4 + extension_data.len() > usize::from(u16::MAX) {
            return Err(Error::value("extensions must fit in 65535 bytes"));
        }
        Extension { extension_type: *extension_type, extension_data }.write(&mut out);
    }
    Ok(out)
}

/// `HpkeCiphertext`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HpkeCiphertext<'a> {
    pub config_id: u8,
    pub enc: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Wire<'a> for HpkeCiphertext<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            config_id: reader.u8("HPKE config id")?,
            enc: reader.opaque16(1, "HPKE enc")?,
            payload: reader.opaque32(1, "HPKE payload")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.config_id);
        put16(out, self.enc);
        put32(out, self.payload);
    }
}

/// `ReportMetadata`; `public_extensions` holds the raw items, each of which parses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportMetadata<'a> {
    pub report_id: &'a ReportId,
    pub time: u64,
    pub public_extensions: &'a [u8],
}

impl<'a> Wire<'a> for ReportMetadata<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            report_id: reader.array("report_id")?,
            time: reader.u64("time")?,
            public_extensions: read_extensions(reader, "public_extensions")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.report_id);
        out.extend_from_slice(&self.time.to_be_bytes());
        put16(out, self.public_extensions);
    }
}

/// `Report`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    pub metadata: ReportMetadata<'a>,
    pub public_share: &'a [u8],
    pub leader_encrypted_input_share: HpkeCiphertext<'a>,
    pub helper_encrypted_input_share: HpkeCiphertext<'a>,
}

impl<'a> Wire<'a> for Report<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            metadata: ReportMetadata::read(reader)?,
            public_share: reader.opaque32(0, "public_share")?,
            leader_encrypted_input_share: HpkeCiphertext::read(reader)?,
            helper_encrypted_input_share: HpkeCiphertext::read(reader)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.metadata.write(out);
        put32(out, self.public_share);
        self.leader_encrypted_input_share.write(out);
        self.helper_encrypted_input_share.write(out);
    }
}

/// `ReportShare`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportShare<'a> {
    pub metadata: ReportMetadata<'a>,
    pub public_share: &'a [u8],
    pub encrypted_input_share: HpkeCiphertext<'a>,
}

impl<'a> Wire<'a> for ReportShare<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            metadata: ReportMetadata::read(reader)?,
            public_share: reader.opaque32(0, "public_share")?,
            encrypted_input_share: HpkeCiphertext::read(reader)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.metadata.write(out);
        put32(out, self.public_share);
        self.encrypted_input_share.write(out);
    }
}

/// `VerifyInit`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyInit<'a> {
    pub report_share: ReportShare<'a>,
    pub payload: &'a [u8],
}

impl<'a> Wire<'a> for VerifyInit<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            report_share: ReportShare::read(reader)?,
            payload: reader.opaque32(1, "VerifyInit payload")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.report_share.write(out);
        put32(out, self.payload);
    }
}

/// What a `VerifyResp` says of its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Continue(&'a [u8]),
    Finish,
    Reject(u8),
}

/// `VerifyResp`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyResp<'a> {
    pub report_id: &'a ReportId,
    pub verdict: Verdict<'a>,
}

impl<'a> Wire<'a> for VerifyResp<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        let report_id = reader.array("report_id")?;
        let offset = reader.offset;
        let verdict = match reader.u8("verify_resp_type")? {
            0 => Verdict::Continue(reader.opaque32(1, "VerifyResp payload")?),
            1 => Verdict::Finish,
            2 => Verdict::Reject(reader.u8("report_error")?),
            other => {
                let reason = format!("unknown verify_resp_type {other}");
                return Err(DecodeError::new(offset, reason));
            }
        };
        Ok(Self { report_id, verdict })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.report_id);
        match self.verdict {
            Verdict::Continue(payload) => {
                out.push(0);
                put32(out, payload);
            }
            Verdict::Finish => out.push(1),
            Verdict::Reject(error) => out.extend_from_slice(&[2, error]),
        }
    }
}

/// `PlaintextInputShare`; `private_extensions` holds the raw items, each of which parses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextInputShare<'a> {
    pub private_extensions: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Wire<'a> for PlaintextInputShare<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self {
            private_extensions: read_extensions(reader, "private_extensions")?,
            payload: reader.opaque32(1, "input share payload")?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        put16(out, self.private_extensions);
        put32(out, self.payload);
    }
}

/// `ReportUploadStatus`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportUploadStatus<'a> {
    pub report_id: &'a ReportId,
    pub error: u8,
}

impl<'a> Wire<'a> for ReportUploadStatus<'a> {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self> {
        Ok(Self { report_id: reader.array("report id")?, error: reader.u8("report error")? })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.report_id);
        out.push(self.error);
    }
}

/// `InputShareAad`; `task_configuration` is encoded.
pub fn input_share_aad(
    task_id: &[u8; 32],
    task_configuration: &[u8],
    metadata: &ReportMetadata<'_>,
    public_share: &[u8],
) -> Vec<u8> {
    let mut out = [task_id, task_configuration].concat();
    metadata.write(&mut out);
    put32(&mut out, public_share);
    out
}

/// The bounds that a report is checked against; its times count the task's time precision.
#[pyclass(module = "dapd._native", frozen, skip_from_py_object)]
#[derive(Clone, Debug)]
pub struct ReportRules {
    too_early_after: u64,
    task_start: u64,
    task_end: u64,
    expired_before: u64,
    known_extensions: Vec<u16>,
}

#[pymethods]
impl ReportRules {
    #[new]
    #[pyo3(signature = (*, too_early_after, task_start, task_end, expired_before, known_extensions = Vec::new()))]
    pub fn new(
        too_early_after: u64,
        task_start: u64,
        task_end: u64,
        expired_before: u64,
        known_extensions: Vec<u16>,
    ) -> Self {
        Self { too_early_after, task_start, task_end, expired_before, known_extensions }
    }
}

impl ReportRules {
    /// The `ReportError` of a report of this time (B2). `report_too_early` comes last: it invites
    /// another try, which can't help where another bound is broken as well.
    pub fn check(&self, time: u64) -> Option<u8> {
        if time < self.task_start {
            Some(report_error::TASK_NOT_STARTED)
        } else if time >= self.task_end {
            Some(report_error::TASK_EXPIRED)
        } else if time < self.expired_before {
            Some(report_error::REPORT_DROPPED)
        } else if time > self.too_early_after {
            Some(report_error::REPORT_TOO_EARLY)
        } else {
            None
        }
    }

    /// Whether the raw items of both lists are known, each list strictly increasing, and no type
    /// occurs in both (B3). If not, the report is `invalid_message`.
    pub fn check_extensions(&self, public: &[u8], private: &[u8]) -> bool {
        let Some(public) = self.types(public) else {
            return false;
        };
        self.types(private).is_some_and(|private| private.iter().all(|kind| !public.contains(kind)))
    }

    fn types(&self, raw: &[u8]) -> Option<Vec<u16>> {
        let items: Vec<Extension<'_>> = Reader::new(raw, 0).list().ok()?;
        let types: Vec<u16> = items.iter().map(|item| item.extension_type).collect();
        let good = types.is_sorted_by(|a, b| a < b)
            && types.iter().all(|kind| self.known_extensions.contains(kind));
        good.then_some(types)
    }
}

/// `UploadErrors` as (report id, ReportError).
#[pyfunction]
pub fn parse_upload_errors<'py>(
    py: Python<'py>,
    body: &[u8],
) -> Result<Vec<(Bound<'py, PyBytes>, u8)>> {
    let statuses: Vec<ReportUploadStatus<'_>> = Reader::new(body, 0).list()?;
    let row = |status: ReportUploadStatus<'_>| (PyBytes::new(py, status.report_id), status.error);
    Ok(statuses.into_iter().map(row).collect())
}
