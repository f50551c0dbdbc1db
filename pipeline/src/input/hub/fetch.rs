//! Downloads files of a repository: in pieces, a few at a time, ahead of the reader.
//!
//! In: a listing. Out: local paths. Each piece is a file of its own that only ever grows, so that
//! after a broken connection or a killed run the download continues where it stopped. The pieces
//! are then joined; length and (where the hub lists one) sha256 are checked before the file gets
//! its name in the cache.

use super::address::encode;
use super::cache::{RemoteFile, RepoCache, RepoKind, make_parent};
use super::client::{HubClient, TransferError};
use super::transport::What;
use super::tree::Listing;
use crate::error::{Error, Result};
use dlm_datasets::hash::HashWriter;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const PIECE_BYTES: u64 = 16 << 20;
/// Pieces of one file that are downloaded at a time.
const STREAMS: usize = 4;
/// Files downloaded ahead of the one that is being read.
const AHEAD: usize = 2;
/// Responses in a row that may bring less than [`STALL_BYTES`].
const STALLS: usize = 8;
/// Bytes of a file that must arrive within a minute; a connection with fewer is given up.
const STALL_BYTES: u64 = 64 << 10;

/// Downloads the files of a listing.
pub(crate) struct HubSource<'a> {
    client: HubClient<'a>,
    repo: RepoCache,
    kind: RepoKind,
    id: String,
    listing: Listing,
}

impl<'a> HubSource<'a> {
    /// Downloads of repository `id` into the cache that `client` is set to.
    pub(crate) fn new(client: HubClient<'a>, kind: RepoKind, id: &str, listing: Listing) -> Self {
        let repo = RepoCache::new(&client.settings.cache, kind, id);
        HubSource { client, repo, kind, id: id.to_string(), listing }
    }

    /// The files of the listing, sorted by path.
    pub(crate) fn files(&self) -> &[RemoteFile] {
        &self.listing.files
    }

    /// Bytes of file `k` that are on the disk already.
    pub(crate) fn bytes_on_disk(&self, k: usize) -> u64 {
        let Some(file) = self.listing.files.get(k) else {
            return 0;
        };
        let blob = self.repo.blob(&file.etag);
        if self.is_complete(file, &blob) {
            return file.bytes;
        }
        (0..Self::piece_count(file))
            .filter_map(|k| std::fs::metadata(Self::piece_path(&blob, k)).ok())
            .map(|m| m.len())
            .sum()
    }

    fn piece_count(file: &RemoteFile) -> usize {
        file.bytes.div_ceil(PIECE_BYTES).max(1) as usize
    }

    fn piece_path(blob: &Path, k: usize) -> PathBuf {
        blob.with_extension(format!("dlm-part-{k}"))
    }

    fn url(&self, file: &RemoteFile) -> String {
        format!(
            "{}/{}{}/resolve/{}/{}",
            self.client.settings.endpoint,
            self.kind.prefix(),
            encode(&self.id, true),
            self.listing.commit,
            encode(&file.path, true)
        )
    }

    fn bad(&self, file: &RemoteFile, reason: String) -> Error {
        Error::Input {
            path: format!("{}/{} at {}", self.id, file.path, self.listing.commit),
            reason,
        }
    }

    fn is_complete(&self, file: &RemoteFile, blob: &Path) -> bool {
        std::fs::metadata(blob).is_ok_and(|m| m.is_file() && m.len() == file.bytes)
    }

