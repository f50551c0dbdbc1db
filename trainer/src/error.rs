//! The one error type of the trainer: every variant says what was found, where, what was expected
//! and what to do.

use std::path::{Path, PathBuf};

/// What can go wrong in loading, training, saving and decoding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call or the configuration is wrong (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// Reading or writing a file failed.
    #[error("{path}: {action} failed: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file is there but is not what it should be.
    #[error("{path}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
    /// A model configuration this program cannot run.
    #[error("{0}")]
    Model(String),
    /// Tensors of a checkpoint do not fit the architecture.
    #[error("{0}")]
    Tensors(String),
    /// Data and model do not fit each other.
    #[error("{0}")]
    Mismatch(String),
    /// A model could not be brought from a hub.
    #[error("{0}")]
    Source(String),
    /// The dataset could not be read.
    #[error(transparent)]
    Data(#[from] dlm_datasets::Error),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(Box<crate::config::ConfigError>),
    /// The computation left the numbers (NaN, inf, a runaway loss).
    #[error("{0}")]
    Numeric(String),
    /// The device is missing or failed.
    #[error("{0}")]
    Device(String),
    /// A signal asked the run to stop; state was saved (exit code 130).
    #[error("{0}")]
    Interrupted(String),
}

impl From<crate::config::ConfigError> for Error {
    fn from(error: crate::config::ConfigError) -> Self {
        Error::Config(Box::new(error))
    }
}

impl From<dlm_prep::Error> for Error {
    fn from(error: dlm_prep::Error) -> Self {
        match error {
            dlm_prep::Error::Usage(what) => Error::Usage(what),
            other => Error::Source(other.to_string()),
        }
    }
}

impl Error {
    /// An I/O error at `path` while doing `action`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// A malformed file.
    pub fn format(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// Process exit code: 2 for a wrong call or config, 130 for an interruption, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Config(_) => 2,
            Error::Interrupted(_) => 130,
            _ => 1,
        }
    }
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
