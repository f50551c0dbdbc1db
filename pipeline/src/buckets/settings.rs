//! What the environment says about buckets, besides credentials, which `cloud.rs` passes on.

use super::address::BucketAddress;
use dlm_datasets::hash::sha256;
use std::path::PathBuf;
use std::time::Duration;

/// Time, and the folder of what was fetched.
#[derive(Debug, Clone)]
pub(crate) struct BucketSettings {
    /// First pause before a failed request is repeated; it doubles up to [`LONGEST_PAUSE`].
    pub pause: Duration,
    /// How long an operation is repeated without anything having arrived.
    pub patience: Duration,
    /// Where fetched files are kept.
    pub cache: PathBuf,
}

/// The longest pause between two tries.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl BucketSettings {
    /// `DLM_CACHE` (else `XDG_CACHE_HOME/dlm`, `~/.cache/dlm`), `DLM_BUCKET_PAUSE_MS` (500) and
    /// `DLM_BUCKET_PATIENCE_MS` (300,000).
    pub(crate) fn from_env() -> BucketSettings {
        let var = |key: &str| std::env::var(key).ok().filter(|v| !v.trim().is_empty());
        let milliseconds = |key: &str, usual: u64| {
            Duration::from_millis(var(key).and_then(|v| v.parse().ok()).unwrap_or(usual))
        };
        let cache = var("DLM_CACHE").map(PathBuf::from).unwrap_or_else(|| {
            let home = || PathBuf::from(var("HOME").unwrap_or_else(|| ".".to_string()));
            let base = var("XDG_CACHE_HOME").map(PathBuf::from);
            base.unwrap_or_else(|| home().join(".cache")).join("dlm")
        });
        BucketSettings {
            pause: milliseconds("DLM_BUCKET_PAUSE_MS", 500),
            patience: milliseconds("DLM_BUCKET_PATIENCE_MS", 300_000),
            cache,
        }
    }

    /// The folder of a version of what is at an address.
    pub(crate) fn folder(&self, address: &BucketAddress, version: &str) -> PathBuf {
        let text = address.to_string();
        let hash = sha256(text.as_bytes());
        let name: String = text
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
            .take(60)
            .collect();
        let name = format!("{}-{}", name.trim_start_matches('.'), &hash[..12]);
        self.cache.join("buckets").join(name).join(version)
    }
}