    /// Downloads the pieces of a file, several at a time.
    fn download_pieces(
        &self,
        file: &RemoteFile,
        blob: &Path,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<PathBuf>> {
        let count = Self::piece_count(file);
        let paths: Vec<PathBuf> = (0..count).map(|k| Self::piece_path(blob, k)).collect();
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let failed = AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..STREAMS.min(count) {
                s.spawn(|| {
                    loop {
                        let k = next.fetch_add(1, Ordering::Relaxed);
                        if k >= count || failed.load(Ordering::Relaxed) {
                            return;
                        }
                        let (from, to) = (
                            k as u64 * PIECE_BYTES,
                            ((k as u64 + 1) * PIECE_BYTES).min(file.bytes),
                        );
                        if let Err(e) = self.download_piece(file, &paths[k], from, to, &|| {
                            stop() || failed.load(Ordering::Relaxed)
                        }) {
                            failed.store(true, Ordering::Relaxed);
                            if let Ok(mut f) = failure.lock() {
                                // Only the first failure: the others are threads that it stopped.
                                if f.is_none() {
                                    *f = Some(e);
                                }
                            }
                        }
                    }
                });
            }
        });
        match failure.into_inner() {
            Ok(Some(e)) => Err(e),
            _ => Ok(paths),
        }
    }

    /// Downloads bytes `from..to` of a file into `path`, continuing after the bytes it holds.
    fn download_piece(
        &self,
        file: &RemoteFile,
        path: &Path,
        from: u64,
        to: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let have = |path: &Path| std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        if have(path) > to - from {
            std::fs::remove_file(path).map_err(Error::io("removing", path))?;
        }
        let url = self.url(file);
        let window = Duration::from_secs(60).min(self.client.settings.patience);
        let mut stalled = 0;
        loop {
            let start = from + have(path);
            if start >= to {
                if to == from {
                    File::create(path).map_err(Error::io("creating", path))?;
                }
                return Ok(());
            }
            let got = self.client.ask(&url, What::Part(start, to - 1), stop, |mut answer| {
                let fatal = |reason: String| TransferError::Fatal(self.bad(file, reason));
                let number = |text: &str| text.trim().parse::<u64>().ok();
                let is_part = answer.status() == 206;
                let (total, first) = if is_part {
                    // bytes FIRST-LAST/TOTAL
                    let place = answer.header("content-range");
                    let place = place.and_then(|r| r.strip_prefix("bytes "));
                    let (part, total) = place.and_then(|p| p.split_once('/')).unwrap_or_default();
                    (number(total), number(part.split('-').next().unwrap_or_default()))
                } else {
                    (answer.length(), Some(0))
                };
                if let Some(total) = total.filter(|&t| t != file.bytes) {
                    return Err(fatal(format!(
                        "the hub sends {total} bytes, its listing says {}; the file has changed, or the listing is wrong",
                        file.bytes
                    )));
                }
                if is_part && first != Some(start) {
                    let from = first.map_or("an unknown byte".to_string(), |f| format!("byte {f}"));
                    return Err(fatal(format!("asked for byte {start} on, the hub sends {from} on")));
                }
                // A hub or proxy that ignores the range sends the file from its start.
                let mut skip = if is_part { 0 } else { start };
                let mut out = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|e| TransferError::Fatal(Error::io("opening", path)(e)))?;
                let (mut left, mut written) = (to - start, 0u64);
                let (mut minute, mut arrived) = (Instant::now(), 0u64);
                while left > 0 && !stop() {
                    let chunk = match answer.chunk(stop) {
                        Ok(Some(chunk)) => chunk,
                        Ok(None) => break,
                        Err(_) if written > 0 => break,
                        Err(e) => return Err(TransferError::Retry(format!("connection cut ({})", e.cause()))),
                    };
                    let n = chunk.len() as u64;
                    let jump = skip.min(n);
                    skip -= jump;
                    let take = (n - jump).min(left);
                    let bytes = &chunk[jump as usize..(jump + take) as usize];
                    out.write_all(bytes).map_err(|e| TransferError::Fatal(Error::io("writing", path)(e)))?;
                    left -= take;
                    written += take;
                    arrived += n;
                    if minute.elapsed() >= window {
                        if arrived < STALL_BYTES {
                            break;
                        }
                        (minute, arrived) = (Instant::now(), 0);
                    }
                }
                Ok(written)
            })?;
            if stop() {
                return Err(Error::Interrupted);
            }
            stalled = if got < STALL_BYTES { stalled + 1 } else { 0 };
            if stalled > STALLS && from + have(path) < to {
                return Err(self.bad(
                    file,
                    format!(
                        "the hub stops sending, or sends hardly anything, at byte {start} of {}",
                        file.bytes
                    ),
                ));
            }
        }
    }

    /// Joins the pieces into the blob; false if its length or sha256 is not as listed.
    fn assemble(&self, file: &RemoteFile, parts: &[PathBuf], blob: &Path) -> Result<bool> {
        let partial = blob.with_extension("dlm-whole");
        let out = File::create(&partial).map_err(Error::io("creating", &partial))?;
        let mut out = HashWriter::new(out);
        for p in parts {
            let mut f = File::open(p).map_err(Error::io("opening", p))?;
            std::io::copy(&mut f, &mut out).map_err(Error::io("writing", &partial))?;
        }
        let (out, bytes, sha256) = out.finish();
        out.sync_all().map_err(Error::io("flushing", &partial))?;
        for p in parts {
            let _ = std::fs::remove_file(p);
        }
        if bytes != file.bytes || file.sha256.as_ref().is_some_and(|s| *s != sha256) {
            let _ = std::fs::remove_file(&partial);
            return Ok(false);
        }
        dlm_datasets::fs::rename(&partial, blob)?;
        Ok(true)
    }

    /// The local path of file `k`, downloaded if it is not in the cache. `stop` is polled and ends
    /// the download early with [`Error::Interrupted`].
    pub(crate) fn fetch(&self, k: usize, stop: &(dyn Fn() -> bool + Sync)) -> Result<PathBuf> {
        let file = self
            .listing
            .files
            .get(k)
            .ok_or_else(|| Error::Internal(format!("no file {k} in the listing")))?;
        let blob = self.repo.blob(&file.etag);
        let known = self.repo.snapshot(&self.listing.commit).join(&file.path);
        // The files of a commit never change. Nothing is written, so that a cache which belongs to
        // somebody else can be read.
        if self.client.settings.offline || self.is_complete(file, &known) {
            return Ok(known);
        }
        make_parent(&blob)?;
        let lock_path = self.repo.lock(&file.etag);
        make_parent(&lock_path)?;
        // Only one process downloads; the others wait and then find the blob.
        let lock = File::create(&lock_path).map_err(Error::io("creating", &lock_path))?;
        let _ = lock.lock();
        if !self.is_complete(file, &blob) {
            let mut complete = false;
            for _attempt in 0..2 {
                let parts = self.download_pieces(file, &blob, stop)?;
                complete = self.assemble(file, &parts, &blob)?;
                if complete {
                    break;
                }
            }
            if !complete {
                let sha256 = file.sha256.as_deref().unwrap_or("-");
                return Err(self.bad(
                    file,
                    format!("downloaded twice, and twice the content is not what the hub lists ({} bytes, sha256 {sha256})", file.bytes),
                ));
            }
        }
        self.repo.link(&self.listing.commit, &file.path, &file.etag)
    }
}

