//! Errors of this crate. A row that cannot be used is not an error: it is dropped with a
//! [`DropReason`](crate::parse::drop_reason::DropReason) and counted.

use std::path::PathBuf;

/// What went wrong. The message names the place, what was found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call, the settings or a recipe are wrong (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// The operating system refused an operation.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted, as in "writing".
        action: &'static str,
        /// The file or folder it was attempted on.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An input file, or an answer of a hub, is not what it should be.
    #[error("{path}: {reason}")]
    Input {
        /// File, address or repository.
        path: String,
        /// What was found, what was expected, what to do.
        reason: String,
    },
    /// An object of a bucket has another content than the record of it says.
    #[error("{path}: {reason}")]
    Damaged {
        /// Its address.
        path: String,
        /// What was found, what was expected.
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
        /// Where it comes from.
        origin: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A template refused a conversation or failed on it.
    #[error("{0}")]
    Render(String),
    /// The output folder holds something that must not be overwritten.
    #[error("{path}: {reason}")]
    Output {
        /// The folder, or the file in it.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The dataset would not be worth training on.
    #[error("{0}")]
    Unfit(String),
    /// A download in the background failed; the message is that of its error.
    #[error("{0}")]
    Remote(String),
    /// The stop flag was set; the state is saved (exit code 130).
    #[error("interrupted; run the same command again to resume")]
    Interrupted,
    /// A dataset in the packed format cannot be read or written.
    #[error(transparent)]
    Dataset(#[from] dlm_datasets::Error),
    /// A bug of this program.
    #[error("internal error: {0}; please report it with the command that caused it")]
    Internal(String),
}

impl Error {
    /// Makes an [`Error::Io`] from the system's error, for use with `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
    /// The exit code of the command line for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Dataset(dlm_datasets::Error::Locked { .. }) => 2,
            Error::Interrupted => 130,
            _ => 1,
        }
    }
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
