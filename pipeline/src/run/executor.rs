//! Threads around the stages.
//!
//! ```text
//! reader ─(batches, at most WINDOW under way)─▶ N workers ─▶ in-order consumer (packs and writes)
//! ```
//!
//! In: inputs and a position in them. Out: processed batches, in input order whatever the number of
//! workers. The reader takes a ticket per batch and the consumer gives it back, so that memory is
//! bounded by the window and not by the slowest row.

use crate::error::{Error, Result};
use crate::input::source::{self, Input, RawRows};
use crate::run::batch::{Cursor, ProcessedBatch};
use crate::run::row_processor::{RowProcessor, Stages};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
pub struct InputStream {
    /// Numbers of its inputs.
    pub inputs: std::ops::Range<usize>,
    /// Where to begin.
    pub from: Cursor,
}

/// Processed batches, by stream, in order.
pub struct Feed<'a> {
    done: crossbeam_channel::Receiver<Result<(usize, ProcessedBatch)>>,
    tickets: Vec<crossbeam_channel::Sender<()>>,
    waiting: Vec<BTreeMap<u64, ProcessedBatch>>,
    next: Vec<u64>,
    ended: Vec<Option<u64>>,
    ends: crossbeam_channel::Receiver<(usize, u64)>,
    used: crossbeam_channel::Sender<ProcessedBatch>,
    meter: &'a Meter,
}

impl Feed<'_> {
    /// The next batch of a stream; none at its end.
    pub fn next(&mut self, stream: usize) -> Result<Option<ProcessedBatch>> {
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
    pub fn give_back(&self, batch: ProcessedBatch) {
        let _ = self.used.try_send(batch);
    }

    fn take(&mut self, batch: Option<Result<(usize, ProcessedBatch)>>) -> Result<()> {
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

/// Runs streams of `inputs` through the stages on `workers` threads; `consume` pulls batches from
/// whichever stream it wants.
pub fn run<T>(
    stages: &Stages,
    inputs: &[Input],
    streams: &[InputStream],
    workers: usize,
    meter: &Meter,
    consume: impl FnOnce(&mut Feed) -> Result<T>,
) -> Result<T> {
    let workers = workers.max(1);
    let window = workers * 4 + 4;
    let (raw_in, raw_out) =
        crossbeam_channel::bounded::<(usize, u64, Cursor, RawRows)>(workers * 2);
    // Room for every ticket and a failure of every thread, so that no worker ever waits for the
    // consumer.
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
                    read(inputs, k, stream, &raw_in, &ticket_out, meter)
                });
                // A decoder's bug is an error of this run, not the end of the thread.
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
            scope.spawn(move || {
                let mut worker = RowProcessor::new(stages);
                for (stream, number, from, raw) in raw_out {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        worker.process(number, from, raw, used.try_recv().ok())
                    }));
                    let done = done.unwrap_or_else(|_| {
                        Err(Error::Internal(format!(
                            "a worker failed on the rows after row {} of input {}",
                            from.row, from.file
                        )))
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
        // When the feed is dropped, whoever still waits for us finds the channels closed.
        consume(&mut feed)
    })
}

/// Reads a stream; the number of batches, or none if the consumer has had enough.
fn read(
    inputs: &[Input],
    k: usize,
    stream: &InputStream,
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
            if tickets.recv().is_err()
                || out.send((k, number, Cursor { file, row }, batch)).is_err()
            {
                return Ok(None);
            }
            number += 1;
            row += rows;
        }
    }
    Ok(Some(number))
}
