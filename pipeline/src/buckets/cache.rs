//! Several objects of a folder in a folder of the cache, one process at a time.
//!
//! A cached file has been checked, and got its name after that: one of the right length is taken as
//! it is. `fetched.json` in the folder records what each file is: its length, tag and sha256.

use super::folder::{BucketFolder, BucketObject};
use crate::error::{Error, Result};
use crate::progress::{DownloadCounters, report_while};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Record of the fetched files.
const RECORD: &str = "fetched.json";

/// A folder of the cache that this process alone writes to.
pub(super) struct CacheFolder {
    pub(super) dir: PathBuf,
    /// Holds the lock of the operating system as long as it is open.
    _lock: File,
}

impl CacheFolder {
    /// The folder, made if needed; waits for another process that fetches the same.
    pub(super) fn lock(dir: PathBuf) -> Result<CacheFolder> {
        std::fs::create_dir_all(&dir).map_err(Error::io("making the folder", &dir))?;
        let path = dir.with_extension("lock");
        let lock = File::create(&path).map_err(Error::io("creating", &path))?;
        // A file system without locks must not keep anybody from working.
        let _ = lock.lock();
        Ok(CacheFolder { dir, _lock: lock })
    }

    pub(super) fn has(&self, object: &BucketObject) -> bool {
        let meta = std::fs::metadata(self.dir.join(&object.name));
        meta.is_ok_and(|meta| meta.is_file() && meta.len() == object.bytes)
    }

    /// Fetches those of `objects` that are not here. `sha256` is the expected one of each.
    pub(super) fn fetch(
        &self,
        bucket: &BucketFolder,
        objects: &[&BucketObject],
        sha256: impl Fn(&str) -> Option<String> + Sync,
    ) -> Result<()> {
        let missing: Vec<_> = objects.iter().filter(|object| !self.has(object)).collect();
        let total_bytes: u64 = missing.iter().map(|object| object.bytes).sum();
        if missing.is_empty() {
            return Ok(());
        }
        if total_bytes > 50_000_000 {
            let size = total_bytes as f64 / 1e6;
            let address = bucket.address();
            bucket.progress.notice(&format!("fetching   {address}, {size:.1} MB"));
        }
        let path = self.dir.join(RECORD);
        let mut record = read_record(&path);
        let before = bucket.bytes_moved();
        let report = || {
            let bytes = (bucket.bytes_moved() - before).min(total_bytes);
            bucket.progress.downloading(&DownloadCounters { bytes, total_bytes });
        };
        report_while(bucket.progress, Duration::from_millis(200), report, || {
            for object in missing {
                let to = self.dir.join(&object.name);
                let sha256 = bucket.fetch(object, &to, sha256(&object.name).as_deref())?;
                let entry = json!({"bytes": object.bytes, "tag": object.tag, "sha256": sha256});
                record.insert(object.name.clone(), entry);
            }
            Ok::<(), Error>(())
        })?;
        let text = json!({"address": bucket.address().to_string(), "files": record});
        let text = serde_json::to_vec_pretty(&text).unwrap_or_default();
        Ok(dlm_datasets::fs::write_atomic(&path, &text)?)
    }
}

fn read_record(path: &Path) -> Map<String, Value> {
    let json = std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    match json {
        Some(Value::Object(mut json)) => match json.remove("files") {
            Some(Value::Object(files)) => files,
            _ => Map::new(),
        },
        _ => Map::new(),
    }
}
