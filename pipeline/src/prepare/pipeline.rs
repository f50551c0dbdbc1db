//! Runs a plan: rows are read and processed by worker threads, packed and written by this one.
//!
//! In: [`PreparePlan`] and an output folder. Out: the dataset, and [`Prepared`].

use crate::error::{Error, Result};
use crate::pack::output_folder;
use crate::pack::sink::DatasetSink;
use crate::prepare::peak_memory::peak_memory_mb;
use crate::prepare::plan::PreparePlan;
use crate::progress::{ProcessingCounters, Progress, report_while};
use crate::run::executor::{self, Meter};
use dlm_datasets::fs::lock_dir;
use dlm_datasets::manifest::{Counts, Manifest};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A prepared dataset and what it took to make it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The dataset's manifest.
    pub manifest: Manifest,
    /// Whether the folder already held this very dataset, so that nothing was done.
    pub already_prepared: bool,
    /// Rows that an interrupted earlier run had read; this run resumed after them.
    pub resumed_after: u64,
    /// Seconds of this run in all.
    pub seconds: f64,
    /// Seconds of them until the first row was read.
    pub load_seconds: f64,
    /// Bytes of text that this run rendered.
    pub text_bytes: u64,
    /// Number of worker threads.
    pub workers: usize,
    /// Largest resident memory of the process so far, in megabytes (10^6 bytes).
    pub peak_memory_mb: f64,
}

impl Prepared {
    /// A dataset that was there already.
    pub(crate) fn already(manifest: Manifest, control: &RunControl) -> Prepared {
        Prepared {
            manifest,
            already_prepared: true,
            resumed_after: 0,
            seconds: control.begin.elapsed().as_secs_f64(),
            load_seconds: 0.0,
            text_bytes: 0,
            workers: control.workers,
            peak_memory_mb: peak_memory_mb(),
        }
    }

    /// Rows read, kept and dropped by reason, documents and tokens of the dataset.
    pub fn counts(&self) -> &Counts {
        &self.manifest.counts
    }
}

/// How a plan is run.
pub(crate) struct RunControl<'a> {
    /// Number of worker threads.
    pub workers: usize,
    /// Whether files of earlier runs in the output folder are replaced.
    pub overwrite: bool,
    pub progress: &'a dyn Progress,
    /// Ends the run when it is set.
    pub stop: Arc<AtomicBool>,
    /// When the caller's call began; the seconds of [`Prepared`] count from here.
    pub begin: Instant,
}

/// Runs `plan` and writes the dataset into `out`.
pub(crate) fn run_plan(plan: &PreparePlan, out: &Path, control: RunControl) -> Result<Prepared> {
    let RunControl { workers, overwrite, progress, stop, begin } = control;
    let mut prepared = Prepared {
        manifest: plan.manifest.clone(),
        already_prepared: false,
        resumed_after: 0,
        seconds: 0.0,
        load_seconds: 0.0,
        text_bytes: 0,
        workers,
        peak_memory_mb: 0.0,
    };
    let existing = Manifest::read(out)
        .ok()
        .filter(|m| !overwrite && m.recipe_fingerprint == plan.manifest.recipe_fingerprint);
    match existing {
        Some(manifest) => {
            progress.notice(&format!(
                "{} is already prepared from these inputs with these settings",
                out.display()
            ));
            output_folder::remove_leftovers(out)?;
            prepared.manifest = manifest;
            prepared.already_prepared = true;
        }
        None => {
            // before the folder is touched, so that a signal leaves it in order
            progress.processing_started();
            let _lock = lock_dir(out)?;
            let mut sink = DatasetSink::open(out, plan.pack_job(), overwrite)?;
            prepared.resumed_after = sink.rows_seen();
            if sink.rows_seen() > 0 {
                progress.notice(&format!("resuming after row {}", sink.rows_seen()));
            }
            let meter = Meter { stop, ..Default::default() };
            prepared.load_seconds = begin.elapsed().as_secs_f64();
            write_dataset(plan, out, workers, progress, &meter, &mut sink)?;
            prepared.manifest = sink.finish()?;
            prepared.text_bytes = meter.text_bytes.load(Ordering::Relaxed);
        }
    }
    prepared.seconds = begin.elapsed().as_secs_f64();
    prepared.peak_memory_mb = peak_memory_mb();
    Ok(prepared)
}

/// Everything but the manifest, which has to be written last.
fn write_dataset(
    plan: &PreparePlan,
    out: &Path,
    workers: usize,
    progress: &dyn Progress,
    meter: &Meter,
    sink: &mut DatasetSink,
) -> Result<()> {
    let (stages, streams) = (plan.stages(), sink.streams());
    let report = || {
        progress.processing(&ProcessingCounters {
            rows: meter.rows.load(Ordering::Relaxed),
            tokens: meter.tokens.load(Ordering::Relaxed),
            text_bytes: meter.text_bytes.load(Ordering::Relaxed),
        });
    };
    std::thread::scope(|s| {
        let tokenizer = s.spawn(|| plan.write_tokenizer(out));
        report_while(progress, Duration::ZERO, report, || {
            executor::run(&stages, &plan.inputs, &streams, workers, meter, |feed| {
                sink.consume(feed)
            })
        })?;
        tokenizer
            .join()
            .unwrap_or_else(|_| Err(Error::Internal("writing the tokenizer".to_string())))
    })
}
