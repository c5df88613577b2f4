//! The Rust data plane of dapd: whole requests and jobs in, columns out.
//!
//! `dapd/_native.pyi` documents what Python sees. Every call releases the GIL; a report that fails
//! is a value in a column of outcomes; errors become Python exceptions in `error` alone.

// mod client;
pub mod error;
// mod helper;
pub mod hpke;
// mod leader;
pub mod replay;
pub mod report;
pub mod seal;
// mod upload;
// mod vdaf;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::hpke::{hpke_seal, hpke_supported, HpkeKeypair, Keyring};
    #[pymodule_export]
    use crate::replay::ReplayIndex;
    #[pymodule_export]
    use crate::report::{parse_upload_errors, ReportRules};
    #[pymodule_export]
    use crate::seal::Sealer;
}