/// Downloads files in the background, a few ahead of the one that is being read.
pub(crate) struct DownloadAhead {
    shared: Arc<Shared>,
}

struct Shared {
    source: HubSource<'static>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The last file that was asked for.
    requested: usize,
    /// The next file that a thread will download.
    next: usize,
    /// Local path or error message of every file that has been dealt with.
    finished: HashMap<usize, std::result::Result<PathBuf, String>>,
}

impl DownloadAhead {
    /// Starts to download from the first file on.
    pub(crate) fn new(source: HubSource<'static>) -> DownloadAhead {
        let shared = Arc::new(Shared {
            source,
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        for _ in 0..AHEAD {
            let shared = shared.clone();
            std::thread::spawn(move || shared.download_files());
        }
        DownloadAhead { shared }
    }

    /// The local path of file `k`; waits until it is downloaded.
    pub(crate) fn wait(&self, k: usize) -> Result<PathBuf> {
        let lost = || Error::Internal("a download thread ended".to_string());
        let mut state = self.shared.state.lock().map_err(|_| lost())?;
        state.requested = state.requested.max(k);
        self.shared.changed.notify_all();
        loop {
            match state.finished.get(&k) {
                Some(Ok(path)) => return Ok(path.clone()),
                Some(Err(e)) => return Err(Error::Remote(e.clone())),
                None if k < state.next || k < self.shared.source.files().len() => {}
                None => return Err(lost()),
            }
            if k < state.next
                && !state.finished.contains_key(&k)
                && self.shared.stop.load(Ordering::Relaxed)
            {
                return Err(Error::Interrupted);
            }
            let (s, _) = self
                .shared
                .changed
                .wait_timeout(state, std::time::Duration::from_millis(200))
                .map_err(|_| lost())?;
            state = s;
        }
    }
}

impl Drop for DownloadAhead {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn download_files(&self) {
        loop {
            let k = {
                let Ok(mut state) = self.state.lock() else {
                    return;
                };
                loop {
                    if self.stop.load(Ordering::Relaxed) || state.next >= self.source.files().len()
                    {
                        return;
                    }
                    if state.next <= state.requested + AHEAD {
                        break;
                    }
                    let Ok((s, _)) =
                        self.changed.wait_timeout(state, std::time::Duration::from_millis(500))
                    else {
                        return;
                    };
                    state = s;
                }
                state.next += 1;
                state.next - 1
            };
            let got = self
                .source
                .fetch(k, &|| self.stop.load(Ordering::Relaxed))
                .map_err(|e| e.to_string());
            let Ok(mut state) = self.state.lock() else {
                return;
            };
            state.finished.insert(k, got);
            self.changed.notify_all();
        }
    }
}
