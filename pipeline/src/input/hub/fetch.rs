//! Files from the hub: in pieces, a few at a time, ahead of the reader.
//!
//! In: a listing. Out: local paths. A piece is a file of its own that only ever grows, so a cut
//! connection or a killed run goes on where it stopped. A whole file is put together from its
//! pieces, its length and (where the hub lists one) sha256 checked, and only then given its name in
//! the cache.

use super::cache::{Repo, RepoKind, make_parent};
use super::client::{Cut, HubClient, encode};
use super::list::Listing;
use super::{RemoteFile, ShardSource};
use crate::error::{Error, Result};
use dlm_datasets::hash::HashWriter;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Bytes of a piece.
const PIECE: u64 = 16 << 20;
/// Pieces of one file under way at a time.
const STREAMS: usize = 4;
/// Files fetched ahead of the one being read.
const AHEAD: usize = 2;

/// A repository at a commit, on a hub.
pub struct HubSource {
    client: HubClient,
    repo: Repo,
    kind: RepoKind,
    id: String,
    listing: Listing,
}

impl HubSource {
    /// For a listing.
    pub fn new(client: HubClient, kind: RepoKind, id: &str, listing: Listing) -> HubSource {
        let repo = Repo::new(&client.settings.cache, kind, id);
        HubSource { client, repo, kind, id: id.to_string(), listing }
    }

    /// Bytes of file `k` that are on the disk already.
    pub fn held(&self, k: usize) -> u64 {
        let Some(file) = self.listing.files.get(k) else {
            return 0;
        };
        let blob = self.repo.blob(&file.etag);
        if self.whole(file, &blob) {
            return file.bytes;
        }
        (0..Self::count(file))
            .filter_map(|k| std::fs::metadata(Self::part(&blob, k)).ok())
            .map(|m| m.len())
            .sum()
    }

    fn count(file: &RemoteFile) -> usize {
        file.bytes.div_ceil(PIECE).max(1) as usize
    }

    fn part(blob: &Path, k: usize) -> PathBuf {
        blob.with_extension(format!("dlm-part-{k}"))
    }

