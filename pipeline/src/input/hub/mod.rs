//! Datasets and models on a Hugging Face hub.
//!
//! In: `ORG/NAME` and a revision. Out: its files, pinned to a commit, in the cache the Python
//! client uses too. Data files are downloaded in pieces while earlier ones are already being
//! processed; of a model only what is loaded is downloaded.
//!
//! ```text
//! client ─ HTTP with retries       cache ─ where files lie, safe names
//! list ─── commit, files, sizes    fetch ─ pieces, resume, size and sha256
//! model ── a folder, hf://ORG/NAME[@REV] or ORG/NAME → a local folder
//! ```
//!
//! Written against the hub's three endpoints rather than on the hf-hub crate, whose plain downloads
//! neither resume nor check content, and which knows no HF_HUB_OFFLINE; [`ShardSource`] is the seam
//! where another client would go.

pub mod cache;
pub mod client;
pub mod fetch;
pub mod list;
pub mod model;

use crate::error::Result;
use std::path::PathBuf;

/// A file a source offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// Content, where the hub lists it (large files).
    pub sha256: Option<String>,
    /// Name of the blob in the cache: the sha256, or git's id for small files.
    pub etag: String,
}

/// Where shards come from.
pub trait ShardSource: Send + Sync {
    /// The commit everything is read from.
    fn commit(&self) -> &str;
    /// Its data files, sorted by path.
    fn files(&self) -> &[RemoteFile];
    /// A local path of file `k`, downloaded if need be. `stop` ends it early.
    fn fetch(&self, k: usize, stop: &(dyn Fn() -> bool + Sync)) -> Result<PathBuf>;
}
