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
use crate::conversation::{self, Conversation, Drop, Read};
use crate::direct;
use crate::error::{Error, Result};
use crate::linear::{CHECK_EVERY, Linear};
use crate::settings::Settings;
use crate::source::{self, Input, RawRows};
use crate::spans::{Fault, Rendered, SpanFinder};
use crate::supervise::{Sample, Supervisor};
use crate::table;
use crate::template::ChatTemplate;
use crate::tokenize::Tokenizer;
use crate::truncate::{self, Cut};
use dlm_datasets::manifest::Manifest;
use dlm_datasets::verify::{RowSummary, summarize_runs};
use dlm_datasets::writer::LossRun;
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
    /// Inputs, for their columns' names.
    pub inputs: &'a [Input],
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
    /// How many of the batch's documents are its.
    pub documents: usize,
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

/// A document of a batch.
#[derive(Debug)]
pub struct OutDocument {
    /// Tokens, padding included.
    pub tokens: usize,
    /// Runs of loss.
    pub runs: usize,
    /// What it holds.
    pub summary: RowSummary,
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
    /// The documents of all rows, in order.
    pub documents: Vec<OutDocument>,
    /// Their ids, one after another.
    pub ids: Vec<i32>,
    /// Where they carry loss, each counted from its own start.
    pub loss: Vec<LossRun>,
    /// (category, licence) of rows.
    pub keys: Vec<(Option<String>, Option<String>)>,
    /// Bytes of rendered text.
    pub text_bytes: u64,
    /// Bytes read.
    pub raw_bytes: u64,
}

impl OutBatch {
    /// Empties it, keeping its memory.
    fn clear(&mut self) {
        self.rows.clear();
        self.documents.clear();
        self.ids.clear();
        self.loss.clear();
        self.keys.clear();
        self.text_bytes = 0;
    }

    /// The documents behind a place, with their ids and loss.
    pub fn documents_from(&self, mut at: Place) -> impl Iterator<Item = (&OutDocument, &[i32], &[LossRun])> {
        self.documents[at.documents..].iter().map(move |d| {
            let found = (d, &self.ids[at.ids..at.ids + d.tokens], &self.loss[at.runs..at.runs + d.runs]);
            at.pass(d);
            found
        })
    }
}

/// A place in a batch: how much of it lies before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// Documents.
    pub documents: usize,
    /// Ids.
    pub ids: usize,
    /// Runs of loss.
    pub runs: usize,
}

impl Place {
    /// Steps over `d`.
    pub fn pass(&mut self, d: &OutDocument) {
        self.documents += 1;
        self.ids += d.tokens;
        self.runs += d.runs;
    }
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

/// Inputs that are read one after another, and where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Numbers of its inputs.
    pub inputs: std::ops::Range<usize>,
    /// Where to begin.
    pub from: Cursor,
}

/// Processed batches, by stream, in order.
pub struct Feed<'a> {
    done: crossbeam_channel::Receiver<Result<(usize, OutBatch)>>,
    tickets: Vec<crossbeam_channel::Sender<()>>,
    waiting: Vec<BTreeMap<u64, OutBatch>>,
    next: Vec<u64>,
    ended: Vec<Option<u64>>,
    ends: crossbeam_channel::Receiver<(usize, u64)>,
    used: crossbeam_channel::Sender<OutBatch>,
    meter: &'a Meter,
}

