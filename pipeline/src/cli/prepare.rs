//! Preparing a dataset: plan, run, finish, say what came of it.

#![allow(unsafe_code, reason = "libc::getrusage")]

use crate::cli::args::PrepareArgs;
use crate::cli::stats;
use crate::error::{Error, Result};
use crate::pack::sink::DatasetSink;
use crate::prepare::estimate;
use crate::prepare::plan::{PreparePlan, plan};
use crate::run::executor::{self, Meter};
use crate::run::progress;
use dlm_datasets::manifest::Manifest;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Prepares what `b` asks for.
pub fn run(b: &PrepareArgs) -> Result<()> {
    let begin = Instant::now();
    let plan = plan(b)?;
    let workers = b
        .workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
        .clamp(1, 256);
    describe(&plan, b, workers);
    if b.dry_run {
        let found = estimate::estimate(&plan, workers)?;
        if b.json {
            println!(
                "{}",
                serde_json::to_string(&found).map_err(|e| Error::Internal(e.to_string()))?
            );
        } else {
            print!("{found}");
        }
        return Ok(());
    }
    if !b.overwrite
        && let Ok(m) = Manifest::read(&b.out)
        && m.recipe_fingerprint == plan.manifest.recipe_fingerprint
    {
        eprintln!("{} is already prepared from these inputs with these settings", b.out.display());
        return report(b, &m);
    }
    let mut output = DatasetSink::open(&b.out, &plan, b.overwrite)?;
    if output.rows_seen() > 0 {
        eprintln!("going on after row {}", output.rows_seen());
    }
    let meter = Arc::new(Meter::default());
    let stop = meter.clone();
    let loaded = begin.elapsed();
    // A signal stops the reader; what is on disk is enough to go on from.
    let _ = crate::cli::signals::on_interrupt(move || stop.stop.store(true, Ordering::Relaxed));
    let stages = plan.stages();
    let streams = output.streams();
    // The tokenizer's files go to the disk meanwhile; the manifest waits for them.
    let written = std::thread::scope(|s| {
        let tokenizer = s.spawn(|| plan.write_tokenizer(&b.out));
        progress::watch(&meter, || {
            executor::run(&stages, &plan.inputs, &streams, workers, &meter, |feed| {
                output.consume(feed)
            })
        })?;
        tokenizer
            .join()
            .unwrap_or_else(|_| Err(Error::Internal("writing the tokenizer".to_string())))
    });
    written?;
    let manifest = output.finish()?;
    let (all, text) =
        (begin.elapsed().as_secs_f64(), meter.text_bytes.load(Ordering::Relaxed) as f64);
    let run = all - loaded.as_secs_f64();
    eprintln!(
        "{:.1} s ({:.1} s to load): {:.1} MB of text at {:.1} MB/s, {:.2} M tokens/s with {workers} workers, {:.0} MB peak memory",
        all,
        loaded.as_secs_f64(),
        text / 1e6,
        text / 1e6 / run,
        manifest.counts.tokens as f64 / 1e6 / run,
        peak_memory_mb()
    );
    // The process ends: taking hundreds of thousands of vocabulary entries apart would only cost
    // time.
    std::mem::forget(plan);
    report(b, &manifest)
}

fn describe(plan: &PreparePlan, b: &PrepareArgs, workers: usize) {
    let m = &plan.manifest;
    let bytes: u64 = plan.inputs.iter().map(|i| i.bytes).sum();
    eprintln!("inputs     {} files, {:.1} MB", plan.inputs.len(), bytes as f64 / 1e6);
    let how = match &plan.linear {
        None => "rendered row by row".to_string(),
        Some(l) => format!(
            "copies content, but for {} strings{}",
            l.triggers.len(),
            if l.changes_edge_whitespace { " and white space at its edges" } else { "" }
        ),
    };
    eprintln!("template   {}; {how}", m.template_source);
    eprintln!(
        "tokenizer  {} ids; mask {} = {}, pad {} = {}, eos {} = {}",
        m.vocab_size,
        m.mask_token,
        m.mask_token_id,
        m.pad_token,
        m.pad_token_id,
        m.eos_token,
        m.eos_token_id
    );
    eprintln!("engine     {}", plan.tokenizer.engine());
    eprintln!(
        "rows       {} tokens in blocks of {}; {workers} workers; to {}",
        m.seq_len,
        m.bd_size,
        b.out.display()
    );
}

fn report(b: &PrepareArgs, m: &Manifest) -> Result<()> {
    if b.json {
        println!("{}", serde_json::to_string(m).map_err(|e| Error::Internal(e.to_string()))?);
    } else {
        print!("{}", stats::summary(m));
    }
    Ok(())
}

/// Largest resident memory so far, in megabytes.
pub fn peak_memory_mb() -> f64 {
    // Linux counts what the parent held at the time of the fork into `ru_maxrss`; VmHWM is this
    // program's own.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    if let Some(kib) = own {
        return kib * 1024.0 / 1e6;
    }
    // SAFETY: getrusage fills the struct it is given and reads nothing else.
    let usage = unsafe {
        let mut u: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut u);
        u
    };
    let unit = if cfg!(target_os = "macos") { 1.0 } else { 1024.0 };
    usage.ru_maxrss as f64 * unit / 1e6
}
