//! Encodes the literal text of a skeleton once, so that per row only contents are encoded.
//!
//! In: a skeleton and a tokenizer. Out: an [`EncodedSkeleton`]: the skeleton is cut at its control
//! tokens and at the edges of assistant spans. Pieces without content have the same ids in every
//! conversation. Because the tokenizer always splits the text at control tokens
//! ([`Tokenizer::always_splits_at`]), encoding the pieces one by one gives the same ids as encoding
//! the text from span edge to span edge, which is the reference. A few sample texts are compared
//! with the reference when a skeleton is encoded.

use crate::template::skeleton::{ControlPosition, EncodedPiece, EncodedSkeleton, Piece, Skeleton};
use crate::tokenize::tokenizer::Tokenizer;

/// Sample contents for the comparison with the reference.
const SAMPLES: [&str; 4] = ["x", " 's \u{301}\n\n 12", "\n", "中\r\n\t</b>  "];

/// A position in a literal at which the text is cut. Several at the same position apply in this
/// order.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Edge {
    SpanEnd,
    Control,
    SpanStart,
}

/// A piece of the text between two cuts.
#[derive(Default)]
struct TextPiece {
    text: String,
    slots: usize,
    span: Option<usize>,
}

/// Encodes a skeleton. None if the tokenizer does not always split the text at its control tokens,
/// or if a sample text gets other ids than by the reference.
pub(crate) fn encode_skeleton(s: &Skeleton, tokenizer: &Tokenizer) -> Option<EncodedSkeleton> {
    if s.control.is_empty() || s.control.iter().any(|(_, c)| !tokenizer.always_splits_at(c.id)) {
        return None;
    }
    let mut pieces: Vec<EncodedPiece> = Vec::new();
    for p in cut(s, "")? {
        let mut ids = Vec::new();
        if p.slots == 0 {
            tokenizer.encode(&p.text, &mut ids).ok()?;
            // The ids must not depend on whether strings that spell a control token are treated as
            // one: the piece is a single control token, or contains none.
            let mut plain = Vec::new();
            tokenizer.encode_plain(&p.text, &mut plain).ok()?;
            if ids != plain && !s.control.iter().any(|(_, c)| ids == [c.id]) {
                return None;
            }
        }
        match pieces.last_mut() {
            Some(last) if last.slots + p.slots == 0 && last.span == p.span => {
                last.literal_bytes += p.text.len();
                last.ids.append(&mut ids);
            }
            _ => pieces.push(EncodedPiece {
                literal_bytes: p.text.len(),
                slots: p.slots,
                ids,
                span: p.span,
            }),
        }
    }
    let equal = SAMPLES.iter().all(|t| equals_reference(s, tokenizer, t).unwrap_or(false));
    equal.then_some(EncodedSkeleton { pieces })
}

/// Cuts the text of a skeleton with `content` in every slot. None if its spans are not in order.
fn cut(s: &Skeleton, content: &str) -> Option<Vec<TextPiece>> {
    let mut edges: Vec<(usize, usize, Edge)> = Vec::new();
    for &(piece, ControlPosition { start, len, .. }) in &s.control {
        edges.extend([(piece, start, Edge::Control), (piece, start + len, Edge::Control)]);
    }
    for (i, piece) in s.pieces.iter().enumerate() {
        let Piece::Slot(k) = piece else { continue };
        let Some(margins) = s.turn_margins.get(*k).copied().flatten() else {
            continue;
        };
        let Some(Piece::Literal(before)) = i.checked_sub(1).and_then(|i| s.pieces.get(i)) else {
            return None;
        };
        edges.push((i - 1, before.len().checked_sub(margins.before)?, Edge::SpanStart));
        edges.push((i + 1, margins.after, Edge::SpanEnd));
    }
    edges.sort_unstable();
    let mut edges = edges.into_iter().peekable();
    let (mut out, mut current, mut spans) = (Vec::new(), TextPiece::default(), 0);
    let mut finish = |current: &mut TextPiece, next: Option<usize>| {
        let done = std::mem::replace(current, TextPiece { span: next, ..TextPiece::default() });
        if !done.text.is_empty() || done.slots > 0 {
            out.push(done);
        }
    };
    for (i, piece) in s.pieces.iter().enumerate() {
        match piece {
            Piece::Slot(_) => {
                current.text.push_str(content);
                current.slots += 1;
            }
            Piece::Literal(l) => {
                let mut from = 0;
                while let Some((_, at, edge)) = edges.next_if(|e| e.0 == i) {
                    current.text.push_str(l.get(from..at)?);
                    from = at;
                    let span = match edge {
                        Edge::Control => current.span,
                        Edge::SpanEnd => None,
                        Edge::SpanStart if current.span.is_some() => return None,
                        Edge::SpanStart => {
                            spans += 1;
                            Some(spans - 1)
                        }
                    };
                    finish(&mut current, span);
                }
                current.text.push_str(l.get(from..)?);
            }
        }
    }
    finish(&mut current, None);
    Some(out)
}

/// Whether the pieces of a text, encoded one by one, have the same ids as the text encoded from
/// span edge to span edge.
fn equals_reference(s: &Skeleton, tokenizer: &Tokenizer, content: &str) -> Option<bool> {
    let (mut piecewise, mut reference, mut segment) = (Vec::new(), Vec::new(), String::new());
    let pieces = cut(s, content)?;
    for (i, p) in pieces.iter().enumerate() {
        tokenizer.encode(&p.text, &mut piecewise).ok()?;
        segment.push_str(&p.text);
        if pieces.get(i + 1).is_none_or(|next| next.span != p.span) {
            tokenizer.encode(&segment, &mut reference).ok()?;
            segment.clear();
        }
    }
    Some(piecewise == reference)
}