impl Feed<'_> {
    /// The next batch of a stream; none at its end.
    pub fn next(&mut self, stream: usize) -> Result<Option<OutBatch>> {
        loop {
            if let Some(b) = self.waiting[stream].remove(&self.next[stream]) {
                self.next[stream] += 1;
                self.meter.rows.fetch_add(b.rows.len() as u64, Ordering::Relaxed);
                self.meter.tokens.fetch_add(b.ids.len() as u64, Ordering::Relaxed);
                self.meter.text_bytes.fetch_add(b.text_bytes, Ordering::Relaxed);
                let _ = self.tickets[stream].try_send(());
                return Ok(Some(b));
            }
            if self.ended[stream].is_some_and(|n| self.next[stream] >= n) {
                return Ok(None);
            }
            crossbeam_channel::select! {
                recv(self.ends) -> end => match end {
                    Ok((s, n)) => self.ended[s] = Some(n),
                    Err(_) => self.take(self.done.recv().ok())?,
                },
                recv(self.done) -> batch => self.take(batch.ok())?,
            }
        }
    }

    /// Gives back a batch that is done with, for its memory.
    pub fn give_back(&self, batch: OutBatch) {
        let _ = self.used.try_send(batch);
    }

    fn take(&mut self, batch: Option<Result<(usize, OutBatch)>>) -> Result<()> {
        match batch {
            Some(Ok((s, b))) => {
                self.waiting[s].insert(b.number, b);
                Ok(())
            }
            Some(Err(e)) => Err(e),
            // Everyone has gone: what has not come will not come.
            None => {
                while let Ok((s, n)) = self.ends.try_recv() {
                    self.ended[s] = Some(n);
                }
                match (0..self.next.len()).find(|&s| self.ended[s].is_none()) {
                    Some(s) => Err(Error::Internal(format!("stream {s} ended without saying so"))),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Runs streams of `inputs` through the stages on `workers` threads; `consume` pulls batches from whichever stream it wants.
pub fn run<T>(
    stages: &Stages,
    inputs: &[Input],
    streams: &[Stream],
    workers: usize,
    meter: &Meter,
    consume: impl FnOnce(&mut Feed) -> Result<T>,
) -> Result<T> {
    let workers = workers.max(1);
    let window = workers * 4 + 4;
    let (raw_in, raw_out) = crossbeam_channel::bounded::<(usize, u64, Cursor, RawRows)>(workers * 2);
    // Room for every ticket and a failure of every thread, so that no worker ever waits for the consumer.
    let (done_in, done) = crossbeam_channel::bounded(window * streams.len() + workers + streams.len());
    let (ends_in, ends) = crossbeam_channel::bounded(streams.len());
    let (used_in, used) = crossbeam_channel::bounded::<OutBatch>(window);
    let mut tickets = Vec::new();
    std::thread::scope(|scope| {
        for (k, stream) in streams.iter().enumerate() {
            let (ticket_in, ticket_out) = crossbeam_channel::bounded::<()>(window);
            for _ in 0..window {
                let _ = ticket_in.send(());
            }
            tickets.push(ticket_in);
            let (raw_in, failed, ends_in) = (raw_in.clone(), done_in.clone(), ends_in.clone());
            let reading = move || {
                let read = std::panic::AssertUnwindSafe(|| read(inputs, k, stream, &raw_in, &ticket_out, meter));
                // A decoder's bug is an error of this run, not the end of the thread.
                std::panic::catch_unwind(read).unwrap_or_else(|_| Err(Error::Internal("reading an input".to_string())))
            };
            scope.spawn(move || match reading() {
                Ok(Some(n)) => drop(ends_in.send((k, n))),
                Ok(None) => {}
                Err(e) => drop(failed.send(Err(e))),
            });
        }
        drop((raw_in, ends_in));
        for _ in 0..workers {
            let (raw_out, done_in, used) = (raw_out.clone(), done_in.clone(), used.clone());
            scope.spawn(move || {
                let mut worker = Worker::new(stages);
                for (stream, number, from, raw) in raw_out {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.process(number, from, raw, used.try_recv().ok())));
                    let done = done.unwrap_or_else(|_| {
                        Err(Error::Internal(format!("a worker failed on the rows after row {} of input {}", from.row, from.file)))
                    });
                    if done_in.send(done.map(|b| (stream, b))).is_err() {
                        return;
                    }
                }
            });
        }
        drop((raw_out, done_in, used));
        let n = streams.len();
        let waiting = (0..n).map(|_| BTreeMap::new()).collect();
        let mut feed = Feed { done, tickets, waiting, next: vec![0; n], ended: vec![None; n], ends, used: used_in, meter };
        // When the feed is dropped, whoever still waits for us finds the channels closed.
        consume(&mut feed)
    })
}

/// Reads a stream; the number of batches, or none if the consumer has had enough.
fn read(
    inputs: &[Input],
    k: usize,
    stream: &Stream,
    out: &crossbeam_channel::Sender<(usize, u64, Cursor, RawRows)>,
    tickets: &crossbeam_channel::Receiver<()>,
    meter: &Meter,
) -> Result<Option<u64>> {
    let mut number = 0;
    for file in stream.inputs.clone().filter(|f| *f >= stream.from.file) {
        let mut row = if file == stream.from.file { stream.from.row } else { 0 };
        for batch in source::open(&inputs[file], row)? {
            let batch = batch?;
            if meter.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let rows = batch.len() as u64;
            if tickets.recv().is_err() || out.send((k, number, Cursor { file, row }, batch)).is_err() {
                return Ok(None);
            }
            number += 1;
            row += rows;
        }
    }
    Ok(Some(number))
}

/// One worker's tools and scratch memory.
pub struct Worker<'a> {
    settings: &'a Settings,
    manifest: &'a Manifest,
    inputs: &'a [Input],
    spans: SpanFinder<'a>,
    supervisor: Supervisor<'a>,
    grid: Grid,
    rendered: Rendered,
    sample: Sample,
    cuts: Vec<Cut>,
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
            inputs: stages.inputs,
            spans: SpanFinder::new(stages.template, stages.control, s.special_text, s.lost_text).with_linear(stages.linear),
            supervisor: Supervisor { tokenizer: stages.tokenizer, loss_on: s.loss_on, mask_id: m.mask_token_id },
            grid: Grid { bd_size: s.bd_size, seq_len: s.seq_len, alignment: s.alignment, fill_id, pad_id: m.pad_token_id },
            rendered: Rendered::default(),
            sample: Sample::default(),
            cuts: Vec::new(),
            wants_fingerprint: s.dedup || s.eval_fraction > 0.0,
        }
    }

    /// All rows of a batch, in the memory of one that is done with.
    pub fn process(&mut self, number: u64, from: Cursor, raw: RawRows, used: Option<OutBatch>) -> Result<OutBatch> {
        let n = raw.len();
        let mut out = used.unwrap_or_default();
        out.clear();
        (out.number, out.from, out.raw_bytes) = (number, from, raw.bytes() as u64);
        let raw = Rows::new(&raw, self.inputs.get(from.file).map_or(&[][..], |i| &i.columns));
        for i in 0..n {
            if let Some((index, of)) = self.settings.shard
                && (from.row + i as u64) % of != index
            {
                // Another machine's row; counted there.
                out.rows.push(OutRow { key: usize::MAX, ..Default::default() });
                continue;
            }
            let mut row = OutRow::default();
            let (category, licence, conversation) = raw.decode(i);
            let key = (category.as_deref(), licence.as_deref());
            row.key = out.keys.iter().position(|k| (k.0.as_deref(), k.1.as_deref()) == key).unwrap_or_else(|| {
                out.keys.push((key.0.map(String::from), key.1.map(String::from)));
                out.keys.len() - 1
            });
            let (ids, loss, documents) = (out.ids.len(), out.loss.len(), out.documents.len());
            let check = (from.row + i as u64) % CHECK_EVERY == 0;
            let done = conversation.map_err(Fault::from).and_then(|c| self.conversation(&c, check, &mut row, &mut out));
            if let Err(fault) = done {
                let Fault::Drop(why) = fault else {
                    return Err(Error::Unfit(format!(
                        "row {} of input {}: the template treats its text in a way that trying it out did not show; run again with --render each",
                        from.row + i as u64,
                        from.file
                    )));
                };
                out.ids.truncate(ids);
                out.loss.truncate(loss);
                out.documents.truncate(documents);
                row.cut = 0;
                row.dropped = Some(why);
            }
            row.documents = out.documents.len() - documents;
            out.rows.push(row);
        }
        Ok(out)
    }

    fn conversation(&mut self, c: &Conversation, check: bool, row: &mut OutRow, out: &mut OutBatch) -> std::result::Result<(), Fault> {
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
        let lost = truncate::cut(&self.sample, s.over_long, s.seq_len, s.bd_size, s.split_context, &mut self.cuts)?;
        row.cut = lost as u64;
        let documents = out.documents.len();
        for cut in &self.cuts {
            let (from, runs) = (out.ids.len(), out.loss.len());
            out.ids.extend_from_slice(&self.sample.ids[cut.start..cut.end]);
            // The last turn of this cut, for the `response` grid.
            let turn = self.sample.turns.iter().rev().find(|t| t.0 < cut.end).map_or(0, |t| t.0.saturating_sub(cut.start));
            let beyond = self.grid.pad(&mut out.ids, from, turn);
            row.cut += beyond as u64;
            // What is context, or nothing precedes, carries no loss.
            let (first, end) = (cut.start + cut.context.max(1), cut.end - beyond);
            let runs_of = self.sample.loss.iter().map(|r| ((r.0 as usize).max(first), (r.1 as usize).min(end)));
            out.loss.extend(runs_of.filter(|r| r.0 < r.1).map(|r| ((r.0 - cut.start) as u32, (r.1 - cut.start) as u32)));
            let summary = summarize_runs(&out.ids[from..], &out.loss[runs..], self.manifest);
            if summary.response_tokens == 0 {
                row.cut += (out.ids.len() - from) as u64 - summary.block_padding - cut.context as u64;
                out.ids.truncate(from);
                continue;
            }
            out.documents.push(OutDocument { tokens: out.ids.len() - from, runs: out.loss.len() - runs, summary });
        }
        if out.documents.len() == documents { Err(Drop::NoLabel.into()) } else { Ok(()) }
    }
}