    /// The revision the commit was found under.
    pub fn revision(&self) -> &str {
        &self.listing.revision
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

    fn whole(&self, file: &RemoteFile, blob: &Path) -> bool {
        std::fs::metadata(blob).is_ok_and(|m| m.is_file() && m.len() == file.bytes)
    }

    /// Downloads the pieces of a file, several at a time.
    fn pieces(
        &self,
        file: &RemoteFile,
        blob: &Path,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<PathBuf>> {
        let count = Self::count(file);
        let paths: Vec<PathBuf> = (0..count).map(|k| Self::part(blob, k)).collect();
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
                        let (from, to) =
                            (k as u64 * PIECE, ((k as u64 + 1) * PIECE).min(file.bytes));
                        if let Err(e) = self.piece(file, &paths[k], from, to, &|| {
                            stop() || failed.load(Ordering::Relaxed)
                        }) {
                            failed.store(true, Ordering::Relaxed);
                            if let Ok(mut f) = failure.lock() {
                                // The first failure is the cause; what it stops is not.
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

    /// Bytes `from..to` of a file into `path`, going on after what it holds.
    fn piece(
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
        let mut stalled = 0;
        loop {
            let start = from + have(path);
            if start >= to {
                if to == from {
                    File::create(path).map_err(Error::io("creating", path))?;
                }
                return Ok(());
            }
            let got = self.client.get(&url, Some((start, to - 1)), stop, |mut response| {
                let never = |reason: String| Cut::Never(self.bad(file, reason));
                let header = |k: &str| response.headers().get(k).and_then(|v| v.to_str().ok()).map(String::from);
                // A hub (or a proxy) that ignores ranges sends all from the start.
                let mut skip = if response.status().as_u16() == 206 { 0 } else { start };
                let total = match response.status().as_u16() {
                    206 => header("content-range").and_then(|r| r.rsplit('/').next().and_then(|t| t.parse::<u64>().ok())),
                    _ => header("content-length").and_then(|l| l.parse::<u64>().ok()),
                };
                if let Some(total) = total.filter(|&t| t != file.bytes) {
                    return Err(never(format!(
                        "the hub sends {total} bytes, its listing says {}; the file has changed, or the listing is wrong",
                        file.bytes
                    )));
                }
                let mut out =
                    OpenOptions::new().create(true).append(true).open(path).map_err(|e| Cut::Never(Error::io("opening", path)(e)))?;
                let mut body = response.body_mut().as_reader();
                let mut buffer = vec![0u8; 1 << 16];
                let (mut left, mut written) = (to - start, 0u64);
                while left > 0 && !stop() {
                    let n = match body.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(n) => n,
                        Err(_) if written > 0 => break,
                        Err(e) => return Err(Cut::Again(format!("connection cut ({})", e.kind()))),
                    };
                    let jump = skip.min(n as u64);
                    skip -= jump;
                    let take = ((n as u64 - jump).min(left)) as usize;
                    let bytes = &buffer[jump as usize..jump as usize + take];
                    out.write_all(bytes).map_err(|e| Cut::Never(Error::io("writing", path)(e)))?;
                    left -= take as u64;
                    written += take as u64;
                }
                Ok(written)
            })?;
            if stop() {
                return Err(Error::Interrupted);
            }
            stalled = if got == 0 { stalled + 1 } else { 0 };
            if stalled > 4 {
                return Err(self.bad(
                    file,
                    format!("the hub stops sending at byte {start} of {}", file.bytes),
                ));
            }
        }
    }

    /// Puts pieces together and checks the whole.
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
}

impl ShardSource for HubSource {
    fn commit(&self) -> &str {
        &self.listing.commit
    }

    fn files(&self) -> &[RemoteFile] {
        &self.listing.files
    }

    fn fetch(&self, k: usize, stop: &(dyn Fn() -> bool + Sync)) -> Result<PathBuf> {
        let file = self
            .listing
            .files
            .get(k)
            .ok_or_else(|| Error::Internal(format!("no file {k} in the listing")))?;
        let blob = self.repo.blob(&file.etag);
        if self.client.settings.offline {
            return Ok(self.repo.snapshot(&self.listing.commit).join(&file.path));
        }
        make_parent(&blob)?;
        let lock_path = self.repo.lock(&file.etag);
        make_parent(&lock_path)?;
        // One process at a time; the others find the file when it is there.
        let lock = File::create(&lock_path).map_err(Error::io("creating", &lock_path))?;
        let _ = lock.lock();
        if !self.whole(file, &blob) {
            let mut done = false;
            for _attempt in 0..2 {
                let parts = self.pieces(file, &blob, stop)?;
                done = self.assemble(file, &parts, &blob)?;
                if done {
                    break;
                }
            }
            if !done {
                let wanted = file.sha256.as_deref().unwrap_or("-");
                return Err(self.bad(
                    file,
                    format!("downloaded twice, and twice the content is not what the hub lists ({} bytes, sha256 {wanted})", file.bytes),
                ));
            }
        }
        self.repo.link(&self.listing.commit, &file.path, &file.etag)
    }
}

/// Fetches files in the background, a few ahead of the one wanted.
pub struct DownloadAhead {
    shared: Arc<Shared>,
}

struct Shared {
    source: Box<dyn ShardSource>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    wanted: usize,
    next: usize,
    done: HashMap<usize, std::result::Result<PathBuf, String>>,
}

impl DownloadAhead {
    /// Starts fetching from file `first` on.
    pub fn new(source: Box<dyn ShardSource>, first: usize) -> DownloadAhead {
        let state = State { wanted: first, next: first, ..Default::default() };
        let shared = Arc::new(Shared {
            source,
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        for _ in 0..AHEAD {
            let shared = shared.clone();
            std::thread::spawn(move || shared.work());
        }
        DownloadAhead { shared }
    }

    /// The local path of file `k`, waited for.
    pub fn wait(&self, k: usize) -> Result<PathBuf> {
        let lost = || Error::Internal("a download thread ended".to_string());
        let mut state = self.shared.state.lock().map_err(|_| lost())?;
        state.wanted = state.wanted.max(k);
        self.shared.changed.notify_all();
        loop {
            match state.done.get(&k) {
                Some(Ok(path)) => return Ok(path.clone()),
                Some(Err(e)) => return Err(Error::Remote(e.clone())),
                None if k < state.next || k < self.shared.source.files().len() => {}
                None => return Err(lost()),
            }
            if k < state.next
                && !state.done.contains_key(&k)
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
    fn work(&self) {
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
                    if state.next <= state.wanted + AHEAD {
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
            state.done.insert(k, got);
            self.changed.notify_all();
        }
    }
}
