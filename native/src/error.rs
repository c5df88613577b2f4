//! The crate's errors, and their conversion to Python exceptions.

use std::borrow::Cow;
use std::fmt;

use pyo3::exceptions::PyValueError;
use pyo3::types::PyAnyMethods;
use pyo3::{PyErr, Python};

/// Malformed bytes: what is wrong (`reason`) and where (`offset`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    pub offset: usize,
    pub reason: Cow<'static, str>,
}

impl DecodeError {
    pub fn new(offset: usize, reason: impl Into<Cow<'static, str>>) -> Self {
        let reason = reason.into();
        Self { offset, reason }
    }
}

/// An error of a call, and the Python exception that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// `dapd.errors.DecodeError`
    Decode(DecodeError),
    /// `ValueError`
    Value(Cow<'static, str>),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn value(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Value(reason.into())
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.reason, self.offset)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(error) => error.fmt(f),
            Self::Value(reason) => f.write_str(reason),
        }
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Decode(DecodeError { offset, reason }) => Python::attach(|py| {
                py.import("dapd.errors")
                    .and_then(|module| module.getattr("DecodeError"))
                    .and_then(|class| class.call1((offset, reason)))
                    .map_or_else(|failure| failure, PyErr::from_value)
            }),
            Error::Value(reason) => PyValueError::new_err(reason.into_owned()),
        }
    }
}
