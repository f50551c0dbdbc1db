//! What a long operation reports to its caller while it runs.
//!
//! The library prints nothing. It calls the methods of [`Progress`]; the command line implements
//! them with a progress bar or plain lines on standard error
//! ([`ConsoleProgress`](crate::ConsoleProgress)).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two looks at whether the work is done.
const TICK: Duration = Duration::from_millis(20);

/// Receives the reports of a long operation. Every method does nothing unless it is implemented.
///
/// The methods are called from several threads, and the operation waits for them: they should
/// return at once.
pub trait Progress: Send + Sync {
    /// One line of text for the person who started the operation, without a line end: which commit
    /// a dataset was resolved to, which tokenizer engine is used, why a download is retried.
    fn notice(&self, line: &str) {
        let _ = line;
    }

    /// Inputs, tokenizer and template are loaded; the output folder is opened and rows are read
    /// from now on. From here on a set stop flag
    /// ([`Prepare::stop_flag`](crate::Prepare::stop_flag)) ends the run within a batch.
    fn processing_started(&self) {}

    /// Called every 20 ms while rows are processed.
    fn processing(&self, counters: &ProcessingCounters) {
        let _ = counters;
    }

    /// Called every 200 ms while model weights are downloaded.
    fn downloading(&self, counters: &DownloadCounters) {
        let _ = counters;
    }

    /// The last report of `processing` or `downloading` has been made; a display of them can be
    /// removed. Called in case of failure, too.
    fn finished(&self) {}
}

/// Totals of a preparation that runs, those of an interrupted earlier run not included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessingCounters {
    /// Rows processed so far.
    pub rows: u64,
    /// Tokens of their documents, block padding included.
    pub tokens: u64,
    /// Bytes of rendered text.
    pub text_bytes: u64,
}

/// State of a download.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DownloadCounters {
    /// Bytes on the disk, those of earlier attempts included.
    pub bytes: u64,
    /// Bytes to download, those on the disk included.
    pub total_bytes: u64,
}

/// A [`Progress`] that drops all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Runs `work` and calls `report` on another thread, once every `interval` (at least 20 ms), until
/// `work` returns or panics; then calls `progress.finished()`.
pub(crate) fn report_while<T>(
    progress: &dyn Progress,
    interval: Duration,
    report: impl Fn() + Sync,
    work: impl FnOnce() -> T,
) -> T {
    struct SetOnDrop<'a>(&'a AtomicBool);
    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut last = Instant::now();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                if last.elapsed() >= interval {
                    last = Instant::now();
                    report();
                }
            }
            progress.finished();
        });
        // On panic, too: the scope waits for the thread above.
        let _set = SetOnDrop(&done);
        work()
    })
}
