//! Measures what each stage costs, and how near the whole comes to the tokenizer engine alone on
//! the same text and threads.
//!
//! Per stage: CPU seconds of one thread, over rows held in memory. Then wall time of the engine
//! alone on the rendered texts with N threads, and of the pipeline with N workers over the files,
//! without and with packing and writing.

#![allow(unsafe_code, reason = "libc::clock_gettime")]

use crate::cli::args::{BENCH_REPEAT, BENCH_WORKERS, BenchArgs};
use crate::cli::console;
use crate::error::Result;
use crate::input::raw_rows::RawRows;
use crate::label::supervise::{Sample, Supervisor};
use crate::pack::packer::Packer;
use crate::pack::sink::DatasetSink;
use crate::parse::rows::RowParser;
use crate::prepare::builder::Prepare;
use crate::prepare::peak_memory::peak_memory_mb;
use crate::run::batch::{BatchPosition, Cursor};
use crate::run::executor::{self, InputStream, Meter};
use crate::run::row_processor::RowProcessor;
use crate::template::rendered::Rendered;
use crate::template::spans::SpanFinder;
use dlm_datasets::writer::DocumentTokens;
use serde_json::json;
use std::fmt::Write;
use std::time::Instant;

/// CPU seconds so far on a clock of the operating system.
fn cpu(clock: libc::clockid_t) -> f64 {
    // SAFETY: clock_gettime fills the struct it is given.
    let t = unsafe {
        let mut t: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(clock, &mut t);
        t
    };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// A stopwatch for wall time, CPU time of this thread and CPU time of the process.
struct Watch(Instant, f64, f64);

impl Watch {
    fn start() -> Self {
        Watch(
            Instant::now(),
            cpu(libc::CLOCK_THREAD_CPUTIME_ID),
            cpu(libc::CLOCK_PROCESS_CPUTIME_ID),
        )
    }
    /// Seconds since the start: (wall, CPU of this thread, CPU of the process).
    fn stop(&self) -> (f64, f64, f64) {
        (
            self.0.elapsed().as_secs_f64(),
            cpu(libc::CLOCK_THREAD_CPUTIME_ID) - self.1,
            cpu(libc::CLOCK_PROCESS_CPUTIME_ID) - self.2,
        )
    }
}

/// Rows per CPU second over the first batches that make up a tenth of all rows.
fn rate_of_tenth<'a>(batches: impl Iterator<Item = &'a (usize, f64)> + Clone) -> f64 {
    let all: usize = batches.clone().map(|b| b.0).sum();
    let (mut rows, mut seconds) = (0, 0.0);
    for b in batches {
        if rows * 10 >= all {
            break;
        }
        rows += b.0;
        seconds += b.1;
    }
    rows as f64 / f64::max(seconds, 1e-9)
}

