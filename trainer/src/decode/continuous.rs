//! Rows that are decoded together and come and go one by one.
//!
//! In: [`Request`]s, at any time. Out: [`Event`]s, after each step. A row takes a slot of the cache
//! when it is added and leaves it when it ends or is removed; the next row uses the slot again.
//! Rows of both modes and of any length and options share the passes of a step, and each gets the
//! tokens it would get alone: a pass shows a row nothing but its own positions, and of those only
//! such that the row itself has written.
//!
//! A step runs every row that is being decoded once, together with all others whose pass is as
//! wide; then prompt tokens of rows that are still to begin, oldest first: at most
//! [`PREFILL_TOKENS_BESIDE`], so that a long prompt does not make the other rows wait for long, or
//! [`PREFILL_TOKENS`] if no row is being decoded.

use super::block::BlockRow;
use super::block_options::BlockOptions;
use super::cached::{KvCache, Span};
use super::distribution::Distribution;
use super::engine::{Engine, Hidden, Prediction, not_finite};
use super::multi_block::MultiBlockRow;
use super::placed::Branches;
use super::row::{PREFILL_TOKENS, PREFILL_TOKENS_BESIDE, PassKind, Row, RowPass, RowText};
use super::sampling::Sampling;
use super::text_stream::{StopStrings, TextStream};
use super::verify::options::VerifyOptions;
use super::verify::row::VerifyRow;
use super::{Decided, DecodedSequence, ar::ArRow};
use crate::error::{Error, Result};

/// Positions whose logits are copied to the host at a time, to draw tokens from them.
const LOGITS_ROWS: usize = 16;

/// How the tokens of a row are decided.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) enum RowMode {
    /// In diffusion blocks.
    Block(BlockOptions),
    /// One token after another.
    Ar,
    /// One token after another, several in a pass where proposals are right.
    Verify(VerifyOptions),
}

/// One prompt with its own options.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Request {
    /// Token ids; at least one.
    #[serde(skip)]
    pub prompt: Vec<i64>,
    pub mode: RowMode,
    /// Length limit of the completion in tokens; block mode counts whole blocks.
    pub max_new_tokens: usize,
    /// Ids that end the completion; without any it runs to its limit.
    pub stop_ids: Vec<i64>,
    /// Id of the mask token, which is never produced; block mode needs it.
    pub mask_id: Option<i64>,
    /// How tokens are drawn; `None` takes the most probable ones.
    pub sampling: Option<Sampling>,
    /// Strings that end the completion.
    pub stop: Option<StopStrings>,
}

impl Request {
    /// Positions of the cache that the row may come to need.
    pub(crate) fn positions(&self) -> usize {
        let (prompt, new) = (self.prompt.len(), self.max_new_tokens);
        match &self.mode {
            RowMode::Ar | RowMode::Verify(_) => prompt.saturating_add(new),
            RowMode::Block(options) => options.positions(prompt, new),
        }
    }
}

/// Names a row for as long as its [`Continuous`] exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowId(pub u64);

/// What a step did for a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// Tokens that will not change any more: the next ones of the completion, each exactly once.
    Tokens { row: RowId, ids: Vec<i64>, decided: Vec<Decided> },
    /// The row has ended and left its slot. All of its tokens were told before.
    Finished { row: RowId, sequence: DecodedSequence },
}

/// A row in its slot.
struct Live {
    id: RowId,
    row: Box<dyn Row>,
    /// Completion tokens that were told.
    told: usize,
    /// Looks for stop strings in them.
    watch: Option<TextStream>,
}

/// Rows in the slots of one cache. Belongs to one engine; after an error of [`Continuous::step`]
/// its rows are of no use any more.
pub(crate) struct Continuous {
    slots: Vec<Option<Live>>,
    /// Most positions of a row.
    longest: usize,
    cache: Option<KvCache>,
    next_id: u64,
    /// Most prompt tokens of a step in which rows are decoded.
    prefill_beside: usize,
}

impl Continuous {
    /// Room for `slots` rows of at most `longest` positions, prompt included. Memory is taken as
    /// rows grow.
    pub(crate) fn new(slots: usize, longest: usize) -> Self {
        let slots = (0..slots.max(1)).map(|_| None).collect();
        let prefill_beside = PREFILL_TOKENS_BESIDE;
        Continuous { slots, longest, cache: None, next_id: 0, prefill_beside }
    }

