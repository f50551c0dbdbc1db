//! What can go wrong with a packed dataset, said so that a person can act on it.

use std::path::PathBuf;

/// Errors of this crate. Every variant names the place, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted, as a verb ("reading", "writing", …).
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is no manifest: an unfinished or foreign folder.
    #[error(
        "{path} is not a packed dataset: it has no manifest.json. A manifest is written last, so either dlm-prep did not \
         finish here (run the same command again) or the folder is another one"
    )]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest is not JSON of the expected form.
    #[error("{path}: not a manifest of format {expected}: {reason}")]
    BadManifest {
        /// The manifest file.
        path: PathBuf,
        /// The format version this build reads.
        expected: u32,
        /// What was wrong.
        reason: String,
    },
    /// A manifest of another format version.
    #[error(
        "{path}: format_version is {found}, this build reads {expected}; use the build that wrote it, or prepare the data again"
    )]
    Version {
        /// The manifest file.
        path: PathBuf,
        /// Found.
        found: u32,
        /// Expected.
        expected: u32,
    },
    /// A file's length is not what the manifest says.
    #[error(
        "{path}: {found} bytes, the manifest says {expected}; the copy is incomplete or the file was changed"
    )]
    FileSize {
        /// The data file.
        path: PathBuf,
        /// Bytes found.
        found: u64,
        /// Bytes the manifest records.
        expected: u64,
    },
    /// A file's content is not what the manifest says.
    #[error(
        "{path}: sha256 {found}, the manifest says {expected}; the file was changed after it was written"
    )]
    FileHash {
        /// The data file.
        path: PathBuf,
        /// Found.
        found: String,
        /// Expected.
        expected: String,
    },
    /// A file holds another number of rows than recorded.
    #[error("{path}: {found} rows, the manifest says {expected}")]
    RowCount {
        /// The data file.
        path: PathBuf,
        /// Rows found.
        found: usize,
        /// Rows recorded.
        expected: usize,
    },
    /// A file is no Arrow file of our schema.
    #[error("{path}: {reason}")]
    BadFile {
        /// The data file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// A row number past the end.
    #[error("row {row} of the {split} split was asked for, which has {rows} rows")]
    RowRange {
        /// Which split.
        split: &'static str,
        /// The row asked for.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A row breaks an invariant of the format.
    #[error("row {row} of the {split} split: {reason}")]
    BadRow {
        /// Which split.
        split: &'static str,
        /// The row.
        row: usize,
        /// The broken invariant, with the numbers.
        reason: String,
    },
    /// A row handed to the writer does not fit the format.
    #[error("cannot write a row: {reason}")]
    WriteRow {
        /// Why.
        reason: String,
    },
    /// Totals over the rows differ from the manifest's.
    #[error("manifest says {what} = {expected}, the rows hold {found}")]
    Counts {
        /// Which total.
        what: &'static str,
        /// In the rows.
        found: u64,
        /// In the manifest.
        expected: u64,
    },
    /// Arrow's own complaint.
    #[error("{path}: {source}")]
    Arrow {
        /// The data file.
        path: PathBuf,
        /// Arrow's reason.
        source: arrow::error::ArrowError,
    },
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
    /// An Arrow error with its file.
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
