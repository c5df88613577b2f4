//! Accepted reports at rest: columns of ids, lengths and rows, which can be cut without a key.
//!
//! A row is `opaque32` of the sealed input share payload, then the part of the report that the
//! Helper is sent: metadata, public share, HPKE ciphertext. Only this crate knows that layout.

use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::report::{put32, Reader, ReportId, ReportMetadata, Wire};

/// (n, time_min, time_max, ids, lengths, rows)
pub type Chunk = (usize, u64, u64, Vec<u8>, Vec<u8>, Vec<u8>);

/// The parts of a stored row.
pub struct StoredRow<'a> {
    pub sealed: &'a [u8],
    /// The rest of the row: an encoded `ReportShare`.
    pub share: &'a [u8],
}

impl<'a> StoredRow<'a> {
    pub fn write(&self, out: &mut Vec<u8>) {
        put32(out, self.sealed);
        out.extend_from_slice(self.share);
    }

    pub fn read(row: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(row, 0);
        let sealed = reader.opaque32(1, "sealed input share").map_err(|_| damaged())?;
        Ok(Self { sealed, share: &row[reader.offset()..] })
    }

    pub fn metadata(&self) -> Result<ReportMetadata<'a>> {
        ReportMetadata::read(&mut Reader::new(self.share, 0)).map_err(|_| damaged())
    }
}

pub fn damaged() -> Error {
    Error::value("a stored report does not parse: the chunk is damaged")
}

/// The columns of a chunk while it is being written.
#[derive(Default)]
pub struct Columns {
    count: usize,
    times: Option<(u64, u64)>,
    ids: Vec<u8>,
    lengths: Vec<u8>,
    rows: Vec<u8>,
}

impl Columns {
    pub fn push(&mut self, id: &ReportId, time: u64, row: &[u8]) {
        let (min, max) = self.times.unwrap_or((time, time));
        self.times = Some((min.min(time), max.max(time)));
        self.count += 1;
        self.ids.extend_from_slice(id);
        self.lengths.extend_from_slice(&(row.len() as u32).to_le_bytes());
        self.rows.extend_from_slice(row);
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Return the chunk, or `None` if it has no rows.
    pub fn finish(self) -> Option<Chunk> {
        let (min, max) = self.times?;
        Some((self.count, min, max, self.ids, self.lengths, self.rows))
    }
}

/// Split a chunk into its (id, row) pairs.
pub fn read_columns<'a>(
    ids: &'a [u8],
    lengths: &'a [u8],
    rows: &'a [u8],
) -> Result<Vec<(&'a ReportId, &'a [u8])>> {
    let (ids, odd_id) = ids.as_chunks::<16>();
    let (lengths, odd_length) = lengths.as_chunks::<4>();
    if !odd_id.is_empty() || !odd_length.is_empty() || ids.len() != lengths.len() {
        return Err(Error::value("columns of a chunk must be of the same number of reports"));
    }
    let mut rest = rows;
    let mut out = Vec::with_capacity(ids.len());
    for (id, length) in ids.iter().zip(lengths) {
        let length = u32::from_le_bytes(*length) as usize;
        let (row, after) = rest.split_at_checked(length).ok_or_else(damaged)?;
        out.push((id, row));
        rest = after;
    }
    if !rest.is_empty() {
        return Err(damaged());
    }
    Ok(out)
}

/// Copy the rows whose byte in `keep` is not 0 into a new chunk.
#[pyfunction]
pub fn cut_chunk(
    py: Python<'_>,
    ids: &[u8],
    lengths: &[u8],
    rows: &[u8],
    keep: &[u8],
) -> Result<Option<Chunk>> {
    py.detach(|| {
        let all = read_columns(ids, lengths, rows)?;
        if keep.len() != all.len() {
            return Err(Error::value("keep must have a byte for each report"));
        }
        let mut kept = Columns::default();
        for ((id, row), keep) in all.into_iter().zip(keep) {
            if *keep != 0 {
                kept.push(id, StoredRow::read(row)?.metadata()?.time, row);
            }
        }
        Ok(kept.finish())
    })
}
