//! Checkpoints and the exported folder on their way to the bucket, sent by one thread.
//!
//! In: checkpoints as they are written ([`Uploads::add`]). A checkpoint is linked under another
//! name (`checkpoints/.step-N.upload`), so that it may be removed while it is being sent. The
//! newest one is sent first; one that was not begun when a newer one is written is left out, unless
//! it is the best. Training never waits for the bucket: only its end does, as long as bytes arrive
//! ([`Uploads::finish`]), and an interrupted run for a fixed time ([`Uploads::settle`]).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::io::bucket_run::{BucketRun, Sent};
use crate::report::console::message;

/// Suffix of the folder that holds a checkpoint while it waits.
const SUFFIX: &str = ".upload";
/// First pause after an upload failed, in pauses of the bucket's operations (2 s), and the longest.
const PAUSES: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Failures in a row after which the end of a run waits no longer.
const FAILURES: u32 = 3;
/// Time between two looks at whether anything has arrived.
const TICK: Duration = Duration::from_millis(100);

/// A checkpoint that waits.
#[derive(Clone, Debug)]
struct Waiting {
    step: u64,
    /// Step with the lowest evaluation loss when it was written.
    best: Option<u64>,
    dir: PathBuf,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Ascending by step.
    waiting: Vec<Waiting>,
    /// Whether the first failure after a success was told.
    told: bool,
    /// The newest checkpoint that is whole in the bucket.
    newest: Option<u64>,
    /// The newest checkpoint and the best, where others are to be removed from the bucket.
    surplus: Option<(u64, Option<u64>)>,
    /// The exported folder, once it is to be sent.
    export: Option<PathBuf>,
    /// Failures since the last success, and the last one.
    failures: u32,
    failure: String,
    /// Bytes and seconds of the checkpoints that were sent.
    sent: (u64, f64),
}

/// What is done next.
enum Job {
    Checkpoint(Waiting),
    /// Removes checkpoints other than these and the newest ones.
    Prune(u64, Option<u64>),
    Export(PathBuf),
}

#[derive(Debug)]
struct Shared {
    run: BucketRun,
    dir: PathBuf,
    keep: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The uploads of a run.
#[derive(Debug)]
pub(crate) struct Uploads {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Uploads {
    /// Starts the thread. `dir` is the run's folder, `keep` the checkpoints kept in the bucket
    /// beside the best.
    pub(crate) fn start(run: BucketRun, dir: &Path, keep: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            run,
            dir: dir.to_path_buf(),
            keep,
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = shared.clone();
        let thread =
            std::thread::Builder::new().name("uploads".into()).spawn(move || own.work()).map_err(
                |e| Error::Device(format!("starting the thread for uploads failed: {e}")),
            )?;
        Ok(Uploads { shared, thread })
    }

    /// A checkpoint was written to `dir`. `best` is the step with the lowest evaluation loss.
    pub(crate) fn add(&self, step: u64, dir: &Path, best: Option<u64>) -> Result<()> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let copy = dir.with_file_name(format!(".{name}{SUFFIX}"));
        let mut queue = self.shared.lock();
        queue.waiting.retain(|waiting| waiting.step != step);
        remove_dir(&copy)?;
        let bytes = link_all(dir, &copy)?;
        queue.waiting.push(Waiting { step, best, dir: copy, bytes });
        queue.waiting.sort_by_key(|waiting| waiting.step);
        drop(queue);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Sends the exported folder `out`, and waits until everything is in the bucket, as long as
    /// something arrives there. `stop` ends the wait after `grace`.
    ///
    /// # Errors
    /// [`Error::Upload`] with what is missing, and what finishes it.
    pub(crate) fn finish(&self, out: &Path, stop: &AtomicBool, grace: Duration) -> Result<()> {
        let shared = &self.shared;
        let mut queue = shared.lock();
        queue.export = Some(out.to_path_buf());
        queue.failures = 0;
        shared.changed.notify_all();
        let mut deadline = None;
        while !queue.is_empty() && queue.failures < FAILURES && !self.thread.is_finished() {
            if stop.load(Ordering::Relaxed) {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + grace);
                if Instant::now() >= deadline {
                    break;
                }
            }
            queue = shared.wait(queue);
        }
        if queue.is_empty() {
            return Ok(());
        }
        let reason = match queue.failures {
            0 => "interrupted".to_string(),
            _ => queue.failure.clone(),
        };
        Err(Error::Upload(format!(
            "the run is complete in {}, but not all of it is in {}: {} ({reason}); the same command sends what is missing",
            out.display(),
            shared.run.address(),
            queue.missing()
        )))
    }

