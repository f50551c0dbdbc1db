//! Errors of reading, writing and checking packed datasets, worded so that a person can act on
//! them.

use std::path::PathBuf;

/// Errors of this crate. Every variant names the place, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the parts of the messages")]
pub enum Error {
    /// The operating system refused an operation on a file or folder; `action` is a verb.
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// Another process holds the lock of an output folder.
    #[error(
        "{path}: {holder} is writing to this folder; wait until it has ended, or choose another folder"
    )]
    Locked { path: PathBuf, holder: String },
    /// The folder has no manifest: preparation did not finish, or it is not a dataset.
    #[error(
        "{path} is not a packed dataset: it has no manifest.json. A manifest is written last, so either dlm-prep did not \
         finish here (run the same command again) or the folder is another one"
    )]
    NoManifest { path: PathBuf },
    /// The manifest is not valid JSON, or its values contradict each other.
    #[error("{path}: not a manifest of format {expected}: {reason}")]
    BadManifest { path: PathBuf, expected: u32, reason: String },
    /// The manifest was written in another format version.
    #[error(
        "{path}: format_version is {found}, this build reads {expected}; use the build that wrote it, or prepare the data again"
    )]
    Version { path: PathBuf, found: u32, expected: u32 },
    /// A data file has another length than the manifest records.
    #[error(
        "{path}: {found} bytes, the manifest says {expected}; the copy is incomplete or the file was changed"
    )]
    FileSize { path: PathBuf, found: u64, expected: u64 },
    /// A data file has another content than the manifest records.
    #[error(
        "{path}: sha256 {found}, the manifest says {expected}; the file was changed after it was written"
    )]
    FileHash { path: PathBuf, found: String, expected: String },
    /// A data file holds another number of rows than the manifest records.
    #[error("{path}: {found} rows, the manifest says {expected}")]
    RowCount { path: PathBuf, found: usize, expected: usize },
    /// A data file is not an Arrow IPC file with the packed schema.
    #[error("{path}: {reason}")]
    BadFile { path: PathBuf, reason: String },
    /// The row number is past the end of the split.
    #[error("row {row} of the {split} split was asked for, which has {rows} rows")]
    RowRange { split: &'static str, row: usize, rows: usize },
    /// A row breaks an invariant of the format (docs/format.md).
    #[error("row {row} of the {split} split: {reason}")]
    BadRow { split: &'static str, row: usize, reason: String },
    /// A row given to the writer does not fit the format.
    #[error("cannot write a row: {reason}")]
    WriteRow { reason: String },
    /// A total counted over the rows differs from the manifest.
    #[error("manifest says {what} = {expected}, the rows hold {found}")]
    Counts { what: &'static str, found: u64, expected: u64 },
    /// An error reported by the Arrow library.
    #[error("{path}: {source}")]
    Arrow { path: PathBuf, source: arrow::error::ArrowError },
}

impl Error {
    /// Makes an I/O error from `action` (a verb such as "reading") and `path`; for `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
    /// Makes an Arrow error for the file at `path`; for `map_err`.
    pub fn arrow(path: impl Into<PathBuf>) -> impl FnOnce(arrow::error::ArrowError) -> Error {
        let path = path.into();
        move |source| match source {
            arrow::error::ArrowError::IoError(_, source) => {
                Error::Io { action: "writing", path, source }
            }
            source => Error::Arrow { path, source },
        }
    }
}
