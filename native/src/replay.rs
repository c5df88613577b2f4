//! Which report ids of a task are taken (rules D3, F4).
//!
//! Per task a set of 64-bit hashes under a random secret key, about 20 MB a million ids. Two ids
//! of one task with the same hash (chance 2^-64 a pair, not to be found without the key) cost the
//! later report its place, never more.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{Error, Result};

/// The hashes are keyed and uniform already: hashing them anew would only cost time.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 is hashed")
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Hashes = HashSet<u64, BuildHasherDefault<AsIs>>;

#[derive(Default)]
struct State {
    tasks: HashMap<i64, Hashes>,
    /// What the running transaction admitted, to be undone by `rollback`.
    journal: Vec<(i64, u64)>,
}

/// The set of taken report ids. One transaction at a time admits; `peek` may come from any thread.
#[pyclass(module = "dapd._native", frozen)]
#[derive(Default)]
pub struct ReplayIndex {
    key: RandomState,
    state: Mutex<State>,
}

impl ReplayIndex {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    fn hashes(&self, ids: &[u8]) -> Result<Vec<u64>> {
        let (ids, rest) = ids.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(Error::value("a column of report ids must have 16 bytes an id"));
        }
        Ok(ids.iter().map(|id| self.key.hash_one(id)).collect())
    }

    pub fn load_ids(&self, task_pk: i64, ids: &[u8]) -> Result<()> {
        let hashes = self.hashes(ids)?;
        self.state().tasks.entry(task_pk).or_default().extend(hashes);
        Ok(())
    }

    pub fn admit_ids(&self, task_pk: i64, ids: &[u8]) -> Result<Vec<u8>> {
        let hashes = self.hashes(ids)?;
        let State { tasks, journal } = &mut *self.state();
        let known = tasks.entry(task_pk).or_default();
        let admit = |hash| {
            let new = known.insert(hash);
            if new {
                journal.push((task_pk, hash));
            }
            u8::from(!new)
        };
        Ok(hashes.into_iter().map(admit).collect())
    }

    pub fn peek_ids(&self, task_pk: i64, ids: &[u8]) -> Result<Vec<u8>> {
        let hashes = self.hashes(ids)?;
        let mut earlier = Hashes::default();
        let state = self.state();
        let known = state.tasks.get(&task_pk);
        let mut taken =
            |hash| !earlier.insert(hash) || known.is_some_and(|set| set.contains(&hash));
        Ok(hashes.into_iter().map(|hash| taken(hash).into()).collect())
    }

    pub fn commit_admitted(&self) {
        self.state().journal.clear();
    }

    /// D3: the index is undone with its transaction.
    pub fn rollback_admitted(&self) {
        let State { tasks, journal } = &mut *self.state();
        for (task_pk, hash) in journal.drain(..) {
            if let Some(known) = tasks.get_mut(&task_pk) {
                known.remove(&hash);
            }
        }
    }

    pub fn forget_ids(&self, task_pk: i64, ids: &[u8]) -> Result<()> {
        let hashes = self.hashes(ids)?;
        let tasks = &mut self.state().tasks;
        let Some(known) = tasks.get_mut(&task_pk) else {
            return Ok(());
        };
        for hash in &hashes {
            known.remove(hash);
        }
        if known.is_empty() {
            tasks.remove(&task_pk);
        } else if known.len() < known.capacity() / 4 {
            known.shrink_to_fit();
        }
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.state().tasks.values().map(HashSet::len).sum()
    }
}

#[pymethods]
impl ReplayIndex {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn load(&self, py: Python<'_>, task_pk: i64, ids: &[u8]) -> Result<()> {
        py.detach(|| self.load_ids(task_pk, ids))
    }

    fn admit<'py>(&self, py: Python<'py>, task_pk: i64, ids: &[u8]) -> Result<Bound<'py, PyBytes>> {
        let mask = py.detach(|| self.admit_ids(task_pk, ids))?;
        Ok(PyBytes::new(py, &mask))
    }

    fn peek<'py>(&self, py: Python<'py>, task_pk: i64, ids: &[u8]) -> Result<Bound<'py, PyBytes>> {
        let mask = py.detach(|| self.peek_ids(task_pk, ids))?;
        Ok(PyBytes::new(py, &mask))
    }

    fn commit(&self, py: Python<'_>) {
        py.detach(|| self.commit_admitted());
    }

    fn rollback(&self, py: Python<'_>) {
        py.detach(|| self.rollback_admitted());
    }

    fn forget(&self, py: Python<'_>, task_pk: i64, ids: &[u8]) -> Result<()> {
        py.detach(|| self.forget_ids(task_pk, ids))
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        py.detach(|| self.count())
    }
}
