//! A rendered conversation with the spans of its assistant turns.
//!
//! In: the template's output, or a [`Skeleton`] and the contents of a conversation. Out:
//! [`Rendered`], which the `label` stage encodes.

use crate::parse::conversation::Message;
use crate::template::skeleton::{ControlPosition, Piece, Skeleton};
use std::ops::Range;
use std::sync::Arc;

/// The byte range of an assistant turn, or of a piece of one, in the rendered text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte, end-of-turn token included.
    pub end: usize,
    /// Whether the turn may carry loss.
    pub loss: bool,
    /// Whether the span before is a piece of the same turn, with results of calls between them.
    pub continues: bool,
}

/// A rendered conversation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rendered {
    /// The text, byte-equal to the output of the template.
    pub text: String,
    /// The assistant turns and pieces of turns, in order and without overlap.
    pub spans: Vec<Span>,
    /// Set where message content contains strings that spell a control token: the control tokens
    /// that the template wrote, in order. All other such strings in the text are ordinary text.
    pub control: Option<Vec<ControlPosition>>,
    /// The skeleton into which the contents were filled, where the template was not rendered.
    pub skeleton: Option<Arc<Skeleton>>,
    /// With `skeleton`: the lengths in bytes of the contents, in order.
    pub slot_lengths: Vec<usize>,
    /// Ranges inside the spans that carry no loss, in order: thoughts, where they are masked.
    pub masked: Vec<Range<usize>>,
    /// Number of turns with such ranges.
    pub masked_turns: u64,
    /// Number of turns in which the template changed white space only.
    pub whitespace_changed_turns: u64,
    /// Number of turns in which the template changed more (lost-text policies `mask` and `keep`).
    pub rewritten_turns: u64,
}

/// Compares the result and ignores by which path it was made (`skeleton`, `slot_lengths`).
impl PartialEq for Rendered {
    fn eq(&self, o: &Self) -> bool {
        let counts = |r: &Self| (r.whitespace_changed_turns, r.rewritten_turns);
        self.text == o.text
            && self.spans == o.spans
            && self.control == o.control
            && self.masked == o.masked
            && counts(self) == counts(o)
    }
}

impl Rendered {
    /// Resets all fields and keeps the allocated memory.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.spans.clear();
        self.slot_lengths.clear();
        self.masked.clear();
        self.masked_turns = 0;
        (self.control, self.skeleton) = (None, None);
        (self.whitespace_changed_turns, self.rewritten_turns) = (0, 0);
    }

    /// Appends the text and spans of a skeleton filled with the contents of `messages`. With
    /// `track_control` the positions of control tokens are recorded, which is needed where contents
    /// contain strings that spell one.
    pub(crate) fn fill(&mut self, s: &Skeleton, messages: &[Message], track_control: bool) {
        let mut controls = track_control.then(Vec::new);
        let mut next_control = s.control.iter().peekable();
        for (i, piece) in s.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(l) => {
                    if let Some(list) = &mut controls {
                        while let Some(&&(piece, position)) = next_control.peek()
                            && piece == i
                        {
                            let start = self.text.len() + position.start;
                            list.push(ControlPosition { start, ..position });
                            next_control.next();
                        }
                    }
                    self.text.push_str(l);
                }
                Piece::Slot(k) => {
                    let content = messages.get(*k).map_or("", |m| &*m.content);
                    let start = self.text.len();
                    self.text.push_str(content);
                    self.slot_lengths.push(content.len());
                    if let Some(margins) = s.turn_margins.get(*k).copied().flatten() {
                        self.spans.push(Span {
                            start: start - margins.before,
                            end: self.text.len() + margins.after,
                            loss: !messages[*k].no_loss,
                            continues: false,
                        });
                    }
                }
            }
        }
        self.control = controls;
    }
}
