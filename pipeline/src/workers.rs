//! Threads around the stages.
//!
//! ```text
//! reader ─(batches, at most WINDOW under way)─▶ N workers ─▶ in-order consumer (packs and writes)
//! ```
//!
//! In: inputs and a position in them. Out: processed batches, in input order whatever the number of workers. The reader takes
//! a ticket per batch and the consumer gives it back, so that memory is bounded by the window and not by the slowest row.

use crate::block::Grid;
use crate::control::ControlText;
use crate::conversation::{self, Conversation, Drop};
use crate::error::{Error, Result};
use crate::linear::{CHECK_EVERY, Linear};
use crate::settings::Settings;
use crate::source::{self, Input, RawRows};
use crate::spans::{Fault, Rendered, SpanFinder};
use crate::supervise::{Sample, Supervisor};
use crate::table;
use crate::template::ChatTemplate;
use crate::tokenize::Tokenizer;
use crate::truncate;
use dlm_datasets::IGNORE;
use dlm_datasets::manifest::Manifest;
use dlm_datasets::verify::{RowSummary, summarize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the stages share.
pub struct Stages<'a> {
    /// Choices.
    pub settings: &'a Settings,
    /// Tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Control tokens.
    pub control: &'a ControlText,
    /// Template.
    pub template: &'a ChatTemplate,
    /// When rows need no render.
    pub linear: Option<&'a Linear>,
    /// Ids and policies, for counting.
    pub manifest: &'a Manifest,
}

/// Where a run stands in its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// Input file.
    pub file: usize,
    /// Rows of it that are done.
    pub row: u64,
}

/// One row, processed.
#[derive(Debug, Default)]
pub struct OutRow {
    /// Why it is left out, if it is.
    pub dropped: Option<Drop>,
    /// Index into the batch's keys.
    pub key: usize,
    /// Its documents' lengths and contents, in the batch's ids.
    pub documents: Vec<(usize, RowSummary)>,
    /// Tokens cut away.
    pub cut: u64,
    /// Longer than a row.
    pub over_long: bool,
    /// Control-token strings in its text.
    pub marked: bool,
    /// Turns with white space changed.
    pub respaced: u64,
    /// Turns rewritten by the template.
    pub rewritten: u64,
    /// Of what is said; taken only where it is needed.
    pub fingerprint: u128,
}

/// A batch, processed.
#[derive(Debug, Default)]
pub struct OutBatch {
    /// Position in the order of batches.
    pub number: u64,
    /// Where its first row stands.
    pub from: Cursor,
    /// Its rows.
    pub rows: Vec<OutRow>,
    /// The ids of all documents, one after another.
    pub ids: Vec<i32>,
    /// Their labels.
    pub labels: Vec<i32>,
    /// (category, licence) of rows.
    pub keys: Vec<(Option<String>, Option<String>)>,
    /// Bytes of rendered text.
    pub text_bytes: u64,
    /// Bytes read.
    pub raw_bytes: u64,
}

/// Counters for a progress display.
#[derive(Debug, Default)]
pub struct Meter {
    /// Rows done.
    pub rows: AtomicU64,
    /// Tokens done.
    pub tokens: AtomicU64,
    /// Rendered text.
    pub text_bytes: AtomicU64,
    /// Set to make the run stop.
    pub stop: AtomicBool,
}

