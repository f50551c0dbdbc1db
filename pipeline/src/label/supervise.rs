//! Rendered text becomes input_ids and labels.
//!
//! In: a rendered conversation with its assistant spans. Out: a [`Sample`]: token ids, and the runs
//! of tokens whose labels equal their ids (inside spans that carry loss; labels are -100
//! elsewhere). The text is cut at span boundaries and the segments are encoded in order, so that no
//! token straddles prompt and response: in decoding, the prompt is encoded alone. A sample ends
//! with its last supervised token.

use crate::label::encode_skeleton::encode_skeleton;
use crate::label::masked::{Halves, unmasked_runs};
use crate::parse::drop_reason::DropReason;
use crate::template::rendered::{Rendered, Span};
use crate::template::skeleton::{ControlPosition, EncodedSkeleton};
use crate::tokenize::in_context::ControlToken;
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::manifest::LossOn;
use dlm_datasets::writer::LossRun;

/// An encoded conversation of any length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The token ids.
    pub ids: Vec<i32>,
    /// Runs (start, end) of tokens that carry loss, in order, without adjacent runs.
    pub loss: Vec<LossRun>,
    /// Token ranges of all assistant turns, with or without loss.
    pub turns: Vec<(usize, usize)>,
}

impl Sample {
    /// Resets all fields and keeps the allocated memory.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.loss.clear();
        self.turns.clear();
    }

    /// The loss runs that overlap the tokens `from..to`.
    pub(crate) fn loss_within(&self, from: usize, to: usize) -> &[LossRun] {
        if from >= to {
            return &[];
        }
        let begin = self.loss.partition_point(|r| r.1 as usize <= from);
        let n = self.loss[begin..].partition_point(|r| (r.0 as usize) < to);
        &self.loss[begin..begin + n]
    }

    /// Marks the tokens from `from` to the end as carrying loss.
    pub(crate) fn mark_loss(&mut self, from: usize) {
        self.mark_loss_between(from, self.ids.len());
    }

    /// Marks the tokens `from..to` as carrying loss; they follow all marked ones.
    pub(crate) fn mark_loss_between(&mut self, from: usize, to: usize) {
        match self.loss.last_mut() {
            Some(run) if run.1 as usize == from => run.1 = to as u32,
            _ if from < to => self.loss.push((from as u32, to as u32)),
            _ => {}
        }
    }
}

/// Encodes rendered conversations and decides which tokens carry loss.
pub(crate) struct Supervisor<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Which assistant turns carry loss.
    pub loss_on: LossOn,
    /// Id of the mask token; a conversation whose text gives it is dropped.
    pub mask_id: i32,
}

