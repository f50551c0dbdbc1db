//! The error type of this crate. Every message names the file, row or key, what was read there,
//! what was expected and what to do.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Errors of loading, training, saving and decoding.
///
/// [`Error::exit_code`] is the exit code of the command line: 2 for a wrong call or configuration,
/// 130 for an interruption, 1 for every other failure.
///
/// ```
/// use dlm_train::Conversion;
///
/// let error = Conversion::new().set("optim.lr", "fast").config_yaml().unwrap_err();
/// assert_eq!(error.exit_code(), 2);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call is wrong: an argument or option cannot be used as given (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong: an unknown key, a value of the wrong type or out of range (exit
    /// code 2). The error can be downcast to [`crate::ConfigError`].
    #[error(transparent)]
    Config(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused to read or write a file.
    #[error("{path}: {action} failed: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What failed, as a verb phrase ("reading the case").
        action: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file exists, but its content is not in the expected format.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it holds and what was expected.
        reason: String,
    },
    /// This program cannot run a model of this configuration.
    #[error("{0}")]
    Model(String),
    /// The tensors of a checkpoint do not fit the architecture.
    #[error("{0}")]
    Tensors(String),
    /// Dataset and model do not fit each other.
    #[error("{0}")]
    Mismatch(String),
    /// A packed dataset could not be read.
    #[error(transparent)]
    Data(#[from] dlm_datasets::Error),
    /// Tokenizer, chat template or hub access failed in dlm-prep (exit code as that program's).
    #[error(transparent)]
    Prep(#[from] dlm_prep::Error),
    /// Non-finite loss or gradient, or non-finite logits.
    #[error("{0}")]
    Numeric(String),
    /// The device is missing or failed, or its memory does not suffice.
    #[error("{0}")]
    Device(String),
    /// The results are on the disk, but not all of them in the bucket.
    #[error("{0}")]
    Upload(String),
    /// A signal stopped the run after its state was saved (exit code 130).
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    /// An I/O error at `path`; `action` is a verb phrase such as "reading the tokenizer".
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// A file whose content is not in the expected format.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// The exit code of the command line: 2 for a wrong call or configuration, 130 for an
    /// interruption, 1 for every other failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Config(_) => 2,
            Error::Data(dlm_datasets::Error::Locked { .. }) => 2,
            // a bound, not a failure of the machine
            Error::Io { source, .. } if source.kind() == ErrorKind::FileTooLarge => 2,
            Error::Interrupted(_) => 130,
            Error::Prep(error) => error.exit_code(),
            _ => 1,
        }
    }
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_a_wrong_call_from_a_failure() {
        let tokenizer = dlm_prep::Error::Tokenizer { path: "x".into(), reason: "damaged".into() };
        for (error, code) in [
            (Error::Usage("--ids x".into()), 2),
            (Error::from(dlm_prep::Error::Usage("--model x: no such folder".into())), 2),
            (Error::from(tokenizer), 1),
            (Error::from(dlm_prep::Error::Remote("no answer".into())), 1),
            (Error::from(dlm_prep::Error::Interrupted), 130),
            (Error::Interrupted("state saved".into()), 130),
            (Error::Numeric("loss NaN".into()), 1),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