/// Runs `inputs` from `from` on through the stages on `workers` threads; `consume` gets every batch in order and says whether to
/// go on.
pub fn run(
    stages: &Stages,
    inputs: &[Input],
    from: Cursor,
    workers: usize,
    meter: &Meter,
    mut consume: impl FnMut(OutBatch) -> Result<bool>,
) -> Result<()> {
    let workers = workers.max(1);
    let window = workers * 4 + 4;
    let (raw_in, raw_out) = crossbeam_channel::bounded::<(u64, Cursor, RawRows)>(workers * 2);
    let (done_in, done_out) = crossbeam_channel::bounded::<Result<OutBatch>>(window);
    let (ticket_in, ticket_out) = crossbeam_channel::bounded::<()>(window);
    for _ in 0..window {
        let _ = ticket_in.send(());
    }
    std::thread::scope(|scope| {
        let failed = done_in.clone();
        scope.spawn(move || {
            if let Err(e) = read(inputs, from, &raw_in, &ticket_out, meter) {
                let _ = failed.send(Err(e));
            }
        });
        for _ in 0..workers {
            let (raw_out, done_in) = (raw_out.clone(), done_in.clone());
            scope.spawn(move || {
                let mut worker = Worker::new(stages);
                for (number, from, raw) in raw_out {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        worker.process(number, from, raw)
                    }));
                    let done = done.unwrap_or_else(|_| {
                        Err(Error::Internal(format!(
                            "a worker failed on the rows after row {} of input {}",
                            from.row, from.file
                        )))
                    });
                    if done_in.send(done).is_err() {
                        return;
                    }
                }
            });
        }
        drop((raw_out, done_in));
        let mut waiting: BTreeMap<u64, OutBatch> = BTreeMap::new();
        let mut next = 0;
        let mut result = Ok(());
        'all: for batch in done_out.iter() {
            match batch {
                Ok(b) => waiting.insert(b.number, b),
                Err(e) => {
                    result = Err(e);
                    break;
                }
            };
            while let Some(b) = waiting.remove(&next) {
                next += 1;
                meter.rows.fetch_add(b.rows.len() as u64, Ordering::Relaxed);
                meter
                    .tokens
                    .fetch_add(b.ids.len() as u64, Ordering::Relaxed);
                meter.text_bytes.fetch_add(b.text_bytes, Ordering::Relaxed);
                match consume(b) {
                    Ok(true) => {}
                    Ok(false) => break 'all,
                    Err(e) => {
                        result = Err(e);
                        break 'all;
                    }
                }
                let _ = ticket_in.try_send(());
            }
        }
        // Whoever still waits for us finds the channels closed.
        drop((done_out, ticket_in));
        result
    })
}

fn read(
    inputs: &[Input],
    from: Cursor,
    out: &crossbeam_channel::Sender<(u64, Cursor, RawRows)>,
    tickets: &crossbeam_channel::Receiver<()>,
    meter: &Meter,
) -> Result<()> {
    let mut number = 0;
    for (file, input) in inputs.iter().enumerate().skip(from.file) {
        let mut row = if file == from.file { from.row } else { 0 };
        for batch in source::open(input, row)? {
            let batch = batch?;
            if meter.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let rows = batch.len() as u64;
            if tickets.recv().is_err() || out.send((number, Cursor { file, row }, batch)).is_err() {
                return Ok(()); // the consumer has had enough
            }
            number += 1;
            row += rows;
        }
    }
    Ok(())
}

/// One worker's tools and scratch memory.
pub struct Worker<'a> {
    settings: &'a Settings,
    manifest: &'a Manifest,
    spans: SpanFinder<'a>,
    supervisor: Supervisor<'a>,
    grid: Grid,
    rendered: Rendered,
    sample: Sample,
    wants_fingerprint: bool,
}

impl<'a> Worker<'a> {
    /// A worker on `stages`.
    pub fn new(stages: &Stages<'a>) -> Self {
        let (s, m) = (stages.settings, stages.manifest);
        let fill_id = match s.padding {
            dlm_datasets::manifest::Padding::Mask => m.mask_token_id,
            dlm_datasets::manifest::Padding::Eos => m.eos_token_id,
        };
        Worker {
            settings: s,
            manifest: m,
            spans: SpanFinder::new(stages.template, stages.control, s.special_text, s.lost_text)
                .with_linear(stages.linear),
            supervisor: Supervisor {
                tokenizer: stages.tokenizer,
                loss_on: s.loss_on,
                mask_id: m.mask_token_id,
            },
            grid: Grid {
                bd_size: s.bd_size,
                seq_len: s.seq_len,
                alignment: s.alignment,
                fill_id,
                pad_id: m.pad_token_id,
            },
            rendered: Rendered::default(),
            sample: Sample::default(),
            wants_fingerprint: s.dedup || s.eval_fraction > 0.0,
        }
    }