pub(super) fn run(a: &BenchArgs) -> Result<()> {
    let load = Watch::start();
    let plan = Prepare::new(&a.tokenizer).inputs(&a.input).plan()?;
    let load = load.stop();
    let stages = plan.stages();
    console::note(&format!("engine {}", plan.tokenizer.engine()));
    // Stages, one thread.
    let mut seconds: Vec<(&str, f64)> = Vec::new();
    let w = Watch::start();
    let mut raw: Vec<RawRows> = Vec::new();
    for input in &plan.inputs {
        for b in input.open(0)? {
            raw.push(b?);
        }
    }
    seconds.push(("read", w.stop().1));
    let w = Watch::start();
    let conversations: Vec<_> = raw
        .iter()
        .flat_map(|b| {
            let rows = RowParser::new(b, &[]);
            (0..b.len()).filter_map(move |i| rows.parse(i, Vec::new()).conversation.ok())
        })
        .collect();
    seconds.push(("decode", w.stop().1));
    let mut spans = SpanFinder::new(
        stages.template,
        stages.control,
        plan.settings.special_text,
        plan.settings.lost_text,
    )
    .with_verbatim(stages.verbatim);
    let mut texts: Vec<Rendered> = Vec::with_capacity(conversations.len());
    let w = Watch::start();
    for c in &conversations {
        let mut r = Rendered::default();
        if spans.render_into(c, false, &mut r).is_ok() {
            texts.push(r);
        }
    }
    seconds.push(("render", w.stop().1));
    let bytes: usize = texts.iter().map(|t| t.text.len()).sum();
    let supervisor = Supervisor {
        tokenizer: stages.tokenizer,
        loss_on: plan.settings.loss_on,
        mask_id: plan.manifest.mask_token_id,
    };
    let mut sample = Sample::default();
    let (mut tokens, mut failed) = (0usize, 0usize);
    let w = Watch::start();
    for t in &texts {
        failed += usize::from(supervisor.encode(t, &mut sample).is_err());
        tokens += sample.ids.len();
    }
    seconds.push(("encode", w.stop().1));
    let mut ids = Vec::new();
    let w = Watch::start();
    for t in &texts {
        ids.clear();
        plan.tokenizer.encode(&t.text, &mut ids)?;
    }
    seconds.push(("engine alone", w.stop().1));
    drop(conversations);
    let mut processor = RowProcessor::new(&stages);
    let mut packer =
        Packer::new(plan.settings.seq_len, plan.settings.bd_size, plan.settings.pack_window);
    let mut rows = 0;
    // Rows and CPU seconds of each batch. As in a run, a batch is packed and its memory used again.
    let mut batches: Vec<(usize, f64)> = Vec::new();
    let mut packing = 0.0;
    let w = Watch::start();
    for (k, b) in raw.into_iter().enumerate() {
        let (n, began) = (b.len(), w.stop().1);
        let done = processor.process(k as u64, Cursor::default(), b, None)?;
        let processed = w.stop().1;
        for (_, input_ids, loss) in done.documents_from(BatchPosition::default()) {
            packer.push(DocumentTokens { input_ids, loss, source: 0 }, |_| -> Result<()> {
                rows += 1;
                Ok(())
            })?;
        }
        batches.push((n, processed - began));
        packing += w.stop().1 - processed;
    }
    seconds.push(("worker (decode to blocks)", batches.iter().map(|b| b.1).sum()));
    seconds.push(("pack", packing));
    let tenths = [rate_of_tenth(batches.iter()), rate_of_tenth(batches.iter().rev())];
    // Engine alone, N threads.
    let (threads, repeat) =
        (a.workers.unwrap_or(BENCH_WORKERS).max(1), a.repeat.unwrap_or(BENCH_REPEAT));
    let mut engine_wall = f64::MAX;
    for _ in 0..repeat {
        let w = Watch::start();
        std::thread::scope(|s| {
            for part in 0..threads {
                let (texts, tokenizer) = (&texts, &plan.tokenizer);
                s.spawn(move || {
                    let mut ids = Vec::new();
                    for t in texts.iter().skip(part).step_by(threads) {
                        ids.clear();
                        let _ = tokenizer.encode(&t.text, &mut ids);
                    }
                });
            }
        });
        engine_wall = engine_wall.min(w.stop().0);
    }
    drop(texts);
    // The pipeline, N workers.
    // a folder of its own inside the given one, since it is removed with all that is in it
    let dir = a.out.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("dlm-prep-bench-{}", std::process::id()));
    // Best wall times without and with packing and writing.
    let (mut process_wall, mut whole_wall, mut whole_cpu) = (f64::MAX, f64::MAX, 0.0);
    for _ in 0..repeat {
        let meter = Meter::default();
        let w = Watch::start();
        let streams = [InputStream { inputs: 0..plan.inputs.len(), from: Cursor::default() }];
        executor::run(&stages, &plan.inputs, &streams, threads, &meter, |feed| {
            while let Some(batch) = feed.next(0)? {
                feed.give_back(batch);
            }
            Ok(())
        })?;
        process_wall = process_wall.min(w.stop().0);
        let meter = Meter::default();
        // Removing the files of the last round is not part of a run.
        let _ = std::fs::remove_dir_all(&dir);
        let w = Watch::start();
        let mut sink = DatasetSink::open(&dir, plan.pack_job(), true)?;
        executor::run(&stages, &plan.inputs, &streams, threads, &meter, |feed| sink.consume(feed))?;
        sink.finish()?;
        let (wall, _, cpu) = w.stop();
        if wall < whole_wall {
            (whole_wall, whole_cpu) = (wall, cpu);
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    let mb = bytes as f64 / 1e6;
    let result = json!({"text_mb": mb, "tokens": tokens, "failed": failed, "threads": threads, "load_s": load.0, "load_cpu_s": load.2,
        "stage_cpu_s": seconds.iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<serde_json::Map<_, _>>(),
        "engine_mb_s": mb / engine_wall, "pipeline_mb_s": mb / process_wall, "whole_mb_s": mb / whole_wall, "whole_share_of_engine": engine_wall / whole_wall,
        "whole_mb_per_cpu_s": mb / whole_cpu, "tokens_per_s": tokens as f64 / whole_wall, "rows_per_cpu_s_first_tenth": tenths[0], "rows_per_cpu_s_last_tenth": tenths[1], "peak_memory_mb": peak_memory_mb()});
    if a.json {
        return console::print_json(&result);
    }
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{mb:.1} MB of text, {tokens} tokens; loaded in {:.2} s ({:.2} s CPU)",
        load.0, load.2
    );
    for (name, s) in &seconds {
        let _ = writeln!(out, "{name:<26} {s:8.3} s CPU  {:9.1} MB/s", mb / s.max(1e-9));
    }
    let _ = writeln!(
        out,
        "engine alone, {threads} threads    {engine_wall:8.3} s wall {:9.1} MB/s",
        mb / engine_wall
    );
    let _ = writeln!(
        out,
        "pipeline, {threads} workers         {process_wall:8.3} s wall {:9.1} MB/s",
        mb / process_wall
    );
    let _ = writeln!(
        out,
        "… and files                {whole_wall:8.3} s wall {:9.1} MB/s ({:.0} % of the engine), {:.1} MB per CPU second, {:.2} M tokens/s",
        mb / whole_wall,
        100.0 * engine_wall / whole_wall,
        mb / whole_cpu,
        tokens as f64 / whole_wall / 1e6
    );
    let _ = writeln!(
        out,
        "worker, by tenths          first {:.0}, last {:.0} rows per CPU second: last / first {:.3}",
        tenths[0],
        tenths[1],
        tenths[1] / tenths[0]
    );
    let _ = writeln!(
        out,
        "peak memory                {:8.0} MB (rows held in memory for the stages above)",
        peak_memory_mb()
    );
    console::print(&out)
}