    /// The same for rows that nobody waits for: prompts take full passes, which cost less per
    /// token, and begin as soon as they can.
    pub(super) fn without_hurry(self) -> Self {
        Continuous { prefill_beside: PREFILL_TOKENS, ..self }
    }

    /// Refuses a request that cannot be decoded.
    ///
    /// # Errors
    /// [`Error::Usage`] for an empty prompt, ids outside the vocabulary, the mask token in the
    /// prompt, block mode without a mask token or with sub-blocks that do not divide a block, and
    /// for a request that needs more positions than a row has.
    pub(crate) fn check(&self, engine: &Engine, request: &Request) -> Result<()> {
        engine.check(&request.prompt, request.mask_id)?;
        if let RowMode::Block(options) = &request.mode {
            let (size, small) = (options.block_size, options.sub_block_size);
            if size == 0 || small == 0 || !size.is_multiple_of(small) {
                return Err(Error::Usage(format!(
                    "sub-blocks of {small} tokens do not divide blocks of {size}"
                )));
            }
            options.check_flight()?;
            if request.mask_id.is_none() {
                return Err(Error::Usage("decoding in blocks needs a mask token".into()));
            }
        }
        if let RowMode::Verify(options) = &request.mode {
            options.check()?;
            if !engine.has_gate() {
                return Err(Error::Usage(
                    "verifying proposals (verify mode) needs adapters that act on mask tokens alone"
                        .into(),
                ));
            }
        }
        if request.positions() > self.longest {
            return Err(Error::Usage(format!(
                "the prompt has {} tokens and up to {} follow, {} positions in all, but a row has {}; shorten the prompt or lower the limit of new tokens",
                request.prompt.len(),
                request.max_new_tokens,
                request.positions(),
                self.longest
            )));
        }
        Ok(())
    }