impl Supervisor<'_> {
    /// Encodes `r` into `out`.
    pub(crate) fn encode(&self, r: &Rendered, out: &mut Sample) -> Result<(), DropReason> {
        let skeleton = r.skeleton.as_ref().filter(|_| r.masked.is_empty());
        let encoded = skeleton.and_then(|s| s.encoded(|| encode_skeleton(s, self.tokenizer)));
        match encoded {
            Some(skeleton) => self.encode_contents(skeleton, r, out)?,
            None => self.encode_text(r, out)?,
        }
        self.finish(out)
    }

    /// Reference implementation of [`encode`](Self::encode), which tokenizes the whole text.
    #[cfg(test)]
    pub(crate) fn encode_reference(
        &self,
        r: &Rendered,
        out: &mut Sample,
    ) -> Result<(), DropReason> {
        self.encode_text(r, out)?;
        self.finish(out)
    }

    /// Tokenizes the text from span edge to span edge.
    fn encode_text(&self, r: &Rendered, out: &mut Sample) -> Result<(), DropReason> {
        out.clear();
        if self.encode_in_context(r, out)? {
            return Ok(());
        }
        let mut at = 0;
        let mut control = r.control.as_deref();
        for (k, &Span { start, end, loss, .. }) in r.spans.iter().enumerate() {
            self.encode_segment(&r.text, at, start, &mut control, out)?;
            let from = out.ids.len();
            self.encode_segment(&r.text, start, end, &mut control, out)?;
            if loss && self.is_supervised(k, r) {
                self.mark_span(r, k, (from, out.ids.len()), out)?;
            }
            push_turn(r, k, (from, out.ids.len()), &mut out.turns);
            at = end;
        }
        self.encode_segment(&r.text, at, r.text.len(), &mut control, out)
    }

    /// Tokenizes the whole text at once, cut at span edges. False if the tokenizer does not need
    /// that.
    fn encode_in_context(&self, r: &Rendered, out: &mut Sample) -> Result<bool, DropReason> {
        let cuts: Vec<usize> = r.spans.iter().flat_map(|s| [s.start, s.end]).collect();
        let control = control_tokens(r);
        let mut ends = Vec::with_capacity(cuts.len() + 1);
        let (control, ids) = (control.as_deref(), &mut out.ids);
        match self.tokenizer.encode_in_context(&r.text, &cuts, control, ids, &mut ends) {
            None => return Ok(false),
            Some(encoded) => encoded.map_err(|_| DropReason::TokenizerFailed)?,
        }
        for (k, (span, edges)) in r.spans.iter().zip(ends.chunks(2)).enumerate() {
            let &[from, to] = edges else { continue };
            if span.loss && self.is_supervised(k, r) {
                self.mark_span(r, k, (from, to), out)?;
            }
            push_turn(r, k, (from, to), &mut out.turns);
        }
        Ok(true)
    }

    /// Marks the tokens of span `k` that carry loss, of those in the range `tokens`.
    fn mark_span(
        &self,
        r: &Rendered,
        k: usize,
        tokens: (usize, usize),
        out: &mut Sample,
    ) -> Result<(), DropReason> {
        let span = &r.spans[k];
        if r.masked.is_empty() {
            out.mark_loss_between(tokens.0, tokens.1);
            return Ok(());
        }
        let mut runs = Vec::new();
        let ids = out.ids.get(tokens.0..tokens.1).unwrap_or_default();
        let halves = |at| self.halves(r, span, at);
        unmasked_runs(span, &r.masked, ids, halves, &mut runs)?;
        for (from, to) in runs {
            out.mark_loss_between(tokens.0 + from, tokens.0 + to);
        }
        Ok(())
    }

    /// The ids of both sides of the position `at` in a span.
    fn halves(&self, r: &Rendered, span: &Span, at: usize) -> Result<Halves, DropReason> {
        let failed = |_| DropReason::TokenizerFailed;
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        let cuts = [span.start, at, span.end];
        let control = control_tokens(r);
        if let Some(encoded) = self.tokenizer.encode_in_context(
            &r.text,
            &cuts,
            control.as_deref(),
            &mut ids,
            &mut ends,
        ) {
            encoded.map_err(failed)?;
            let part = |a: usize, b: usize| {
                let (from, to) = (ends.get(a).copied(), ends.get(b).copied());
                ids[from.unwrap_or_default()..to.unwrap_or_default()].to_vec()
            };
            return Ok((part(0, 1), part(1, 2)));
        }
        let half = |from: usize, to: usize| {
            let mut part = Sample::default();
            let listed = r.control.as_deref();
            let mut control = listed.map(|c| &c[c.partition_point(|t| t.start < from)..]);
            self.encode_segment(&r.text, from, to, &mut control, &mut part)?;
            Ok(part.ids)
        };
        Ok((half(span.start, at)?, half(at, span.end)?))
    }

    /// Tokenizes only the pieces of the text that contain message contents; the ids of the others
    /// are known.
    fn encode_contents(
        &self,
        skeleton: &EncodedSkeleton,
        r: &Rendered,
        out: &mut Sample,
    ) -> Result<(), DropReason> {
        out.clear();
        let (mut at, mut slots) = (0, r.slot_lengths.iter());
        for p in &skeleton.pieces {
            let from = out.ids.len();
            let end = at + p.literal_bytes + slots.by_ref().take(p.slots).sum::<usize>();
            if p.slots == 0 {
                out.ids.extend_from_slice(&p.ids);
            } else {
                // The piece contains no control token of the template, so if contents were escaped
                // (`control` is set) all of it is ordinary text.
                self.encode_segment(
                    &r.text,
                    at,
                    end,
                    &mut r.control.as_ref().map(|_| &[][..]),
                    out,
                )?;
            }
            at = end;
            let Some(k) = p.span else { continue };
            match out.turns.get_mut(k) {
                Some(turn) => turn.1 = out.ids.len(),
                None => out.turns.push((from, out.ids.len())),
            }
            if r.spans.get(k).is_some_and(|s| s.loss) && self.is_supervised(k, r) {
                out.mark_loss(from);
            }
        }
        Ok(())
    }

    /// Whether the loss policy includes turn `k`.
    fn is_supervised(&self, k: usize, r: &Rendered) -> bool {
        let last = || r.spans[k + 1..].iter().all(|s| s.continues);
        self.loss_on == LossOn::All || last()
    }

    /// Applies the rules for the first token, the mask token and the end of the sample.
    fn finish(&self, out: &mut Sample) -> Result<(), DropReason> {
        // The first token has no predecessor that could predict it.
        if let Some(first) = out.loss.first_mut().filter(|r| r.0 == 0) {
            first.0 = 1;
            if first.1 == 1 {
                out.loss.remove(0);
            }
        }
        if out.ids.contains(&self.mask_id) {
            return Err(DropReason::MaskInText);
        }
        let Some(end) = out.loss.last().map(|r| r.1 as usize) else {
            return Err(DropReason::NoLabel);
        };
        // Text that a template writes after the last end-of-turn token (in ChatML a newline) would
        // be visible in the noised block and show the model where its answer ends. In decoding
        // there is no such text.
        out.ids.truncate(end);
        out.turns.retain_mut(|turn| {
            turn.1 = turn.1.min(end);
            turn.0 < turn.1
        });
        Ok(())
    }

    /// Appends the ids of `text[from..to]`. Where message contents contain strings that spell a
    /// control token, `control` lists the real control tokens from `from` on; all other text is
    /// ordinary.
    fn encode_segment(
        &self,
        text: &str,
        from: usize,
        to: usize,
        control: &mut Option<&[ControlPosition]>,
        out: &mut Sample,
    ) -> Result<(), DropReason> {
        let slice = |a: usize, b: usize| text.get(a..b).ok_or(DropReason::NoAssistantSpan);
        match control {
            None if from < to => self
                .tokenizer
                .encode(slice(from, to)?, &mut out.ids)
                .map_err(|_| DropReason::TokenizerFailed)?,
            None => {}
            Some(remaining) => {
                let mut at = from;
                while at < to {
                    let token = remaining.first().filter(|t| t.start < to);
                    let end = token.map_or(to, |t| t.start);
                    if at < end {
                        self.tokenizer
                            .encode_plain(slice(at, end)?, &mut out.ids)
                            .map_err(|_| DropReason::TokenizerFailed)?;
                    }
                    at = end;
                    if let Some(&ControlPosition { len, id, .. }) = token {
                        out.ids.push(id);
                        at += len;
                        *remaining = &remaining[1..];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Appends the tokens of span `k` to the ranges of turns, or to the last of them if they continue
/// its turn.
fn push_turn(r: &Rendered, k: usize, tokens: (usize, usize), turns: &mut Vec<(usize, usize)>) {
    match turns.last_mut() {
        Some(turn) if r.spans.get(k).is_some_and(|s| s.continues) => turn.1 = tokens.1,
        _ => turns.push(tokens),
    }
}

/// The control tokens that the template wrote, where contents spell some too.
fn control_tokens(r: &Rendered) -> Option<Vec<ControlToken>> {
    let list = r.control.as_ref()?;
    Some(list.iter().map(|c| (c.start..c.start + c.len, c.id)).collect())
}