    /// All rows of a batch.
    pub fn process(&mut self, number: u64, from: Cursor, raw: RawRows) -> Result<OutBatch> {
        let n = raw.len();
        let mut out = OutBatch {
            number,
            from,
            rows: Vec::with_capacity(n),
            raw_bytes: raw.bytes() as u64,
            ..Default::default()
        };
        let tokens = raw.bytes() / 3;
        out.ids.reserve(tokens);
        out.labels.reserve(tokens);
        for i in 0..n {
            if let Some((index, of)) = self.settings.shard
                && (from.row + i as u64) % of != index
            {
                // Another machine's row; counted there.
                out.rows.push(OutRow {
                    key: usize::MAX,
                    ..Default::default()
                });
                continue;
            }
            let mut row = OutRow::default();
            let (category, licence, conversation) = decode(&raw, i);
            let key = (category, licence);
            row.key = out.keys.iter().position(|k| *k == key).unwrap_or_else(|| {
                out.keys.push(key);
                out.keys.len() - 1
            });
            let (ids, labels) = (out.ids.len(), out.labels.len());
            let check = (from.row + i as u64) % CHECK_EVERY == 0;
            let done = conversation
                .map_err(Fault::from)
                .and_then(|c| self.conversation(&c, check, &mut row, &mut out));
            if let Err(fault) = done {
                let Fault::Drop(why) = fault else {
                    return Err(Error::Unfit(format!(
                        "row {} of input {}: the template treats its text in a way that trying it out did not show; run again with --render each",
                        from.row + i as u64,
                        from.file
                    )));
                };
                out.ids.truncate(ids);
                out.labels.truncate(labels);
                row.documents.clear();
                row.cut = 0;
                row.dropped = Some(why);
            }
            out.rows.push(row);
        }
        Ok(out)
    }

    fn conversation(
        &mut self,
        c: &Conversation,
        check: bool,
        row: &mut OutRow,
        out: &mut OutBatch,
    ) -> std::result::Result<(), Fault> {
        let s = self.settings;
        if self.wants_fingerprint {
            row.fingerprint = conversation::fingerprint(c);
        }
        let rendered = &mut self.rendered;
        self.spans.render_into(c, check, rendered)?;
        out.text_bytes += rendered.text.len() as u64;
        row.marked = rendered.control.is_some();
        row.respaced = rendered.respaced;
        row.rewritten = rendered.rewritten;
        self.supervisor.encode(rendered, &mut self.sample)?;
        row.over_long = self.sample.ids.len() > s.seq_len;
        let (cuts, lost) = truncate::cut(
            &self.sample,
            s.over_long,
            s.seq_len,
            s.bd_size,
            s.split_context,
        )?;
        row.cut = lost as u64;
        for cut in cuts {
            let from = out.ids.len();
            out.ids
                .extend_from_slice(&self.sample.ids[cut.start..cut.end]);
            out.labels
                .extend_from_slice(&self.sample.labels[cut.start..cut.end]);
            out.labels[from..from + cut.context.max(1)].fill(IGNORE);
            // The last turn of this cut, for the `response` grid.
            let turn = self
                .sample
                .turns
                .iter()
                .rev()
                .find(|t| t.0 < cut.end)
                .map_or(0, |t| t.0.saturating_sub(cut.start));
            row.cut += self.grid.pad(&mut out.ids, &mut out.labels, from, turn) as u64;
            let summary = summarize(&out.ids[from..], &out.labels[from..], self.manifest);
            if summary.response_tokens == 0 {
                row.cut +=
                    (out.ids.len() - from) as u64 - summary.block_padding - cut.context as u64;
                out.ids.truncate(from);
                out.labels.truncate(from);
                continue;
            }
            row.documents.push((out.ids.len() - from, summary));
        }
        if row.documents.is_empty() {
            Err(Drop::NoLabel.into())
        } else {
            Ok(())
        }
    }
}

/// Category, licence and conversation of raw row `i`.
pub fn decode(
    raw: &RawRows,
    i: usize,
) -> (
    Option<String>,
    Option<String>,
    std::result::Result<Conversation, Drop>,
) {
    match raw {
        RawRows::Table(batch) => conversation::from_row(table::row(batch, i)),
        RawRows::Lines { bytes, ends } => {
            let from = if i == 0 { 0 } else { ends[i - 1] };
            let line = &bytes[from..ends[i]];
            if line.is_empty() {
                return (None, None, Err(Drop::LineTooLong));
            }
            let Ok(text) = std::str::from_utf8(line) else {
                return (None, None, Err(Drop::BadUtf8));
            };
            match serde_json::from_str::<serde_json::Value>(text) {
                Ok(serde_json::Value::Object(row)) => conversation::from_row(row),
                _ => (None, None, Err(Drop::BadJson)),
            }
        }
    }
}
