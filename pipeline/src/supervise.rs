//! Text and spans become ids and labels.
//!
//! In: a rendered conversation. Out: ids, and labels that equal the id inside a span that carries loss and -100 elsewhere.
//! The text is cut at the span boundaries and the pieces encoded in order, so that no token straddles prompt and response: at
//! decode time the prompt is encoded alone. A sample ends with its last supervised token.

use crate::control::ControlText;
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
    /// Its control tokens.
    pub control: &'a ControlText,
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
        for (k, &Span { start, end, loss }) in r.spans.iter().enumerate() {
            let (before, inside) = (r.text.get(at..start), r.text.get(start..end));
            let (Some(before), Some(inside)) = (before, inside) else { return Err(Drop::NoAssistantSpan) };
            self.piece(before, r.marked, false, out)?;
            let from = out.ids.len();
            self.piece(inside, r.marked, loss && (self.loss_on == LossOn::All || k == last), out)?;
            out.turns.push((from, out.ids.len()));
            at = end;
        }
        self.piece(r.text.get(at..).unwrap_or(""), r.marked, false, out)?;
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

    fn piece(&self, text: &str, marked: bool, loss: bool, out: &mut Sample) -> Result<(), Drop> {
        if text.is_empty() {
            return Ok(());
        }
        let failed = |_| Drop::TokenizerFailed;
        if marked {
            for (part, control) in self.control.split(text) {
                if !part.is_empty() {
                    self.tokenizer.encode_plain(&self.control.unmark(part), &mut out.ids).map_err(failed)?;
                }
                out.ids.extend(control);
            }
        } else {
            self.tokenizer.encode(text, &mut out.ids).map_err(failed)?;
        }
        if loss {
            out.labels.extend_from_slice(&out.ids[out.labels.len()..]);
        } else {
            out.labels.resize(out.ids.len(), IGNORE);
        }
        Ok(())
    }
}