    /// Puts a request into a free slot. Its first pass is run by the next steps.
    ///
    /// # Errors
    /// Those of [`Continuous::check`]; [`Error::Usage`] if no slot is free.
    pub(crate) fn add(&mut self, engine: &Engine, request: Request) -> Result<RowId> {
        self.check(engine, &request)?;
        let slots = self.slots.len();
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.is_none()) else {
            return Err(Error::Usage(format!("all {slots} rows are taken; wait until one ends")));
        };
        let Request { prompt, mode, max_new_tokens, stop_ids, mask_id, sampling, stop } = request;
        let watch = stop.map(|stop| TextStream::new(stop.codec, stop.strings));
        let text = RowText::new(prompt, stop_ids, sampling);
        let row: Box<dyn Row> = match (mode, mask_id) {
            (RowMode::Block(options), Some(mask)) => match options.blocks_in_flight {
                0 | 1 => Box::new(BlockRow::new(text, options, mask, max_new_tokens)),
                _ => Box::new(MultiBlockRow::new(text, options, mask, max_new_tokens)),
            },
            (RowMode::Verify(options), never) => {
                let cost = engine.token_cost();
                Box::new(VerifyRow::new(text, options, max_new_tokens, never, cost))
            }
            _ => Box::new(ArRow::new(text, max_new_tokens, mask_id)),
        };
        let id = RowId(self.next_id);
        self.next_id += 1;
        *slot = Some(Live { id, row, told: 0, watch });
        Ok(id)
    }

    /// Takes a row out of its slot; no more events tell of it. Does nothing for a row that ended.
    pub(crate) fn remove(&mut self, id: RowId) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|live| live.id == id) {
                *slot = None;
            }
        }
    }

    /// Slots without a row.
    pub(crate) fn free_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_none()).count()
    }

    /// Whether no row is left to decode.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Runs one pass of every row that is being decoded, and prompt tokens of rows that are still
    /// to begin. Events come in the order of the slots, those of a row in their own order.
    ///
    /// # Errors
    /// [`Error::Device`] where the cache does not fit into memory, [`Error::Numeric`] for logits
    /// that are not finite.
    pub(crate) fn step(&mut self, engine: &mut Engine) -> Result<Vec<Event>> {
        let mut passes: Vec<(usize, RowPass)> = Vec::new();
        let mut prefill: Vec<(RowId, usize, RowPass)> = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(live) = slot else { continue };
            match live.row.next_pass() {
                Some(pass) if pass.kind == PassKind::Prefill => prefill.push((live.id, at, pass)),
                Some(pass) => passes.push((at, pass)),
                None => {}
            }
        }
        let mut budget = if passes.is_empty() { PREFILL_TOKENS } else { self.prefill_beside };
        // as wide as each other: in one pass
        while let Some((_, first)) = passes.first() {
            let first = first.clone();
            let is_ragged = engine.takes_ragged_passes();
            let together = |(_, pass): &(usize, RowPass)| {
                let has_masks = !pass.groups.is_empty();
                let fits = pass.len == first.len || (has_masks && is_ragged);
                fits && pass.order == first.order && has_masks != first.groups.is_empty()
            };
            let (group, rest): (Vec<_>, Vec<_>) = passes.into_iter().partition(together);
            self.run(engine, &group)?;
            passes = rest;
        }
        prefill.sort_by_key(|(id, _, _)| *id);
        for (i, (_, at, pass)) in prefill.into_iter().enumerate() {
            let pass = pass.shortened(if i == 0 { budget } else { PREFILL_TOKENS });
            if i > 0 && pass.len > budget {
                break;
            }
            budget = budget.saturating_sub(pass.len);
            self.run(engine, &[(at, pass)])?;
        }
        let mut events = Vec::new();
        for slot in &mut self.slots {
            tell(slot, &mut events)?;
        }
        Ok(events)
    }

    /// Runs rows whose passes have one order, and one width unless they have groups of masks.
    fn run(&mut self, engine: &mut Engine, passes: &[(usize, RowPass)]) -> Result<()> {
        let Some((_, first)) = passes.first() else { return Ok(()) };
        let (mut ids, mut spans, mut branches) = (Vec::new(), Vec::new(), Vec::new());
        let (mut judged, mut to_draw) = (Vec::new(), Vec::new());
        for (at, pass) in passes {
            let Some(Some(live)) = self.slots.get(*at) else { continue };
            let (text, before) = (live.row.text(), ids.len());
            ids.extend(live.row.ids_of(pass));
            let (row, start, visible) = (*at, pass.start, pass.visible);
            spans.push(Span { row, start, visible });
            let (clean, groups) = (pass.clean(), pass.groups.clone());
            branches.push(Branches { row, start, clean, groups });
            if live.row.draws_from(pass, 0).is_some() {
                to_draw.push((*at, pass, before));
                continue;
            }
            judged.extend(pass.judged.iter().map(|offset| {
                let position = pass.start + offset + pass.shift;
                let number = live.row.drawn_in(pass, *offset);
                let draw = text.sampling.map(|how| (how, how.uniform(position, number)));
                let never = live.row.never_at(pass, *offset);
                Judged { at: before + offset, never, draw }
            }));
        }
        let (slots, longest) = (self.slots.len(), self.longest);
        let cache = self.cache.get_or_insert_with(|| engine.new_cache(slots, longest));
        let hidden = match first.groups.is_empty() {
            true => engine.pass(&ids, &spans, first.order, cache)?,
            false => engine.pass_branches(&ids, &branches, cache)?,
        };
        let predictions = predict(engine, &hidden, &judged)?;
        let mut predictions = predictions.as_slice();
        for (at, pass) in passes.iter().filter(|(at, _)| to_draw.iter().all(|(own, ..)| own != at))
        {
            let (own, rest) = predictions.split_at(pass.judged.len().min(predictions.len()));
            predictions = rest;
            if let Some(Some(live)) = self.slots.get_mut(*at) {
                live.row.take(pass, own);
            }
        }
        // one row after the other: distributions are large
        for (at, pass, before) in to_draw {
            let Some(Some(live)) = self.slots.get_mut(at) else { continue };
            let all = distributions(engine, &hidden, live.row.as_ref(), pass, before)?;
            live.row.take_distributions(pass, all).ok_or_else(not_finite)?;
        }
        Ok(())
    }
}

