//! The replay index: the report ids that each task has admitted (rules D3, F4).
//!
//! It keeps a set of 64-bit hashes per task, keyed with a random secret, about 20 MB per million
//! ids. If two ids of a task have the same hash (probability 2^-64 per pair, and nobody can search
//! for one without the key), the later report is rejected as replayed; nothing else goes wrong.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{Error, Result};

/// The identity: the values are keyed, uniform hashes already.
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
    /// The ids that the running transaction admitted; `rollback` removes them.
    journal: Vec<(i64, u64)>,
}

/// The set of admitted report ids. One transaction at a time admits; any thread may `peek`.
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

    /// Undo what the transaction admitted, when it rolls back (D3).
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(names: &[u8]) -> Vec<u8> {
        names.iter().flat_map(|&name| [name; 16]).collect()
    }

    #[test]
    fn f4_an_id_is_admitted_once_in_a_task_also_within_one_call() {
        let index = ReplayIndex::new();
        index.load_ids(1, &ids(&[1])).unwrap();
        assert_eq!(index.peek_ids(1, &ids(&[1, 2, 2])).unwrap(), [1, 0, 1]);
        assert_eq!(index.admit_ids(1, &ids(&[1, 2, 2])).unwrap(), [1, 0, 1]);
        assert_eq!(index.admit_ids(2, &ids(&[1, 2])).unwrap(), [0, 0]);
        assert_eq!(index.count(), 4);
    }

    #[test]
    fn f4_two_indexes_hash_under_different_keys() {
        let (one, other) = (ReplayIndex::new(), ReplayIndex::new());
        assert_ne!(one.hashes(&ids(&[1])).unwrap(), other.hashes(&ids(&[1])).unwrap());
    }

    #[test]
    fn d3_rollback_undoes_what_was_admitted_since_the_last_commit_alone() {
        let index = ReplayIndex::new();
        index.admit_ids(1, &ids(&[1])).unwrap();
        index.commit_admitted();
        index.admit_ids(1, &ids(&[1, 2])).unwrap();
        index.admit_ids(3, &ids(&[1])).unwrap();
        index.rollback_admitted();
        index.rollback_admitted();
        assert_eq!(index.peek_ids(1, &ids(&[1, 2])).unwrap(), [1, 0]);
        assert_eq!(index.peek_ids(3, &ids(&[1])).unwrap(), [0]);
    }

    #[test]
    fn a_forgotten_id_is_free_again() {
        let index = ReplayIndex::new();
        index.load_ids(1, &ids(&[1, 2])).unwrap();
        index.forget_ids(1, &ids(&[2, 3])).unwrap();
        index.forget_ids(9, &ids(&[1])).unwrap();
        assert_eq!(index.peek_ids(1, &ids(&[1, 2])).unwrap(), [1, 0]);
    }

    #[test]
    fn a_cut_column_is_an_error() {
        assert!(ReplayIndex::new().admit_ids(1, &[0; 17]).is_err());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit(i64, Vec<u8>),
        Forget(i64, Vec<u8>),
        Commit,
        Rollback,
    }

    fn step() -> impl Strategy<Value = Step> {
        let names = || proptest::collection::vec(0..12u8, 0..6);
        prop_oneof![
            (0..2i64, names()).prop_map(|(task, names)| Step::Admit(task, names)),
            // Callers forget ids after the transaction that deletes them, never inside one.
            (0..2i64, names()).prop_map(|(task, names)| Step::Forget(task, names)),
            Just(Step::Commit),
            Just(Step::Rollback),
        ]
    }

    proptest! {
        #[test]
        fn d3_the_index_agrees_with_plain_sets(steps in proptest::collection::vec(step(), 0..40)) {
            let index = ReplayIndex::new();
            let mut committed = HashSet::new();
            let mut current = HashSet::new();
            for step in steps {
                match step {
                    Step::Admit(task, names) => {
                        let expected: Vec<u8> =
                            names.iter().map(|&n| (!current.insert((task, n))).into()).collect();
                        prop_assert_eq!(index.peek_ids(task, &ids(&names)).unwrap(), &expected[..]);
                        prop_assert_eq!(index.admit_ids(task, &ids(&names)).unwrap(), expected);
                    }
                    Step::Forget(task, names) => {
                        index.commit_admitted();
                        index.forget_ids(task, &ids(&names)).unwrap();
                        current.retain(|&(of, n)| of != task || !names.contains(&n));
                        committed = current.clone();
                    }
                    Step::Commit => {
                        index.commit_admitted();
                        committed = current.clone();
                    }
                    Step::Rollback => {
                        index.rollback_admitted();
                        current = committed.clone();
                    }
                }
                prop_assert_eq!(index.count(), current.len());
            }
        }
    }
}