    /// Waits until the checkpoints are in the bucket, but not beyond `deadline`; says what is
    /// missing then.
    pub(crate) fn settle(&self, deadline: Instant) {
        let shared = &self.shared;
        let before = shared.run.bytes_moved();
        let started = Instant::now();
        let mut queue = shared.lock();
        let address = shared.run.address();
        if let Some(newest) = queue.waiting.last() {
            let seconds = deadline.saturating_duration_since(started).as_secs_f64();
            message(format_args!(
                "uploading the checkpoint of step {} ({:.1} MB) to {address}, for up to {seconds:.0} s",
                newest.step,
                newest.bytes as f64 / 1e6
            ));
        }
        queue.failures = 0;
        // the newest alone: another one may not be begun now
        let newest = queue.waiting.last().map(|waiting| waiting.step);
        shared.changed.notify_all();
        while queue.waiting.iter().any(|waiting| Some(waiting.step) == newest)
            && Instant::now() < deadline
            && !self.thread.is_finished()
        {
            queue = shared.wait(queue);
        }
        let Some(waiting) = queue.waiting.iter().find(|w| Some(w.step) == newest) else { return };
        let (moved, seconds) =
            (shared.run.bytes_moved() - before, started.elapsed().as_secs_f64().max(1e-3));
        let rate = match queue.sent {
            (bytes, seconds) if seconds > 0.0 => bytes as f64 / seconds,
            _ => moved as f64 / seconds,
        };
        let needs = match rate {
            rate if rate > 0.0 => format!(
                "; at the {:.1} MB/s of this bucket it takes {:.0} s (output.upload_grace)",
                rate / 1e6,
                waiting.bytes as f64 / rate
            ),
            _ if queue.failures > 0 => format!(" ({})", queue.failure),
            _ => String::new(),
        };
        let newest = queue.newest.map_or("none".into(), |step| format!("that of step {step}"));
        message(format_args!(
            "the checkpoint of step {} is not in {address} ({:.1} of {:.1} MB are){needs}; the newest whole one there: {newest}; the same command on this machine sends it",
            waiting.step,
            moved.min(waiting.bytes) as f64 / 1e6,
            waiting.bytes as f64 / 1e6
        ));
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.surplus.is_none() && self.export.is_none()
    }

