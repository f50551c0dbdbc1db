//! `dlm-prep` without a command: prepares a dataset, or estimates what that would give.

#![allow(unsafe_code, reason = "libc::getrusage")]

use crate::cli::args::PrepareArgs;
use crate::cli::console::{self, ConsoleProgress};
use crate::cli::signals::on_interrupt;
use crate::config::run_options::DEFAULT_OUT;
use crate::dataset::totals;
use crate::error::Result;
use crate::prepare::pipeline::Prepared;
use crate::progress::{DownloadCounters, ProcessingCounters, Progress};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Prepares what `a` asks for.
pub(super) fn run(a: &PrepareArgs) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let progress = PrepareProgress { console: ConsoleProgress::default(), stop: stop.clone() };
    let prepare = a.to_prepare().progress(Arc::new(progress)).stop_flag(stop);
    if a.dry_run {
        let estimate = prepare.estimate()?;
        return match a.json {
            true => console::print_json(&estimate),
            false => console::print(&estimate.to_string()),
        };
    }
    let prepared = prepare.run(a.out.as_deref().unwrap_or(Path::new(DEFAULT_OUT)))?;
    if !prepared.already_prepared {
        console::note(&summary(&prepared));
    }
    match a.json {
        true => console::print_json(&prepared.manifest),
        false => console::print(&totals::summary(&prepared.manifest)),
    }
}

/// Time, speed and memory of a run, in one line.
fn summary(p: &Prepared) -> String {
    let seconds = p.seconds - p.load_seconds;
    format!(
        "{:.1} s ({:.1} s to load): {:.1} MB of text at {:.1} MB/s, {:.2} M tokens/s with {} workers, {:.0} MB peak memory",
        p.seconds,
        p.load_seconds,
        p.text_bytes as f64 / 1e6,
        p.text_bytes as f64 / 1e6 / seconds,
        p.counts().tokens as f64 / 1e6 / seconds,
        p.workers,
        p.peak_memory_mb
    )
}

/// Console progress; signals end the run in an orderly way from the moment on at which the output
/// folder is opened. Until then they end the process, since there is nothing to save.
struct PrepareProgress {
    console: ConsoleProgress,
    stop: Arc<AtomicBool>,
}

impl Progress for PrepareProgress {
    fn notice(&self, line: &str) {
        self.console.notice(line);
    }

    fn processing_started(&self) {
        let stop = self.stop.clone();
        let _ = on_interrupt(move || stop.store(true, Ordering::Relaxed));
    }

    fn processing(&self, counters: &ProcessingCounters) {
        self.console.processing(counters);
    }

    fn downloading(&self, counters: &DownloadCounters) {
        self.console.downloading(counters);
    }

    fn finished(&self) {
        self.console.finished();
    }
}
