//! A dataset that is written into a bucket: `--out s3://BUCKET/FOLDER`.
//!
//! The run writes to a folder of the cache. Each data file is sent when it is complete, and after
//! it the state of the run, so that a run on another machine goes on behind the last file that was
//! sent. At the end the tokenizer and, last, the manifest follow: a folder of a bucket that has one
//! is whole. The local folder then becomes the cached copy of the dataset.

use crate::buckets::address::BucketAddress;
use crate::buckets::folder::{BucketFolder, BucketObject};
use crate::buckets::settings::BucketSettings;
use crate::error::{Error, Result};
use crate::pack::output_folder::is_own;
use crate::pack::resume::STATE_FILE;
use crate::pack::seen::SEEN_FILE;
use crate::progress::{Progress, Silent};
use dlm_datasets::hash::sha256;
use dlm_datasets::manifest::{FILE_NAME as MANIFEST, FileEntry, Manifest};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest state and the longest manifest.
const STATE_BYTES: u64 = 4 << 30;
/// Time between two looks at the state on the disk.
const TICK: Duration = Duration::from_millis(100);
/// How long a run that ends early waits for what is being sent.
const GRACE: Duration = Duration::from_secs(25);

/// The place of a dataset in a bucket, and the local folder that it is written in.
pub(crate) struct BucketOut<'p> {
    bucket: BucketFolder<'p>,
    progress: &'p dyn Progress,
    /// The local folder.
    pub staging: PathBuf,
    /// The finished dataset that is there.
    pub finished: Option<Manifest>,
    /// Data files that are in the bucket, by name.
    sent: Arc<Mutex<BTreeSet<String>>>,
}

impl<'p> BucketOut<'p> {
    /// Looks at the bucket. With `overwrite` what earlier runs wrote there and in the local folder
    /// is removed; without it, an unfinished run that is not on this disk is fetched.
    pub(crate) fn open(
        address: &BucketAddress,
        overwrite: bool,
        progress: &'p dyn Progress,
    ) -> Result<BucketOut<'p>> {
        let bucket = BucketFolder::open(address, progress)?;
        let staging = BucketSettings::from_env().folder(address, "out");
        let mut out = BucketOut { bucket, progress, staging, finished: None, sent: Arc::default() };
        let there = out.bucket.list()?;
        let has = |name: &str| there.iter().any(|o| o.name == name);
        let other = there.iter().find(|o| !is_of_a_dataset(&o.name));
        if let Some(other) = other.filter(|_| !has(MANIFEST) && !has(STATE_FILE)) {
            return Err(out.refuse(format!(
                "holds {}, which dlm-prep did not write; give an empty folder",
                other.name
            )));
        }
        if overwrite {
            out.remove_all(&there)?;
            return Ok(out);
        }
        if has(MANIFEST) {
            let text = out.bucket.read(MANIFEST, STATE_BYTES)?.unwrap_or_default();
            let manifest = serde_json::from_slice(&text).map_err(|e| {
                out.refuse(format!("holds a manifest.json that is not understood ({e})"))
            })?;
            out.finished = Some(manifest);
        } else if has(STATE_FILE) && !out.staging.join(STATE_FILE).exists() {
            out.fetch_unfinished(&there)?;
        }
        Ok(out)
    }

    /// Refuses a place that holds a finished dataset.
    pub(crate) fn holds_another(&self) -> Error {
        self.refuse(
            "holds a finished dataset; give --overwrite to replace it, or another --out"
                .to_string(),
        )
    }

    fn refuse(&self, reason: String) -> Error {
        Error::Output { path: self.bucket.address().to_string().into(), reason }
    }

    /// Removes what is of a dataset, the manifest first: without it the rest is none.
    fn remove_all(&self, there: &[BucketObject]) -> Result<()> {
        self.bucket.remove(MANIFEST)?;
        for object in there.iter().filter(|o| o.name != MANIFEST && is_of_a_dataset(&o.name)) {
            self.bucket.remove(&object.name)?;
        }
        match std::fs::remove_dir_all(&self.staging) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("removing", &self.staging)(e))
            }
            _ => Ok(()),
        }
    }

    /// Fetches the state of a run that was killed on another machine, and its data files.
    fn fetch_unfinished(&self, there: &[BucketObject]) -> Result<()> {
        let Some(state) = self.bucket.read(STATE_FILE, STATE_BYTES)? else { return Ok(()) };
        let files = files_of(&state);
        self.progress.notice(&format!(
            "resuming   {} data files of an unfinished run from {}",
            files.len(),
            self.bucket.address()
        ));
        for file in &files {
            let object = there.iter().find(|o| o.name == file.path && o.bytes == file.bytes);
            let object = object.ok_or_else(|| {
                self.refuse(format!(
                    "{} is missing or has another length than the state of the unfinished run says; give --overwrite to start over",
                    file.path
                ))
            })?;
            self.bucket.fetch(object, &self.staging.join(&file.path), Some(&file.sha256))?;
            self.note(&file.path);
        }
        if let Some(object) = there.iter().find(|o| o.name == SEEN_FILE) {
            self.bucket.fetch(object, &self.staging.join(SEEN_FILE), None)?;
        }
        std::fs::create_dir_all(&self.staging)
            .map_err(Error::io("making the folder", &self.staging))?;
        Ok(dlm_datasets::fs::write_atomic(&self.staging.join(STATE_FILE), &state)?)
    }

    fn note(&self, name: &str) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string());
    }

    fn is_sent(&self, name: &str) -> bool {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Runs `work`, which writes to the local folder, and sends data files and states meanwhile.
    pub(crate) fn while_sending<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (ended, idle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let sender = Sender {
            bucket: BucketFolder::open(self.bucket.address(), &Silent)?,
            staging: self.staging.clone(),
            sent: self.sent.clone(),
        };
        let (of_thread, done) = (ended.clone(), idle.clone());
        std::thread::spawn(move || {
            sender.send_until(&of_thread);
            done.store(true, Ordering::Relaxed);
        });
        let result = work();
        ended.store(true, Ordering::Relaxed);
        // What is under way is sent by the caller otherwise, in the case of success.
        let grace = if result.is_err() { GRACE } else { Duration::MAX };
        let begin = Instant::now();
        while !idle.load(Ordering::Relaxed) && begin.elapsed() < grace {
            std::thread::sleep(TICK / 4);
        }
        result
    }

    /// Sends what is not in the bucket of the finished dataset, the manifest last.
    pub(crate) fn publish(&self, manifest: &Manifest) -> Result<()> {
        let sent: Result<Vec<u8>> = self.send_all(manifest);
        let text = sent.map_err(|e| {
            self.refuse(format!(
                "the dataset is complete in {}, but not in the bucket: {e}; the same command sends the rest",
                self.staging.display()
            ))
        })?;
        let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        self.progress.notice(&format!(
            "sent       {} data files, {:.1} MB, to {}",
            manifest.files.len(),
            bytes as f64 / 1e6,
            self.bucket.address()
        ));
        // What was written is what a fetch would give.
        let cached = BucketSettings::from_env().folder(self.bucket.address(), &sha256(&text)[..16]);
        if cached.exists() || std::fs::rename(&self.staging, &cached).is_err() {
            let removed = std::fs::remove_dir_all(&self.staging);
            removed.map_err(Error::io("removing", &self.staging))?;
        }
        Ok(())
    }

    fn send_all(&self, manifest: &Manifest) -> Result<Vec<u8>> {
        for file in manifest.files.iter().filter(|file| !self.is_sent(&file.path)) {
            let path = self.staging.join(&file.path);
            self.bucket.upload(&file.path, &path, Some(&file.sha256))?;
            self.note(&file.path);
        }
        for name in files_below(&self.staging.join("tokenizer"))? {
            let name = format!("tokenizer/{name}");
            self.bucket.upload(&name, &self.staging.join(&name), None)?;
        }
        let path = self.staging.join(MANIFEST);
        let text = std::fs::read(&path).map_err(Error::io("reading", &path))?;
        self.bucket.write(MANIFEST, &text)?;
        let known: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
        for object in self.bucket.list()? {
            let of_run = [STATE_FILE, SEEN_FILE].contains(&object.name.as_str());
            let data = object.name != MANIFEST && is_own(&object.name);
            if of_run || data && !known.contains(object.name.as_str()) {
                self.bucket.remove(&object.name)?;
            }
        }
        Ok(text)
    }
}

