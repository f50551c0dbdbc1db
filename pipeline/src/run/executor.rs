//! Threads that read and process rows.
//!
//! ```text
//! one reader per stream ──raw batches──▶ N workers ──processed batches──▶ consumer (packs, writes)
//!          ▲                                                                 │
//!          └───────────────────── tickets, a window per stream ──────────────┘
//! ```
//!
//! In: inputs and a position in them. Out: processed batches, in input order for any number of
//! workers. A reader needs a ticket for every batch, and the consumer returns it; so memory is
//! bounded by the window, even if a single slow row holds up the order. A ticket stands for
//! [`TICKET_BYTES`]; a larger batch needs several, at most all of its stream, and then comes alone.

use crate::error::{Error, Result};
use crate::input::raw_rows::{BATCH_BYTES, RawRows};
use crate::input::source::Input;
use crate::run::batch::{Cursor, ProcessedBatch};
use crate::run::row_processor::{RowProcessor, Stages};
use crate::template::budget::spawn_scoped;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters of a run, and the flag that ends it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Rows processed so far.
    pub rows: AtomicU64,
    /// Tokens of their documents, block padding included.
    pub tokens: AtomicU64,
    /// Bytes of rendered text.
    pub text_bytes: AtomicU64,
    /// Set from outside to end the run with [`Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
}

/// Inputs that are read one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputStream {
    /// Range of the run's input files.
    pub inputs: std::ops::Range<usize>,
    /// The first row to read.
    pub from: Cursor,
}

/// Bytes of raw rows that a ticket stands for; most batches have less.
const TICKET_BYTES: u64 = 4 * BATCH_BYTES as u64;

/// Ids that the memory of a batch may have room for to be kept: 16 MiB.
const KEPT_IDS: usize = 4 << 20;

/// A batch on its way to a worker.
struct Raw {
    stream: usize,
    number: u64,
    from: Cursor,
    tickets: usize,
    rows: RawRows,
}

/// What a worker has made of it.
struct Done {
    stream: usize,
    tickets: usize,
    batch: ProcessedBatch,
}

/// The consumer's end: processed batches by stream, in order.
pub(crate) struct Feed<'a> {
    /// What the workers have made, in any order, or a failure.
    done: crossbeam_channel::Receiver<Result<Done>>,
    /// Per stream: returns tickets to its reader.
    tickets: Vec<crossbeam_channel::Sender<()>>,
    /// Per stream: batches that came before their turn.
    waiting: Vec<BTreeMap<u64, (ProcessedBatch, usize)>>,
    /// Per stream: number of the next batch.
    next: Vec<u64>,
    /// Per stream: number of its batches, once the reader has reached its end.
    ended: Vec<Option<u64>>,
    /// (stream, number of its batches) from the readers.
    ends: crossbeam_channel::Receiver<(usize, u64)>,
    /// Returns batches to the workers, which reuse their memory.
    used: crossbeam_channel::Sender<ProcessedBatch>,
    meter: &'a Meter,
}

