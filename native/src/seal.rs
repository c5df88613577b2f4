//! Sealing at rest: AES-256-GCM-SIV of aws-lc-rs, `0x01 || key_id(8) || nonce(12) || ciphertext`.
//!
//! GCM-SIV because nonces are random and one key seals for years (rule F2). The AADs of the columns
//! that Rust seals are built here; `dapd/crypto.py` lists those of all columns. Each row of a chunk
//! is sealed on its own; `reseal_rows` and `row_key_ids` take the chunk's columns as stored.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM_SIV, NONCE_LEN};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::columns::{read_columns, StoredRow};
use crate::error::{Error, Result};

const FORMAT: u8 = 1;
const KEY_ID_LEN: usize = 8;
const HEAD_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;
/// The number of bytes by which a sealed value is longer than its plaintext.
pub const OVERHEAD: usize = HEAD_LEN + 16;

/// `chunk_rows.rows`: one accepted report's row.
pub fn chunk_row_aad(task_id: &[u8], report_id: &[u8]) -> Vec<u8> {
    [b"chunk_rows.rows", task_id, report_id].concat()
}

/// `job_bodies.leader_state`: the verification state of a Leader's job.
pub fn leader_state_aad(task_id: &[u8], job_id: &[u8]) -> Vec<u8> {
    [b"job_bodies.leader_state", task_id, job_id].concat()
}

/// `batch_shares.share`: one job's aggregate share for one batch bucket (rule F3).
pub fn batch_share_aad(task_id: &[u8], job_id: &[u8], bucket: &[u8]) -> Vec<u8> {
    [b"batch_shares.share", task_id, job_id, bucket].concat()
}

/// The sealing keys: the first one seals, all of them open.
#[pyclass(module = "dapd._native", frozen)]
pub struct Sealer(Vec<([u8; KEY_ID_LEN], LessSafeKey)>);

impl Sealer {
    pub fn of(keys: &[(&[u8], &[u8])]) -> Result<Self> {
        let mut sealer = Self(Vec::with_capacity(keys.len()));
        for (id, key) in keys {
            let id = <[u8; KEY_ID_LEN]>::try_from(*id)
                .map_err(|_| Error::value("a sealing key's id must have 8 bytes"))?;
            if sealer.key(&id).is_some() {
                let id = hex(&id);
                return Err(Error::value(format!("sealing key {id} occurs twice")));
            }
            let key = UnboundKey::new(&AES_256_GCM_SIV, key)
                .map_err(|_| Error::value("a sealing key must have 32 bytes"))?;
            sealer.0.push((id, LessSafeKey::new(key)));
        }
        if sealer.0.is_empty() {
            return Err(Error::value("a Sealer needs at least one key"));
        }
        Ok(sealer)
    }

    fn key(&self, id: &[u8]) -> Option<&LessSafeKey> {
        self.0.iter().find(|(own, _)| own == id).map(|(_, key)| key)
    }

    /// Append the sealed value to `out`.
    pub fn seal_to(&self, aad: &[u8], plaintext: &[u8], out: &mut Vec<u8>) {
        let (id, key) = &self.0[0];
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).expect("the operating system gives randomness");
        out.reserve(plaintext.len() + OVERHEAD);
        out.push(FORMAT);
        out.extend_from_slice(id);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut out[start..],
            )
            .expect("a value is below the 64 GB that one nonce can seal");
        out.extend_from_slice(tag.as_ref());
    }

    /// Append the plaintext of `sealed` to `out`; on failure `out` is unchanged.
    pub fn open_to(&self, aad: &[u8], sealed: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let id = key_id_of(sealed)?;
        let key = self
            .key(&id)
            .ok_or_else(|| Error::value(format!("unknown sealing key {}", hex(&id))))?;
        let (nonce, ciphertext) = sealed[1 + KEY_ID_LEN..].split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("a nonce has 12 bytes");
        let start = out.len();
        out.extend_from_slice(ciphertext);
        let opened = key.open_in_place(nonce, Aad::from(aad), &mut out[start..]);
        let len = opened.as_ref().map_or(0, |plaintext| plaintext.len());
        let failed = opened.is_err();
        out.truncate(start + len);
        if failed {
            return Err(Error::value("sealed value was tampered with, or moved"));
        }
        Ok(())
    }
}

/// Return the id of the key that sealed this value.
fn key_id_of(sealed: &[u8]) -> Result<[u8; KEY_ID_LEN]> {
    if sealed.len() < OVERHEAD || sealed[0] != FORMAT {
        return Err(Error::value("not a sealed value"));
    }
    Ok(sealed[1..=KEY_ID_LEN].try_into().expect("the head is longer than that"))
}

/// Open each row and seal it again with the first key. Every row keeps its length.
#[pyfunction]
pub fn reseal_rows<'py>(
    py: Python<'py>,
    sealer: &Sealer,
    task_id: &[u8],
    ids: &[u8],
    lengths: &[u8],
    rows: &[u8],
) -> Result<Bound<'py, PyBytes>> {
    let resealed = py.detach(|| resealed(sealer, task_id, (ids, lengths, rows)))?;
    Ok(PyBytes::new(py, &resealed))
}

fn resealed(
    sealer: &Sealer,
    task_id: &[u8],
    (ids, lengths, rows): (&[u8], &[u8], &[u8]),
) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(rows.len());
    let (mut plaintext, mut sealed) = (Vec::new(), Vec::new());
    for (id, row) in read_columns(ids, lengths, rows)? {
        let row = StoredRow::read(row)?;
        let aad = chunk_row_aad(task_id, id);
        plaintext.clear();
        sealed.clear();
        sealer.open_to(&aad, row.sealed, &mut plaintext)?;
        sealer.seal_to(&aad, &plaintext, &mut sealed);
        StoredRow { sealed: &sealed, share: row.share }.write(&mut out);
    }
    Ok(out)
}

