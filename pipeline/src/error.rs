//! What can go wrong in dlm-prep as a whole. What can go wrong with one row is a
//! [`crate::parse::drop_reason::DropReason`], counted.

use std::path::PathBuf;

/// Errors of this crate: the place, what was found, what was expected, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call or the recipe is wrong (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An input file cannot be read as what it claims to be.
    #[error("{path}: {reason}")]
    Input {
        /// The file.
        path: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The tokenizer cannot be used.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// Its folder or file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The chat template cannot be used.
    #[error("chat template {origin}: {reason}")]
    Template {
        /// Where it came from.
        origin: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A template refused or failed on one conversation.
    #[error("{0}")]
    Render(String),
    /// The output folder is not ours to write.
    #[error("{path}: {reason}")]
    Output {
        /// The folder or file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The prepared data would not be worth training on.
    #[error("{0}")]
    Unfit(String),
    /// A download failed; the message is that of the thread it failed in.
    #[error("{0}")]
    Remote(String),
    /// Interrupted by the user; state is saved (exit code 130).
    #[error("interrupted; run the same command again to go on")]
    Interrupted,
    /// The packed format's own errors.
    #[error(transparent)]
    Dataset(#[from] dlm_datasets::Error),
    /// A thread of the pipeline ended without saying why.
    #[error("internal error: {0}; please report it with the command that caused it")]
    Internal(String),
}

impl Error {
    /// An I/O error with its verb and path.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
    /// The process exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Interrupted => 130,
            _ => 1,
        }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
