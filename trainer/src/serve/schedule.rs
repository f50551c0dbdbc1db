//! The thread that owns the model: it runs the rows of all requests as one continuous batch.
//!
//! In: [`Command`]s with rows to decode, in the order in which their requests came. Out: parts in
//! the requests' outboxes. A row whose request was cancelled leaves before the next step, in the
//! queue as well as in the batch. A failure of the model ends the rows of the batch, and the next
//! row begins with an empty one.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError};

use super::metrics::{Metrics, Stage};
use super::outbox::{Outbox, Part, Reason, TokenText};
use super::refusal::Refusal;
use super::text::RowText;
use crate::decode::continuous::{Continuous, RowId};
use crate::decode::prompt::PromptCodec;
use crate::decode::{Decided, Engine, Event, FinishReason, Request};
use crate::error::{Error, Result};
use crate::report::console;

/// What decodes rows: the model, or a stand-in of the tests.
pub(super) trait Rows {
    /// Takes a row in; its first step is the next one.
    fn add(&mut self, request: Request) -> Result<RowId>;
    fn remove(&mut self, row: RowId);
    fn step(&mut self) -> Result<Vec<Event>>;
    fn free_slots(&self) -> usize;
    fn is_empty(&self) -> bool;
    /// Forgets all rows after a failure.
    fn clear(&mut self);
}

/// The model with its continuous batch.
pub(super) struct ModelRows {
    engine: Engine,
    rows: Continuous,
    slots: usize,
    longest: usize,
}

impl ModelRows {
    pub(super) fn new(engine: Engine, slots: usize, longest: usize) -> Self {
        ModelRows { engine, rows: Continuous::new(slots, longest), slots, longest }
    }
}

impl Rows for ModelRows {
    fn add(&mut self, request: Request) -> Result<RowId> {
        self.rows.add(&self.engine, request)
    }

    fn remove(&mut self, row: RowId) {
        self.rows.remove(row);
    }

    fn step(&mut self) -> Result<Vec<Event>> {
        self.rows.step(&mut self.engine)
    }

    fn free_slots(&self) -> usize {
        self.rows.free_slots()
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn clear(&mut self) {
        self.rows = Continuous::new(self.slots, self.longest);
    }
}

/// Rows that are in the queue or the batch, over all requests. A row holds its place until it is
/// dropped.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

/// The place of one row.
pub(super) struct Place(Arc<AtomicUsize>);

impl Places {
    /// Places for `count` rows, or none at all if more than `most` would be taken.
    pub(super) fn take(&self, count: usize, most: usize) -> Option<Vec<Place>> {
        let add = |taken: usize| taken.checked_add(count).filter(|sum| *sum <= most);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some((0..count).map(|_| Place(self.0.clone())).collect())
    }

    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One choice of a request.
pub(super) struct Job {
    pub request: Request,
    /// Tokens after which the choice ends.
    pub max_tokens: usize,
    pub stops: Vec<String>,
    /// Whether each token is told with its probability.
    pub logprobs: bool,
    pub choice: usize,
    pub outbox: Arc<Outbox>,
    pub came: Instant,
    /// Whether the request knows how the choice ended.
    pub is_over: bool,
    pub _place: Place,
}

impl Job {
    /// Ends the whole request: its other choices leave before the next step.
    fn fail(&mut self, refusal: Refusal) {
        self.is_over = true;
        self.outbox.cancel();
        self.outbox.push(Part::Failed(refusal));
    }
}

impl Drop for Job {
    /// Nobody waits for a choice that is gone, whatever ended the thread.
    fn drop(&mut self) {
        if !self.is_over && !self.outbox.is_cancelled() {
            self.fail(Refusal::failed(
                "the model's thread has ended; the server must be started again",
            ));
        }
    }
}

/// What the thread is told.
pub(super) enum Command {
    /// Rows to decode.
    Decode(Vec<Job>),
    /// End every row with this refusal, and the thread.
    EndAll(Refusal),
}

/// A row in the batch.
struct Live {
    job: Job,
    text: RowText,
    /// Tokens told so far.
    tokens: usize,
    /// The pass that decided the last of them.
    passes: usize,
}

/// The state of the thread.
struct Schedule<'a, R: Rows> {
    rows: R,
    queue: VecDeque<Job>,
    live: HashMap<RowId, Live>,
    codec: Arc<PromptCodec>,
    metrics: &'a Metrics,
}

/// Runs rows until [`Command::EndAll`], or until the senders of commands are gone.
pub(super) fn run(
    rows: impl Rows,
    commands: &Receiver<Command>,
    codec: Arc<PromptCodec>,
    metrics: &Metrics,
) {
    let (queue, live) = (VecDeque::new(), HashMap::new());
    let mut schedule = Schedule { rows, queue, live, codec, metrics };
    loop {
        let is_idle = schedule.queue.is_empty() && schedule.live.is_empty();
        let next = match is_idle {
            true => commands.recv().map_err(|_| TryRecvError::Disconnected),
            false => commands.try_recv(),
        };
        match next {
            Ok(Command::Decode(jobs)) => {
                schedule.queue.extend(jobs);
                schedule.count();
                continue;
            }
            Ok(Command::EndAll(refusal)) => return schedule.end_all(&refusal),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {}
        }
        schedule.drop_cancelled();
        schedule.fill();
        schedule.step();
    }
}

impl<R: Rows> Schedule<'_, R> {
    fn end_all(&mut self, refusal: &Refusal) {
        for (_, live) in self.live.drain() {
            live.fail(refusal.clone());
        }
        for mut job in self.queue.drain(..) {
            job.fail(refusal.clone());
        }
        self.count();
    }