/// Raw rows, decoded the short way where they allow it.
pub struct Rows<'a> {
    raw: &'a RawRows,
    columns: &'a [(String, String)],
    direct: Option<direct::Columns<'a>>,
}

impl<'a> Rows<'a> {
    /// `columns` gives (our name, the file's name) where they differ.
    pub fn new(raw: &'a RawRows, columns: &'a [(String, String)]) -> Self {
        let direct = match raw {
            RawRows::Table(batch) if columns.is_empty() => direct::Columns::new(batch),
            _ => None,
        };
        Rows { raw, columns, direct }
    }

    /// Whether its columns have a shape that is read straight.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Category, licence and conversation of row `i`.
    pub fn decode(&self, i: usize) -> Read<'a> {
        let short = match (self.raw, &self.direct) {
            (RawRows::Table(_), Some(d)) => d.read(i),
            (RawRows::Lines { .. }, _) if self.columns.is_empty() => {
                self.raw.line(i).and_then(|l| std::str::from_utf8(l).ok()).and_then(direct::line)
            }
            _ => None,
        };
        short.unwrap_or_else(|| decode(self.raw, i, self.columns))
    }
}

/// The long way, and the definition: category, licence and conversation of raw row `i`; `columns` gives (our name, the file's name) where they differ.
pub fn decode(raw: &RawRows, i: usize, columns: &[(String, String)]) -> Read<'static> {
    let mut row = match raw {
        RawRows::Table(batch) => table::row(batch, i),
        RawRows::Lines { .. } => {
            let Some(line) = raw.line(i) else {
                return (None, None, Err(Drop::LineTooLong));
            };
            let Ok(text) = std::str::from_utf8(line) else {
                return (None, None, Err(Drop::BadUtf8));
            };
            match serde_json::from_str::<serde_json::Value>(text) {
                Ok(serde_json::Value::Object(row)) => row,
                _ => return (None, None, Err(Drop::BadJson)),
            }
        }
    };
    if !columns.is_empty() {
        let mut renamed = serde_json::Map::new();
        for (ours, theirs) in columns {
            renamed.insert(ours.clone(), row.remove(theirs).unwrap_or(serde_json::Value::Null));
        }
        // What is not named keeps its name only where it cannot be taken for something else.
        for k in ["category", "license", "licence"] {
            if let (Some(v), false) = (row.remove(k), renamed.contains_key(k)) {
                renamed.insert(k.to_string(), v);
            }
        }
        row = renamed;
    }
    conversation::from_row(row)
}