/// Count the rows that each key sealed: (key id, rows).
#[pyfunction]
pub fn row_key_ids<'py>(
    py: Python<'py>,
    ids: &[u8],
    lengths: &[u8],
    rows: &[u8],
) -> Result<Vec<(Bound<'py, PyBytes>, usize)>> {
    let counted = py.detach(|| -> Result<_> {
        let mut counted = BTreeMap::new();
        for (_, row) in read_columns(ids, lengths, rows)? {
            *counted.entry(key_id_of(StoredRow::read(row)?.sealed)?).or_insert(0) += 1;
        }
        Ok(counted)
    })?;
    Ok(counted.into_iter().map(|(id, n)| (PyBytes::new(py, &id), n)).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[pymethods]
impl Sealer {
    #[new]
    fn new(keys: Vec<(Bound<'_, PyBytes>, Bound<'_, PyBytes>)>) -> Result<Self> {
        let keys: Vec<_> = keys.iter().map(|(id, key)| (id.as_bytes(), key.as_bytes())).collect();
        Self::of(&keys)
    }

    #[getter]
    fn key_ids<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.0.iter().map(|(id, _)| PyBytes::new(py, id)).collect()
    }

    fn seal<'py>(&self, py: Python<'py>, aad: &[u8], plaintext: &[u8]) -> Bound<'py, PyBytes> {
        let mut out = Vec::new();
        py.detach(|| self.seal_to(aad, plaintext, &mut out));
        PyBytes::new(py, &out)
    }

    fn open<'py>(&self, py: Python<'py>, aad: &[u8], sealed: &[u8]) -> Result<Bound<'py, PyBytes>> {
        let mut out = Vec::new();
        py.detach(|| self.open_to(aad, sealed, &mut out))?;
        Ok(PyBytes::new(py, &out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: (&[u8], &[u8]) = (b"old key.", &[1; 32]);
    const NEW: (&[u8], &[u8]) = (b"new key.", &[2; 32]);

    fn seal(sealer: &Sealer, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal_to(aad, plaintext, &mut out);
        out
    }

    fn open(sealer: &Sealer, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let mut out = b"before".to_vec();
        let outcome = sealer.open_to(aad, sealed, &mut out);
        assert!(out.starts_with(b"before") && (outcome.is_ok() || out.len() == 6));
        outcome.map(|()| out.split_off(6))
    }

    #[test]
    fn f2_the_first_key_seals_and_all_open() {
        let sealed = seal(&Sealer::of(&[OLD]).unwrap(), b"aad", b"secret");
        assert_eq!(&sealed[..9], b"\x01old key.");
        assert_eq!(sealed.len(), b"secret".len() + OVERHEAD);
        let both = Sealer::of(&[NEW, OLD]).unwrap();
        assert_eq!(open(&both, b"aad", &sealed).unwrap(), b"secret");
        assert_eq!(&seal(&both, b"aad", b"")[1..9], b"new key.");
        let error = open(&Sealer::of(&[NEW]).unwrap(), b"aad", &sealed).unwrap_err();
        assert_eq!(error.to_string(), "unknown sealing key 6f6c64206b65792e");
    }

    #[test]
    fn a_value_that_was_changed_cut_or_moved_does_not_open() {
        let sealer = Sealer::of(&[NEW]).unwrap();
        let sealed = seal(&sealer, b"here", b"secret");
        assert_ne!(sealed, seal(&sealer, b"here", b"secret"));
        assert!(open(&sealer, b"there", &sealed).is_err());
        for at in 0..sealed.len() {
            assert!(open(&sealer, b"here", &sealed[..at]).is_err());
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&sealer, b"here", &changed).is_err());
        }
    }

    #[test]
    fn bad_keys_are_refused() {
        assert!(Sealer::of(&[]).is_err());
        assert!(Sealer::of(&[NEW, OLD, NEW]).is_err());
        assert!(Sealer::of(&[(b"short", &[1; 32])]).is_err());
        assert!(Sealer::of(&[(b"8 bytes!", &[1; 16])]).is_err());
    }

    #[test]
    fn f2_rows_are_sealed_again_and_keep_their_lengths() {
        let old = Sealer::of(&[OLD]).unwrap();
        let ids = [[7; 16], [8; 16]];
        let mut rows = Vec::new();
        let mut lengths = Vec::new();
        for (id, plaintext) in ids.iter().zip([&b"one"[..], b""]) {
            let start = rows.len();
            let sealed = seal(&old, &chunk_row_aad(b"task", id), plaintext);
            StoredRow { sealed: &sealed, share: b"share" }.write(&mut rows);
            lengths.extend_from_slice(&((rows.len() - start) as u32).to_le_bytes());
        }
        let ids = ids.concat();
        let both = Sealer::of(&[NEW, OLD]).unwrap();
        let again = resealed(&both, b"task", (&ids, &lengths, &rows)).unwrap();
        assert_eq!(again.len(), rows.len());
        let new = Sealer::of(&[NEW]).unwrap();
        for (id, row) in read_columns(&ids, &lengths, &again).unwrap() {
            let row = StoredRow::read(row).unwrap();
            assert_eq!(key_id_of(row.sealed).unwrap(), *NEW.0);
            assert!(open(&new, &chunk_row_aad(b"task", id), row.sealed).is_ok());
            assert_eq!(row.share, b"share");
        }
        assert!(resealed(&new, b"task", (&ids, &lengths, &rows)).is_err());
        assert!(resealed(&both, b"another", (&ids, &lengths, &rows)).is_err());
        assert!(resealed(&both, b"task", (&ids, &lengths, &rows[1..])).is_err());
    }
}