    fn drop_cancelled(&mut self) {
        self.queue.retain(|job| !job.outbox.is_cancelled());
        let rows = &mut self.rows;
        self.live.retain(|id, live| {
            let stays = !live.job.outbox.is_cancelled();
            if !stays {
                rows.remove(*id);
            }
            stays
        });
    }

    /// Fills free slots from the queue.
    fn fill(&mut self) {
        while self.rows.free_slots() > 0
            && let Some(mut job) = self.queue.pop_front()
        {
            if job.outbox.is_cancelled() {
                continue;
            }
            let request = Request { prompt: Vec::new(), ..job.request.clone() };
            let request = std::mem::replace(&mut job.request, request);
            match self.rows.add(request) {
                Ok(id) => {
                    self.metrics.seconds(Stage::Queue, job.came.elapsed());
                    let stops = std::mem::take(&mut job.stops);
                    let text = RowText::new(&self.codec, stops, job.logprobs);
                    self.live.insert(id, Live { job, text, tokens: 0, passes: 0 });
                }
                Err(error) => {
                    let refusal = match &error {
                        Error::Usage(what) => Refusal::field("prompt", what.clone()),
                        other => self.failed(other),
                    };
                    job.fail(refusal);
                }
            }
        }
        self.count();
    }

    fn count(&self) {
        self.metrics.set_rows(self.queue.len(), self.live.len());
    }

    /// Runs one step and tells what it decided.
    fn step(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        let started = Instant::now();
        self.metrics.step_begins();
        let stepped = std::panic::catch_unwind(AssertUnwindSafe(|| self.rows.step()));
        self.metrics.step_ends(matches!(stepped, Ok(Ok(_))));
        self.metrics.seconds(Stage::Step, started.elapsed());
        let events = match stepped {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return self.fail(&error),
            Err(panic) => {
                let what = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without a message");
                let error = Error::Device(format!("the forward pass failed: {what}"));
                return self.fail(&error);
            }
        };
        // how many passes a row took in all is known once it has ended
        for event in &events {
            if let Event::Finished { row, sequence } = event
                && let Some(live) = self.live.get_mut(row)
            {
                live.passes = sequence.passes.total();
            }
        }
        for event in events {
            match event {
                Event::Tokens { row, ids, decided } => {
                    if self.tell(row, &ids, &decided) {
                        self.rows.remove(row);
                    }
                }
                Event::Finished { row, sequence } => {
                    let reason = match sequence.finish_reason {
                        FinishReason::Length => Reason::Length,
                        _ => Reason::Stop,
                    };
                    if let Some(live) = self.live.remove(&row) {
                        live.end(reason, self.metrics);
                    }
                }
            }
        }
        self.count();
    }