impl Feed<'_> {
    /// The next batch of a stream; none at its end.
    pub(crate) fn next(&mut self, stream: usize) -> Result<Option<ProcessedBatch>> {
        loop {
            if let Some((b, tickets)) = self.waiting[stream].remove(&self.next[stream]) {
                self.next[stream] += 1;
                self.meter.rows.fetch_add(b.rows.len() as u64, Ordering::Relaxed);
                self.meter.tokens.fetch_add(b.ids.len() as u64, Ordering::Relaxed);
                self.meter.text_bytes.fetch_add(b.text_bytes, Ordering::Relaxed);
                for _ in 0..tickets {
                    let _ = self.tickets[stream].try_send(());
                }
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

    /// Returns a batch that was consumed; a worker reuses its memory, unless it has grown large.
    pub(crate) fn give_back(&self, batch: ProcessedBatch) {
        if batch.ids.capacity() <= KEPT_IDS {
            let _ = self.used.try_send(batch);
        }
    }

    fn take(&mut self, batch: Option<Result<Done>>) -> Result<()> {
        match batch {
            Some(Ok(Done { stream, tickets, batch })) => {
                self.waiting[stream].insert(batch.number, (batch, tickets));
                Ok(())
            }
            Some(Err(e)) => Err(e),
            // All workers have ended; no batch will come any more.
            None => {
                while let Ok((s, n)) = self.ends.try_recv() {
                    self.ended[s] = Some(n);
                }
                match (0..self.next.len()).find(|&s| self.ended[s].is_none()) {
                    Some(s) => Err(Error::Internal(format!("stream {s} ended without a report"))),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Processes streams of `inputs` on `workers` threads. `consume` runs on the calling thread and
/// takes batches from the streams in the order it chooses.
pub(crate) fn run<T>(
    stages: &Stages,
    inputs: &[Input],
    streams: &[InputStream],
    workers: usize,
    meter: &Meter,
    consume: impl FnOnce(&mut Feed) -> Result<T>,
) -> Result<T> {
    let workers = workers.max(1);
    let window = workers * 4 + 4;
    let (raw_in, raw_out) = crossbeam_channel::bounded::<Raw>(workers * 2);
    // Room for one batch per ticket and one failure per thread, so that no worker ever waits for
    // the consumer.
    let (done_in, done) =
        crossbeam_channel::bounded(window * streams.len() + workers + streams.len());
    let (ends_in, ends) = crossbeam_channel::bounded(streams.len());
    let (used_in, used) = crossbeam_channel::bounded::<ProcessedBatch>(window);
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
                let read = std::panic::AssertUnwindSafe(|| {
                    read(inputs, k, stream, &raw_in, (&ticket_out, window), meter)
                });
                // A panic in a decoder becomes an error of the run.
                std::panic::catch_unwind(read)
                    .unwrap_or_else(|_| Err(Error::Internal("reading an input".to_string())))
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
            let worker = move || {
                let mut processor = RowProcessor::new(stages);
                for Raw { stream, number, from, tickets, rows } in raw_out {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        processor.process(number, from, rows, used.try_recv().ok())
                    }));
                    let done = done.unwrap_or_else(|_| {
                        Err(Error::Internal(format!(
                            "a worker failed on the rows after row {} of {}",
                            from.row,
                            inputs[from.file].path.display()
                        )))
                    });
                    let done = done.map(|batch| Done { stream, tickets, batch });
                    if done_in.send(done).is_err() {
                        return;
                    }
                }
            };
            spawn_scoped(scope, worker).map_err(Error::io("starting", "a thread"))?;
        }
        drop((raw_out, done_in, used));
        let n = streams.len();
        let waiting = (0..n).map(|_| BTreeMap::new()).collect();
        let mut feed = Feed {
            done,
            tickets,
            waiting,
            next: vec![0; n],
            ended: vec![None; n],
            ends,
            used: used_in,
            meter,
        };
        // The feed is dropped here; threads that still wait for it then find their channels closed.
        consume(&mut feed)
    })
}

/// Reads a stream. Returns the number of its batches, or none if the consumer has ended first.
fn read(
    inputs: &[Input],
    k: usize,
    stream: &InputStream,
    out: &crossbeam_channel::Sender<Raw>,
    (tickets, window): (&crossbeam_channel::Receiver<()>, usize),
    meter: &Meter,
) -> Result<Option<u64>> {
    let mut number = 0;
    for file in stream.inputs.clone().filter(|f| *f >= stream.from.file) {
        let mut row = if file == stream.from.file { stream.from.row } else { 0 };
        for batch in inputs[file].open(row)? {
            let batch = batch?;
            if meter.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let rows = batch.len() as u64;
            let needed = (batch.bytes().div_ceil(TICKET_BYTES).max(1) as usize).min(window);
            if (0..needed).any(|_| tickets.recv().is_err()) {
                return Ok(None);
            }
            let from = Cursor { file, row };
            let raw = Raw { stream: k, number, from, tickets: needed, rows: batch };
            if out.send(raw).is_err() {
                return Ok(None);
            }
            number += 1;
            row += rows;
        }
    }
    Ok(Some(number))
}