    /// What is not in the bucket, in words.
    fn missing(&self) -> String {
        let steps = self.waiting.iter().map(|w| format!("the checkpoint of step {}", w.step));
        let export = self.export.iter().map(|_| "the exported folder".to_string());
        let surplus = self.surplus.iter().map(|_| "old checkpoints are not removed".to_string());
        steps.chain(export).chain(surplus).collect::<Vec<_>>().join(", ")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'q>(&self, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        self.changed.wait_timeout(queue, TICK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sends what waits, for ever.
    fn work(&self) {
        let first = self.run.pause() * PAUSES;
        let (mut pause, mut sent) = (first, (None, Sent::default()));
        loop {
            let job = self.next();
            // what is known of the last one is of use only if it is tried again
            let key = match &job {
                Job::Checkpoint(waiting) => Some(waiting.step),
                Job::Export(_) => None,
                Job::Prune(..) => sent.0,
            };
            if sent.0 != key {
                sent = (key, Sent::default());
            }
            let result = match &job {
                Job::Checkpoint(waiting) => self.send(waiting, &mut sent.1),
                Job::Prune(newest, best) => self.prune(*newest, *best),
                Job::Export(out) => self.send_export(out, &mut sent.1),
            };
            match result {
                Ok(()) => {
                    pause = first;
                    let mut queue = self.lock();
                    (queue.failures, queue.told) = (0, false);
                }
                Err(error) => {
                    self.failed(&error, pause);
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            self.changed.notify_all();
        }
    }

    /// Waits for something to do: the newest checkpoint, then the best, then the export.
    fn next(&self) -> Job {
        let mut queue = self.lock();
        loop {
            // of those before the newest, only the best is of use
            let best = queue.waiting.last().and_then(|newest| newest.best);
            let newest = queue.waiting.last().map(|newest| newest.step);
            let is_kept = |w: &Waiting| Some(w.step) == newest || Some(w.step) == best;
            let (kept, dropped) = std::mem::take(&mut queue.waiting).into_iter().partition(is_kept);
            queue.waiting = kept;
            let dropped: Vec<Waiting> = dropped;
            for waiting in dropped {
                drop(remove_dir(&waiting.dir));
            }
            match (queue.waiting.last(), queue.surplus, &queue.export) {
                (Some(waiting), ..) => return Job::Checkpoint(waiting.clone()),
                (None, Some((newest, best)), _) => return Job::Prune(newest, best),
                (None, None, Some(out)) => return Job::Export(out.clone()),
                (None, None, None) => queue = self.wait(queue),
            }
        }
    }

    fn send(&self, waiting: &Waiting, sent: &mut Sent) -> Result<()> {
        let started = Instant::now();
        self.run.send_reports(&self.dir)?;
        let is_newest = self.lock().newest.is_none_or(|newest| newest < waiting.step);
        self.run.send_checkpoint(waiting.step, &waiting.dir, is_newest, sent)?;
        let seconds = started.elapsed().as_secs_f64();
        {
            let mut queue = self.lock();
            let newest = queue.newest.max(Some(waiting.step));
            queue.newest = newest;
            queue.surplus = newest.map(|newest| (newest, waiting.best));
            queue.waiting.retain(|other| other.step != waiting.step);
            queue.sent = (queue.sent.0 + waiting.bytes, queue.sent.1 + seconds);
        }
        drop(remove_dir(&waiting.dir));
        message(format_args!(
            "the checkpoint of step {} is in {} ({:.1} MB, {seconds:.1} s)",
            waiting.step,
            self.run.address(),
            waiting.bytes as f64 / 1e6
        ));
        Ok(())
    }

    fn prune(&self, newest: u64, best: Option<u64>) -> Result<()> {
        self.run.prune(newest, best, self.keep)?;
        self.lock().surplus = None;
        Ok(())
    }

    fn send_export(&self, out: &Path, sent: &mut Sent) -> Result<()> {
        let (files, bytes) = self.run.send_final(out, sent)?;
        self.lock().export = None;
        message(format_args!(
            "the exported folder is in {}/final ({files} files, {:.1} MB)",
            self.run.address(),
            bytes as f64 / 1e6
        ));
        Ok(())
    }

    fn failed(&self, error: &Error, pause: Duration) {
        let mut queue = self.lock();
        queue.failures += 1;
        queue.failure = error.to_string();
        if !std::mem::replace(&mut queue.told, true) {
            message(format_args!(
                "warning: not uploaded: {error}; the run goes on, and it is tried again, in {:.0} s for the first time",
                pause.as_secs_f64()
            ));
        }
    }
}

/// Removes what the uploads of a killed process left in the checkpoints' folder.
pub(crate) fn remove_leftovers(checkpoints: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(checkpoints) else { return Ok(()) };
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && name.ends_with(SUFFIX) {
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

/// Links every file below `from` into the new folder `to`, or copies it where that is not possible.
/// Returns their bytes.
fn link_all(from: &Path, to: &Path) -> Result<u64> {
    let failed = |e| Error::io(to, "linking a checkpoint to be uploaded", e);
    std::fs::create_dir_all(to).map_err(failed)?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata().map_err(failed)?;
        if meta.is_dir() {
            bytes += link_all(&path, &copy)?;
        } else {
            if std::fs::hard_link(&path, &copy).is_err() {
                std::fs::copy(&path, &copy).map_err(failed)?;
            }
            bytes += meta.len();
        }
    }
    Ok(bytes)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(dir, "removing a link to a checkpoint", e))
        }
        _ => Ok(()),
    }
}
