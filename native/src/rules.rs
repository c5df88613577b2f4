//! The checks of "Input Share Validation" that need only the report itself (rules B2, B3).

use pyo3::prelude::*;

use crate::report::{report_error, Extension, Reader};

/// The bounds that a report is checked against. Times count the task's time precision.
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
    /// Return the `ReportError` of a report with this time, if any (B2). `report_too_early` is
    /// checked last: it tells the client to try again later, which is useless if another bound
    /// rejects the report anyway.
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

    /// Return whether all extension types are known, strictly increasing in each list, and in one
    /// list only (B3). If not, the report is `invalid_message`. The lists are raw items.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::encode_extensions;

    fn rules(known_extensions: &[u16]) -> ReportRules {
        ReportRules::new(100, 10, 90, 20, known_extensions.to_vec())
    }

    #[test]
    fn b2_each_bound_has_its_error() {
        let check = |time| rules(&[]).check(time);
        assert_eq!(check(9), Some(report_error::TASK_NOT_STARTED));
        assert_eq!(check(10), Some(report_error::REPORT_DROPPED));
        assert_eq!((check(20), check(89)), (None, None));
        assert_eq!((check(90), check(101)), (Some(report_error::TASK_EXPIRED), check(u64::MAX)));
        let open = ReportRules::new(100, 0, u64::MAX, 0, Vec::new());
        assert_eq!(
            (open.check(100), open.check(101)),
            (None, Some(report_error::REPORT_TOO_EARLY))
        );
    }

    #[test]
    fn b3_extensions_are_known_increasing_and_in_one_list_only() {
        let rules = rules(&[1, 2, 5]);
        let check = |public: &[u16], private: &[u16]| {
            let raw = |types: &[u16]| {
                let items: Vec<_> = types.iter().map(|&kind| (kind, b"data".to_vec())).collect();
                encode_extensions(&items).unwrap()
            };
            rules.check_extensions(&raw(public), &raw(private))
        };
        assert!(check(&[], &[]) && check(&[1, 5], &[2]) && check(&[], &[1, 2, 5]));
        assert!(!check(&[3], &[]) && !check(&[], &[3]));
        assert!(!check(&[2, 1], &[]) && !check(&[], &[5, 2]));
        assert!(!check(&[1, 1], &[]) && !check(&[1], &[1]));
        assert!(!rules.check_extensions(&[0, 1, 0, 9], &[]));
        assert!(encode_extensions(&[(1, vec![0; 65532])]).is_err());
    }
}
