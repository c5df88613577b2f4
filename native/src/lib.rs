//! The Rust data plane of dapd: it takes whole requests and jobs and returns columns.
//!
//! `dapd/_native.pyi` documents the Python interface. Every call releases the GIL. A report that
//! fails is a value in a column of outcomes. Only `error` turns errors into Python exceptions.

pub mod client;
mod codec;
pub mod columns;
pub mod error;
pub mod helper;
pub mod hpke;
pub mod leader;
pub mod replay;
pub mod report;
pub mod rules;
pub mod seal;
pub mod totals;
pub mod upload;
pub mod vdaf;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::client::{merge, seal_reports, shard, unshard};
    #[pymodule_export]
    use crate::columns::cut_chunk;
    #[pymodule_export]
    use crate::helper::{HelperFinish, HelperJob, HelperVerified};
    #[pymodule_export]
    use crate::hpke::{hpke_seal, hpke_supported, HpkeKeypair, Keyring};
    #[pymodule_export]
    use crate::leader::{leader_finish, leader_start, LeaderFinish, LeaderStart};
    #[pymodule_export]
    use crate::replay::ReplayIndex;
    #[pymodule_export]
    use crate::report::parse_upload_errors;
    #[pymodule_export]
    use crate::rules::ReportRules;
    #[pymodule_export]
    use crate::seal::{reseal_rows, row_key_ids, Sealer};
    #[pymodule_export]
    use crate::totals::BucketTotal;
    #[pymodule_export]
    use crate::upload::{open_uploads, UploadAnswer, UploadGroup, UploadPart};
    #[pymodule_export]
    use crate::vdaf::{TaskParameters, Vdaf};
}