/// The distributions at the judged offsets of a row's pass, whose first token is row `before` of
/// the hidden states.
fn distributions(
    engine: &mut Engine,
    hidden: &Hidden,
    row: &dyn Row,
    pass: &RowPass,
    before: usize,
) -> Result<Vec<Distribution>> {
    let mut all = Vec::with_capacity(pass.judged.len());
    for part in pass.judged.chunks(LOGITS_ROWS) {
        let at: Vec<usize> = part.iter().map(|offset| before + offset).collect();
        let logits = engine.logits(hidden, &at)?;
        for (offset, logits) in part.iter().zip(logits.chunks(engine.vocab_size())) {
            let how = row.draws_from(pass, *offset);
            let never = row.never_at(pass, *offset);
            let drawn = how.and_then(|how| how.distribution(logits, never));
            all.push(drawn.ok_or_else(not_finite)?);
        }
    }
    Ok(all)
}

/// A position whose token is to be predicted.
struct Judged {
    /// Row of the hidden states.
    at: usize,
    /// The token that is not predicted.
    never: Option<i64>,
    /// How to draw the token, and the random number; `None` takes the most probable one.
    draw: Option<(Sampling, f64)>,
}

/// A prediction for each of `judged`.
fn predict(engine: &mut Engine, hidden: &Hidden, judged: &[Judged]) -> Result<Vec<Prediction>> {
    let mut predictions = vec![Prediction::default(); judged.len()];
    let all = 0..judged.len();
    let (mut greedy, drawn): (Vec<usize>, Vec<usize>) =
        all.partition(|&i| judged[i].draw.is_none());
    // one call for all rows that leave out the same token
    while let Some(&first) = greedy.first() {
        let never = judged[first].never;
        let (own, rest): (Vec<usize>, Vec<usize>) =
            greedy.into_iter().partition(|&i| judged[i].never == never);
        let at: Vec<usize> = own.iter().map(|&i| judged[i].at).collect();
        for (i, prediction) in own.into_iter().zip(engine.predict(hidden, &at, never)?) {
            predictions[i] = prediction;
        }
        greedy = rest;
    }
    for part in drawn.chunks(LOGITS_ROWS) {
        let at: Vec<usize> = part.iter().map(|&i| judged[i].at).collect();
        let logits = engine.logits(hidden, &at)?;
        for (&i, logits) in part.iter().zip(logits.chunks(engine.vocab_size())) {
            let Judged { never, draw, .. } = judged[i];
            let Some((how, uniform)) = draw else { continue };
            predictions[i] = how.draw(logits, never, uniform).ok_or_else(not_finite)?;
        }
    }
    Ok(predictions)
}

/// Adds what there is to tell of a slot. A row that has ended leaves it.
fn tell(slot: &mut Option<Live>, events: &mut Vec<Event>) -> Result<()> {
    let Some(Live { id, row, told, mut watch }) = slot.take() else { return Ok(()) };
    let mut ended = match row.next_pass() {
        Some(_) => Err(row),
        None => Ok(row.finish()),
    };
    let new = match &ended {
        Err(row) => row.text().generated().get(told..row.settled()),
        Ok(sequence) => sequence.generated().get(told..),
    };
    if let Some(watch) = &mut watch
        && let Some(tokens) = stopped_after(watch, new.unwrap_or_default(), ended.is_ok())?
    {
        let sequence = ended.unwrap_or_else(Row::finish);
        ended = Ok(sequence.cut_at_string(told + tokens, watch.given()));
    }
    let (generated, decided) = match &ended {
        Err(row) => (row.text().generated(), row.text().decided.as_slice()),
        Ok(sequence) => (sequence.generated(), sequence.decided.as_slice()),
    };
    let until = match &ended {
        Err(row) => row.settled(),
        Ok(_) => generated.len(),
    };
    if let (Some(ids), Some(decided)) = (generated.get(told..until), decided.get(told..until))
        && !ids.is_empty()
    {
        events.push(Event::Tokens { row: id, ids: ids.to_vec(), decided: decided.to_vec() });
    }
    match ended {
        Ok(sequence) => events.push(Event::Finished { row: id, sequence }),
        Err(row) => *slot = Some(Live { id, row, told: until, watch }),
    }
    Ok(())
}

/// How many of `new` tokens it takes until a stop string is complete. If the row is at its end, no
/// token follows them.
fn stopped_after(watch: &mut TextStream, new: &[i64], is_end: bool) -> Result<Option<usize>> {
    for (i, id) in new.iter().enumerate() {
        watch.push(*id)?;
        if watch.is_stopped() {
            return Ok(Some(i + 1));
        }
    }
    if is_end {
        watch.finish()?;
    }
    Ok(watch.is_stopped().then_some(new.len()))
}
