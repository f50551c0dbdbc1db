//! [`BucketFolder`]: a folder of a bucket, whose operations are repeated where that may help.
//!
//! An operation ends with an error when nothing has arrived for `DLM_BUCKET_PATIENCE_MS`, or at
//! once where the same request would fail again (no such bucket, credentials refused).

use super::address::{BucketAddress, Scheme};
use super::cloud::{CloudStore, credentials};
use super::disk::DiskStore;
use super::fault::{Fault, FaultKind};
use super::settings::{BucketSettings, LONGEST_PAUSE};
use super::store::{Outcome, Store};
use crate::error::{Error, Result};
use crate::progress::Progress;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A folder of a bucket.
pub struct BucketFolder<'p> {
    pub(super) address: BucketAddress,
    pub(super) store: Arc<dyn Store>,
    pub(super) settings: BucketSettings,
    pub(super) progress: &'p dyn Progress,
    /// Set when a tag was found to be something else than the MD5 that it looks like.
    pub(super) tags_are_odd: AtomicBool,
    /// Bytes that were fetched or sent.
    pub(super) moved: AtomicU64,
}

impl std::fmt::Debug for BucketFolder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "BucketFolder({})", self.address)
    }
}

/// An object below a folder of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketObject {
    /// Its path below the folder.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What changes with the content: the ETag, or the generation; of a file its time.
    pub tag: Option<String>,
}

/// Tries of what fails for an unknown reason.
const UNCLEAR: u32 = 4;
/// Failed tries after which the person who waits is told.
const TOLD_AFTER: u32 = 3;

impl<'p> BucketFolder<'p> {
    /// The folder at an address. Makes no request. Notices: a request that fails again and again.
    ///
    /// # Errors
    /// [`Error::Usage`] if the environment's settings of the bucket cannot be used.
    pub fn open(address: &BucketAddress, progress: &'p dyn Progress) -> Result<BucketFolder<'p>> {
        let opened: Outcome<Arc<dyn Store>> = match address.scheme {
            Scheme::File => Ok(Arc::new(DiskStore)),
            _ => CloudStore::open(address).map(|store| Arc::new(store) as _),
        };
        let store = opened.map_err(|fault| Error::Usage(format!("{address}: {fault}")))?;
        Ok(BucketFolder::with(address, store, BucketSettings::from_env(), progress))
    }

    pub(super) fn with(
        address: &BucketAddress,
        store: Arc<dyn Store>,
        settings: BucketSettings,
        progress: &'p dyn Progress,
    ) -> BucketFolder<'p> {
        let address = address.clone();
        let (tags_are_odd, moved) = (AtomicBool::new(false), AtomicU64::new(0));
        BucketFolder { address, store, settings, progress, tags_are_odd, moved }
    }

    /// The folder's address.
    pub fn address(&self) -> &BucketAddress {
        &self.address
    }

    /// Bytes that were fetched or sent so far, repeated ones included.
    pub fn bytes_moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// The pause before a failed operation is first repeated (`DLM_BUCKET_PAUSE_MS`, 500 ms).
    pub fn pause(&self) -> Duration {
        self.settings.pause
    }

