//! Text and spans become ids and labels.
//!
//! In: a rendered conversation. Out: ids, and where the labels equal them (inside spans that carry
//! loss; they are -100 elsewhere). The text is cut at the span boundaries and the pieces encoded in
//! order, so that no token straddles prompt and response: at decode time the prompt is encoded
//! alone. A sample ends with its last supervised token.

use crate::label::frame::frame;
use crate::parse::drop_reason::DropReason;
use crate::template::skeleton::{Frame, Rendered, Span};
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::manifest::LossOn;
use dlm_datasets::writer::LossRun;

/// A conversation as the trainer will see it, before it is cut to rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Where the labels equal the ids, in order, none touching the next.
    pub loss: Vec<LossRun>,
    /// Token ranges of the assistant's turns, with loss or without.
    pub turns: Vec<(usize, usize)>,
}

impl Sample {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.loss.clear();
        self.turns.clear();
    }

    /// The runs of loss that have a token in `from..to`.
    pub fn loss_within(&self, from: usize, to: usize) -> &[LossRun] {
        if from >= to {
            return &[];
        }
        let begin = self.loss.partition_point(|r| r.1 as usize <= from);
        let n = self.loss[begin..].partition_point(|r| (r.0 as usize) < to);
        &self.loss[begin..begin + n]
    }

    /// The tokens from `from` on carry loss.
    pub fn take_loss(&mut self, from: usize) {
        let to = self.ids.len() as u32;
        match self.loss.last_mut() {
            Some(run) if run.1 as usize == from => run.1 = to,
            _ if from < self.ids.len() => self.loss.push((from as u32, to)),
            _ => {}
        }
    }
}

/// Encodes and labels.
pub struct Supervisor<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Which turns carry loss.
    pub loss_on: LossOn,
    /// The mask token's id, which no text may give.
    pub mask_id: i32,
}

impl Supervisor<'_> {
    /// Fills `out` from `r`.
    pub fn encode(&self, r: &Rendered, out: &mut Sample) -> Result<(), DropReason> {
        match r.skeleton.as_ref().and_then(|s| s.frame(|| frame(s, self.tokenizer))) {
            Some(frame) => self.framed(frame, r, out)?,
            None => self.whole(r, out)?,
        }
        self.end(out)
    }

    /// [`encode`](Self::encode) without knowing anything beforehand: the definition.
    pub fn encode_whole(&self, r: &Rendered, out: &mut Sample) -> Result<(), DropReason> {
        self.whole(r, out)?;
        self.end(out)
    }

    fn whole(&self, r: &Rendered, out: &mut Sample) -> Result<(), DropReason> {
        out.clear();
        let mut at = 0;
        let mut control = r.control.as_deref();
        for (k, &Span { start, end, loss }) in r.spans.iter().enumerate() {
            self.piece(&r.text, at, start, &mut control, out)?;
            let from = out.ids.len();
            self.piece(&r.text, start, end, &mut control, out)?;
            if loss && self.counts(k, r) {
                out.take_loss(from);
            }
            out.turns.push((from, out.ids.len()));
            at = end;
        }
        self.piece(&r.text, at, r.text.len(), &mut control, out)
    }

    /// What the template writes is known already; only what content touches is encoded.
    fn framed(&self, frame: &Frame, r: &Rendered, out: &mut Sample) -> Result<(), DropReason> {
        out.clear();
        let (mut at, mut slots) = (0, r.slots.iter());
        for p in &frame.pieces {
            let from = out.ids.len();
            let end = at + p.literal + slots.by_ref().take(p.slots).sum::<usize>();
            if p.slots == 0 {
                out.ids.extend_from_slice(&p.ids);
            } else {
                // No control token that counts stands in it, so with `control` given all of it is
                // text.
                self.piece(&r.text, at, end, &mut r.control.as_ref().map(|_| &[][..]), out)?;
            }
            at = end;
            let Some(k) = p.span else { continue };
            match out.turns.get_mut(k) {
                Some(turn) => turn.1 = out.ids.len(),
                None => out.turns.push((from, out.ids.len())),
            }
            if r.spans.get(k).is_some_and(|s| s.loss) && self.counts(k, r) {
                out.take_loss(from);
            }
        }
        Ok(())
    }

    /// Whether turn `k` carries loss if any does.
    fn counts(&self, k: usize, r: &Rendered) -> bool {
        self.loss_on == LossOn::All || k + 1 == r.spans.len()
    }

    fn end(&self, out: &mut Sample) -> Result<(), DropReason> {
        // Nothing precedes the first token, so nothing can predict it.
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
        // What a template writes after the last end-of-turn token (ChatML: a newline) would stand
        // unmasked in the noised block and tell the model where its answer ends; decoding has
        // nothing there.
        out.ids.truncate(end);
        out.turns.retain_mut(|turn| {
            turn.1 = turn.1.min(end);
            turn.0 < turn.1
        });
        Ok(())
    }

    /// Appends the ids of `text[from..to]`. `control` lists the control tokens still ahead, where
    /// text may hold strings that look like some.
    fn piece(
        &self,
        text: &str,
        from: usize,
        to: usize,
        control: &mut Option<&[(usize, usize, i32)]>,
        out: &mut Sample,
    ) -> Result<(), DropReason> {
        let slice = |a: usize, b: usize| text.get(a..b).ok_or(DropReason::NoAssistantSpan);
        match control {
            None if from < to => self
                .tokenizer
                .encode(slice(from, to)?, &mut out.ids)
                .map_err(|_| DropReason::TokenizerFailed)?,
            None => {}
            Some(ahead) => {
                let mut at = from;
                while at < to {
                    let token = ahead.first().filter(|t| t.0 < to);
                    let end = token.map_or(to, |t| t.0);
                    if at < end {
                        self.tokenizer
                            .encode_plain(slice(at, end)?, &mut out.ids)
                            .map_err(|_| DropReason::TokenizerFailed)?;
                    }
                    at = end;
                    if let Some(&(_, len, id)) = token {
                        out.ids.push(id);
                        at += len;
                        *ahead = &ahead[1..];
                    }
                }
            }
        }
        Ok(())
    }
}