    /// Tells the tokens of a row. True where the row's limit or a stop ends it with them.
    fn tell(&mut self, row: RowId, ids: &[i64], decided: &[Decided]) -> bool {
        let Some(live) = self.live.get_mut(&row) else { return false };
        if live.tokens == 0 {
            self.metrics.seconds(Stage::FirstToken, live.job.came.elapsed());
        }
        let before = live.tokens;
        let told = live.tell(ids, decided);
        self.metrics.tokens(live.tokens - before);
        match told {
            Ok(None) => false,
            Ok(Some(reason)) => {
                if let Some(live) = self.live.remove(&row) {
                    live.end(reason, self.metrics);
                }
                true
            }
            Err(error) => {
                console::message(format_args!("dlm-train: {error}"));
                if let Some(live) = self.live.remove(&row) {
                    live.fail(Refusal::failed("the tokenizer could not decode the answer"));
                }
                true
            }
        }
    }

    /// Ends the rows of the batch after a failure of the model.
    fn fail(&mut self, error: &Error) {
        let refusal = self.failed(error);
        self.rows.clear();
        for (_, live) in self.live.drain() {
            live.fail(refusal.clone());
        }
        self.count();
    }

    /// Notes a failure of the model.
    fn failed(&self, error: &Error) -> Refusal {
        console::message(format_args!("dlm-train: the model failed: {error}"));
        self.metrics.fails(error.to_string());
        Refusal::failed(format!("the model failed: {error}"))
    }
}

impl Live {
    /// Tells tokens up to the one that ends the row, if one does.
    fn tell(&mut self, ids: &[i64], decided: &[Decided]) -> Result<Option<Reason>> {
        let (mut text, mut tokens, mut ended) = (String::new(), Vec::new(), None);
        for (id, decided) in ids.iter().zip(decided) {
            self.tokens += 1;
            self.passes = self.passes.max(decided.pass);
            if self.job.request.stop_ids.contains(id) {
                ended = Some(Reason::Stop);
                break;
            }
            let piece = self.text.push(*id, decided.probability.ln())?;
            text.push_str(&piece.text);
            tokens.extend(piece.tokens);
            if piece.stopped {
                ended = Some(Reason::Stop);
            } else if self.tokens >= self.job.max_tokens {
                ended = Some(Reason::Length);
            }
            if ended.is_some() {
                break;
            }
        }
        self.give(text, tokens);
        Ok(ended)
    }

    fn give(&self, text: String, tokens: Vec<TokenText>) {
        if !text.is_empty() || !tokens.is_empty() {
            self.job.outbox.push(Part::Text { choice: self.job.choice, text, tokens });
        }
    }

    fn end(mut self, mut reason: Reason, metrics: &Metrics) {
        match self.text.finish() {
            Ok(piece) => {
                if piece.stopped {
                    reason = Reason::Stop;
                }
                self.give(piece.text, piece.tokens);
            }
            Err(error) => {
                console::message(format_args!("dlm-train: {error}"));
                return self.fail(Refusal::failed("the tokenizer could not decode the answer"));
            }
        }
        metrics.row(self.tokens, self.passes);
        self.job.is_over = true;
        let (choice, tokens, passes) = (self.job.choice, self.tokens, self.passes);
        self.job.outbox.push(Part::End { choice, reason, tokens, passes });
    }

    fn fail(mut self, refusal: Refusal) {
        self.job.fail(refusal);
    }
}
