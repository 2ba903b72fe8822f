//! Why a bench could not run.

use std::fmt::Display;
use std::io;

/// One sentence: what was being done, and what went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else refused.
    #[error("{what}: {why}")]
    Failed {
        /// What was being done.
        what: String,
        /// What it said.
        why: String,
    },
}

impl Error {
    /// An error of our own, or of a library whose errors are only text to us.
    pub fn failed(what: impl Into<String>, why: impl Display) -> Error {
        Error::Failed { what: what.into(), why: why.to_string() }
    }
}

/// Says what was being done when an error came up.
pub trait Doing<T> {
    /// Wraps the error.
    fn doing(self, what: &str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what.to_owned(), source: source.into() })
    }
}
