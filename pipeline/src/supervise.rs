//! Text and spans become ids and labels.
//!
//! In: a rendered conversation. Out: ids, and labels that equal the id inside a span that carries loss and -100 elsewhere.
//! The text is cut at the span boundaries and the pieces encoded in order, so that no token straddles prompt and response: at
//! decode time the prompt is encoded alone. A sample ends with its last supervised token.

use crate::conversation::Drop;
use crate::spans::{Rendered, Span};
use crate::tokenize::Tokenizer;
use dlm_datasets::IGNORE;
use dlm_datasets::manifest::LossOn;

/// A conversation as the trainer will see it, before it is cut to rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Labels.
    pub labels: Vec<i32>,
    /// Token ranges of the assistant's turns, with loss or without.
    pub turns: Vec<(usize, usize)>,
}

impl Sample {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.labels.clear();
        self.turns.clear();
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
    pub fn encode(&self, r: &Rendered, out: &mut Sample) -> Result<(), Drop> {
        out.clear();
        let mut at = 0;
        let last = r.spans.len().saturating_sub(1);
        let mut control = r.control.as_deref();
        for (k, &Span { start, end, loss }) in r.spans.iter().enumerate() {
            self.piece(&r.text, at, start, &mut control, false, out)?;
            let from = out.ids.len();
            self.piece(&r.text, start, end, &mut control, loss && (self.loss_on == LossOn::All || k == last), out)?;
            out.turns.push((from, out.ids.len()));
            at = end;
        }
        self.piece(&r.text, at, r.text.len(), &mut control, false, out)?;
        // Nothing precedes the first token, so nothing can predict it.
        if let Some(first) = out.labels.first_mut() {
            *first = IGNORE;
        }
        if out.ids.contains(&self.mask_id) {
            return Err(Drop::MaskInText);
        }
        let Some(last) = out.labels.iter().rposition(|&l| l != IGNORE) else { return Err(Drop::NoLabel) };
        // What a template writes after the last end-of-turn token (ChatML: a newline) would stand unmasked in the noised block
        // and tell the model where its answer ends; decoding has nothing there.
        out.ids.truncate(last + 1);
        out.labels.truncate(last + 1);
        out.turns.retain_mut(|turn| {
            turn.1 = turn.1.min(last + 1);
            turn.0 < turn.1
        });
        Ok(())
    }

    /// Encodes `text[from..to]`. `control` lists the control tokens still ahead, where text may hold strings that look like some.
    fn piece(
        &self,
        text: &str,
        from: usize,
        to: usize,
        control: &mut Option<&[(usize, usize, i32)]>,
        loss: bool,
        out: &mut Sample,
    ) -> Result<(), Drop> {
        let slice = |a: usize, b: usize| text.get(a..b).ok_or(Drop::NoAssistantSpan);
        match control {
            None if from < to => self.tokenizer.encode(slice(from, to)?, &mut out.ids).map_err(|_| Drop::TokenizerFailed)?,
            None => {}
            Some(ahead) => {
                let mut at = from;
                while at < to {
                    let token = ahead.first().filter(|t| t.0 < to);
                    let end = token.map_or(to, |t| t.0);
                    if at < end {
                        self.tokenizer.encode_plain(slice(at, end)?, &mut out.ids).map_err(|_| Drop::TokenizerFailed)?;
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
        if loss {
            out.labels.extend_from_slice(&out.ids[out.labels.len()..]);
        } else {
            out.labels.resize(out.ids.len(), IGNORE);
        }
        Ok(())
    }
}
