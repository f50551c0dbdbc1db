//! One input file, local or still to be downloaded, and its rows.
//!
//! In: parquet, JSON lines (`.jsonl`, `.json`, `.ndjson`, plain, `.gz` or `.zst`), Arrow IPC files
//! and streams. Out: batches of about a quarter of a megabyte, in order, from any row on, so that a
//! run can resume anywhere. Memory: a batch is bounded by bytes, a line by
//! [`MAX_LINE`](crate::input::json_lines::MAX_LINE); a parquet file is read page by page.

use crate::error::{Error, Result};
use crate::input::decoder_guard::{guarded, guarded_batches};
use crate::input::files::{FileFormat, LocalFile};
use crate::input::hub::fetch::DownloadAhead;
use crate::input::json_lines::JsonRows;
use crate::input::raw_rows::RowBatches;
use crate::input::{arrow_rows, parquet_rows};
use std::path::PathBuf;
use std::sync::Arc;

/// Files that are downloaded in the background.
pub(crate) trait Downloads: Send + Sync {
    /// The local path of file `index`; waits until it is downloaded.
    fn wait(&self, index: usize) -> Result<PathBuf>;
}

impl Downloads for DownloadAhead {
    fn wait(&self, index: usize) -> Result<PathBuf> {
        DownloadAhead::wait(self, index)
    }
}

/// A file of a hub dataset or of a bucket that is downloaded in the background.
#[derive(Clone)]
pub(crate) struct RemoteInput {
    /// The downloads of the dataset or of the folder.
    pub downloads: Arc<dyn Downloads>,
    /// Index of the file in its listing.
    pub index: usize,
    /// What changes with the content, as far as that is known: 0 for a hub, whose files are those
    /// of a commit.
    pub stamp: u64,
}

impl std::fmt::Debug for RemoteInput {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "remote file {}", self.index)
    }
}

/// One input file with what a recipe says about it.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Local path; of a remote file its path in the repository, or its address.
    pub path: PathBuf,
    /// Its name in the manifest's fingerprint.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Set for a file that has to be downloaded.
    pub remote: Option<RemoteInput>,
    /// Name of its source in the manifest.
    pub source: String,
    /// Hub dataset and commit, or the address of a folder in a bucket and a hash of what is read
    /// there.
    pub origin: Option<(String, String)>,
    /// Licence of rows that name none.
    pub licence: Option<String>,
    /// Renamed columns, as pairs of (name used by this program, name in the file).
    pub columns: Vec<(String, String)>,
}

/// How a file begins that git-lfs leaves in the place of a large one, and the longest such file.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const POINTER_BYTES: u64 = 1024;

impl From<LocalFile> for Input {
    fn from(file: LocalFile) -> Input {
        Input {
            source: file.name.clone(),
            path: file.path,
            name: file.name,
            bytes: file.bytes,
            remote: None,
            origin: None,
            licence: None,
            columns: Vec::new(),
        }
    }
}

impl Input {
    /// The local path. Waits for the download of a remote file.
    pub(crate) fn local_path(&self) -> Result<PathBuf> {
        match &self.remote {
            None => Ok(self.path.clone()),
            Some(r) => r.downloads.wait(r.index),
        }
    }

    /// The file's rows from row `skip` on. Waits for the download of a remote file.
    pub(crate) fn open(&self, skip: u64) -> Result<RowBatches> {
        let path = self.local_path()?;
        let now = std::fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
        if now < self.bytes {
            return Err(Error::Input {
                path: path.display().to_string(),
                reason: format!(
                    "has become shorter since the run began, {now} bytes instead of {}",
                    self.bytes
                ),
            });
        }
        if now < POINTER_BYTES && std::fs::read(&path).is_ok_and(|b| b.starts_with(POINTER)) {
            return Err(Error::Input {
                path: path.display().to_string(),
                reason: "is a pointer of git-lfs, not the data; fetch it with: git lfs pull"
                    .to_string(),
            });
        }
        let shown = path.display().to_string();
        let rows = guarded(&shown, || match FileFormat::of(&self.path) {
            Some(FileFormat::Parquet) => parquet_rows::open(&path, &self.columns, skip),
            Some(FileFormat::Json) => Ok(Box::new(JsonRows::open(&path, skip)?)),
            Some(FileFormat::Arrow) => arrow_rows::open(&path, skip),
            None => Err(Error::Input {
                path: self.path.display().to_string(),
                reason: "unknown file format".to_string(),
            }),
        })?;
        Ok(guarded_batches(shown, rows))
    }
}