    /// All objects below the folder, sorted by name; none where there is no such folder.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason.
    pub fn list(&self) -> Result<Vec<BucketObject>> {
        let found = self.retry(|| self.store.list(&self.address.path));
        let prefix = match self.address.path.as_str() {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let mut objects: Vec<BucketObject> = found
            .map_err(|fault| self.error("", &fault))?
            .into_iter()
            .filter_map(|info| {
                let name = info.key.strip_prefix(&prefix).filter(|name| !name.is_empty())?;
                Some(BucketObject { name: name.to_string(), bytes: info.bytes, tag: info.tag })
            })
            .collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        objects.dedup_by(|a, b| a.name == b.name);
        // An empty object of a folder's name stands for the folder.
        let folders: HashSet<String> = objects
            .iter()
            .flat_map(|o| o.name.match_indices('/').map(|(at, _)| o.name[..at].to_string()))
            .collect();
        objects.retain(|o| o.bytes > 0 || !folders.contains(&o.name));
        Ok(objects)
    }

    /// What the bucket says of an object; none where there is none.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason.
    pub fn stat(&self, name: &str) -> Result<Option<BucketObject>> {
        match self.retry(|| self.store.head(&self.key(name))) {
            Ok(info) => {
                let name = name.to_string();
                Ok(Some(BucketObject { name, bytes: info.bytes, tag: info.tag }))
            }
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(None),
            Err(fault) => Err(self.error(name, &fault)),
        }
    }

    /// The content of a small object; none where there is none.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason, or for an object of more than `most` bytes.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some(object) = self.stat(name)? else { return Ok(None) };
        if object.bytes > most {
            let text = format!("has {} bytes, more than the {most} that are read", object.bytes);
            return Err(self.error(name, &Fault::new(FaultKind::Lasting, text)));
        }
        if object.bytes == 0 {
            return Ok(Some(Vec::new()));
        }
        let (key, range) = (self.key(name), 0..object.bytes);
        let content = self.retry(|| {
            let mut content = Vec::new();
            let take = &mut |bytes: bytes::Bytes| {
                content.extend_from_slice(&bytes);
                Ok(())
            };
            self.store.read(&key, vec![range.clone()], object.tag.as_deref(), take)?;
            Ok(content)
        });
        content.map(Some).map_err(|fault| self.error(name, &fault))
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason.
    pub fn remove(&self, name: &str) -> Result<()> {
        let removed = self.retry(|| self.store.remove(&self.key(name)));
        removed.map_err(|fault| self.error(name, &fault))
    }

    pub(super) fn key(&self, name: &str) -> String {
        self.address.join(name).path
    }

    /// Runs an operation until it succeeds, or until that is not to be expected any more.
    pub(super) fn retry<T>(&self, run: impl FnMut() -> Outcome<T>) -> Outcome<T> {
        self.retry_while(|| 0, run)
    }

    /// As [`retry`](Self::retry) for an operation that goes on where it failed: patience begins
    /// anew whenever `done` has grown.
    pub(super) fn retry_while<T>(
        &self,
        done: impl Fn() -> u64,
        mut run: impl FnMut() -> Outcome<T>,
    ) -> Outcome<T> {
        let (mut pause, mut since, mut tries) = (self.settings.pause, Instant::now(), 0);
        let mut seen = done();
        loop {
            let fault = match run() {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            if done() > seen {
                (pause, since, tries) = (self.settings.pause, Instant::now(), 0);
                seen = done();
            }
            tries += 1;
            let patient = since.elapsed() < self.settings.patience;
            let again = match fault.kind {
                FaultKind::Passing => patient,
                FaultKind::Unclear => patient && tries < UNCLEAR,
                FaultKind::NotFound | FaultKind::Denied | FaultKind::Lasting => false,
            };
            if !again {
                return Err(match fault.kind {
                    FaultKind::Passing => {
                        let seconds = since.elapsed().as_secs();
                        Fault { text: format!("{fault}, for {seconds} s so far"), ..fault }
                    }
                    _ => fault,
                });
            }
            if tries == TOLD_AFTER {
                self.progress.notice(&format!("waiting    {}: {fault}", self.address));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The error for a fault at an object of this folder.
    pub(super) fn error(&self, name: &str, fault: &Fault) -> Error {
        let address = match name {
            "" => self.address.clone(),
            name => self.address.join(name),
        };
        let more = match fault.kind {
            FaultKind::NotFound => ": there is no such object, or no such bucket",
            FaultKind::Denied => &format!("; {}", credentials(self.address.scheme)),
            _ => "",
        };
        Error::Input { path: address.to_string(), reason: format!("{fault}{more}") }
    }
}