/// Sends data files and states from a thread of its own.
struct Sender {
    bucket: BucketFolder<'static>,
    staging: PathBuf,
    sent: Arc<Mutex<BTreeSet<String>>>,
}

impl Sender {
    /// Sends each new state, and before it the files that it names. A failed upload is tried again
    /// with the next state, or at the end of the run.
    fn send_until(&self, ended: &AtomicBool) {
        let (path, mut last) = (self.staging.join(STATE_FILE), Vec::new());
        loop {
            let is_last = ended.load(Ordering::Relaxed);
            if let Ok(state) = std::fs::read(&path)
                && state != last
                && self.send(&state).is_ok()
            {
                last = state;
            }
            if is_last {
                return;
            }
            std::thread::sleep(TICK);
        }
    }

    fn send(&self, state: &[u8]) -> Result<()> {
        let files = files_of(state);
        // A run without a complete data file is not worth a state.
        if files.is_empty() {
            return Ok(());
        }
        for file in files {
            let is_sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            if is_sent.contains(&file.path) {
                continue;
            }
            drop(is_sent);
            let path = self.staging.join(&file.path);
            self.bucket.upload(&file.path, &path, Some(&file.sha256))?;
            self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(file.path);
        }
        let seen = self.staging.join(SEEN_FILE);
        if seen.is_file() {
            self.bucket.upload(SEEN_FILE, &seen, None)?;
        }
        self.bucket.write(STATE_FILE, state)
    }
}

/// The finished data files that a state names.
fn files_of(state: &[u8]) -> Vec<FileEntry> {
    let state: Value = serde_json::from_slice(state).unwrap_or_default();
    let files = state.pointer("/manifest/files").cloned().unwrap_or_default();
    let files: Vec<FileEntry> = serde_json::from_value(files).unwrap_or_default();
    files.into_iter().filter(|file| is_own(&file.path)).collect()
}

/// Whether an object of a folder can be one of a dataset.
fn is_of_a_dataset(name: &str) -> bool {
    is_own(name) || name.starts_with("tokenizer/")
}

/// Paths of the files below a folder.
fn files_below(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                let below = files_below(&entry.path())?;
                found.extend(below.into_iter().map(|below| format!("{name}/{below}")));
            }
            _ => found.push(name),
        }
    }
    found.sort();
    Ok(found)
}
