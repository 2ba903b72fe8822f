//! What a call into libtorch can fail with.

use std::fmt;
use std::path::PathBuf;

use crate::sys::status;

/// Why a call failed. Whatever the class, the module it was made on can be used again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, read or written.
    #[error("{detail}")]
    BadPath {
        /// Path and reason.
        detail: String,
    },
    /// The bytes are no TorchScript archive that this libtorch can load: another kind of file, a
    /// truncated one, or one that needs operators that are not there.
    #[error("not a TorchScript archive that libtorch can load: {detail}")]
    BadArchive {
        /// libtorch's words.
        detail: String,
    },
    /// Something given does not fit: a number out of range, or not what forward takes.
    #[error("{detail}")]
    BadArgument {
        /// What, and the rule it breaks.
        detail: String,
    },
    /// The model's answer is not what room was made for: count, dtype or shape. No output memory
    /// was written, except by a model that takes `out`.
    #[error("{detail}")]
    BadOutput {
        /// What the model gave, and what was expected.
        detail: String,
    },
    /// The model stopped: an `assert` of its own, or an operator that refused its operands
    /// (a wrong input shape or dtype ends here, in the operator's words).
    #[error("the model raised {raised}")]
    ModelRaised {
        /// What, where.
        raised: Raised,
    },
    /// An allocation failed inside libtorch.
    #[error("out of memory: {detail}")]
    OutOfMemory {
        /// libtorch's words, with the size it asked for.
        detail: String,
    },
    /// Anything else libtorch reported.
    #[error("libtorch: {detail}")]
    Internal {
        /// libtorch's words.
        detail: String,
    },
}

impl Error {
    /// Turns a failed call's status and text into an error.
    pub(crate) fn new(code: i32, text: String) -> Self {
        match code {
            status::BAD_PATH => Self::BadPath { detail: text },
            status::BAD_ARCHIVE => Self::BadArchive { detail: summary_of(&text) },
            status::BAD_ARGUMENT => Self::BadArgument { detail: text },
            status::BAD_OUTPUT => Self::BadOutput { detail: text },
            status::MODEL_RAISED => Self::ModelRaised { raised: Raised::new(text) },
            status::OUT_OF_MEMORY => Self::OutOfMemory { detail: summary_of(&text) },
            _ => Self::Internal { detail: text },
        }
    }

    pub(crate) fn nul_byte(what: &str) -> Self {
        Self::BadArgument { detail: format!("{what} contains a NUL byte") }
    }

    pub(crate) fn path_nul_byte(path: &std::path::Path) -> Self {
        Self::BadPath { detail: format!("{}: contains a NUL byte", PathBuf::from(path).display()) }
    }
}

/// What a model stopped with. Displays as one line; the whole trace is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// The error's own line, such as `RuntimeError: mat1 and mat2 shapes cannot be multiplied`.
    pub summary: String,
    /// libtorch's whole text: the TorchScript source lines that led there.
    pub trace: String,
}

impl Raised {
    fn new(text: String) -> Self {
        Self { summary: summary_of(&text), trace: text }
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary)
    }
}

/// The line of a libtorch text that says what is wrong: the last `SomeError: ...`, else the first
/// line. `RuntimeError: AssertionError: ...` is an assertion and nothing more.
fn summary_of(text: &str) -> String {
    let is_error = |line: &str| {
        let kind = line.split(':').next().unwrap_or_default();
        kind.ends_with("Error") && kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
    };
    let line = text.lines().rev().find(|line| is_error(line)).or_else(|| text.lines().next());
    let line = line.unwrap_or_default().trim_end();
    let inner = line.strip_prefix("RuntimeError: ").filter(|rest| is_error(rest));
    inner.unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::summary_of;

    #[test]
    fn the_last_error_line_is_the_summary() {
        let text = "The following operation failed in the TorchScript interpreter.\n  \
                    File \"a.py\", line 5, in forward\n  x = y\nRuntimeError: shapes (3x2)\n";
        assert_eq!(summary_of(text), "RuntimeError: shapes (3x2)");
        assert_eq!(summary_of("RuntimeError: AssertionError: three"), "AssertionError: three");
        assert_eq!(summary_of("no class here\nnor: here"), "no class here");
        assert_eq!(summary_of(""), "");
    }
}
