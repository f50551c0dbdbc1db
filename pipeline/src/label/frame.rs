//! What a template writes where no content touches it, encoded once.
//!
//! In: a skeleton and a tokenizer. Out: a [`Frame`]: the skeleton cut at its control tokens and at
//! the edges of assistant spans, into pieces that are the same in every conversation, with their
//! ids, and pieces that hold content. A control token parts the text before anything else does
//! ([`Tokenizer::always_splits_at`]), so the ids are those of the text encoded from span edge to
//! span edge, which is the definition and is what a few texts are compared with when a frame is
//! made.

use crate::template::skeleton::{Frame, FramePiece, Piece, Skeleton};
use crate::tokenize::tokenizer::Tokenizer;

/// Contents a frame is tried out with.
const TRIALS: [&str; 4] = ["x", " 's \u{301}\n\n 12", "\n", "中\r\n\t</b>  "];

/// What stands at a place of a literal; the order is that in which several at one place count.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Edge {
    SpanEnd,
    Control,
    SpanStart,
}

/// A piece while it is put together, with its text where contents are given.
#[derive(Default)]
struct Part {
    literal: String,
    slots: usize,
    span: Option<usize>,
}

/// The frame of `s`; none if the tokenizer does not part text at control tokens or gives other ids
/// for a trial.
pub fn frame(s: &Skeleton, tokenizer: &Tokenizer) -> Option<Frame> {
    if s.control.is_empty() || s.control.iter().any(|&(.., id)| !tokenizer.always_splits_at(id)) {
        return None;
    }
    let mut pieces: Vec<FramePiece> = Vec::new();
    for p in parts(s, "")? {
        let mut ids = Vec::new();
        if p.slots == 0 {
            tokenizer.encode(&p.literal, &mut ids).ok()?;
            // The same whether control-token strings count or not: a control token alone, or text
            // without any.
            let mut plain = Vec::new();
            tokenizer.encode_plain(&p.literal, &mut plain).ok()?;
            if ids != plain && !s.control.iter().any(|&(.., id)| ids == [id]) {
                return None;
            }
        }
        match pieces.last_mut() {
            Some(last) if last.slots + p.slots == 0 && last.span == p.span => {
                last.literal += p.literal.len();
                last.ids.append(&mut ids);
            }
            _ => pieces.push(FramePiece {
                literal: p.literal.len(),
                slots: p.slots,
                ids,
                span: p.span,
            }),
        }
    }
    let same = TRIALS.iter().all(|t| tried(s, tokenizer, t).unwrap_or(false));
    same.then_some(Frame { pieces })
}

/// The pieces between cuts, with `content` in every slot; none if spans are not in order.
fn parts(s: &Skeleton, content: &str) -> Option<Vec<Part>> {
    let mut edges: Vec<(usize, usize, Edge)> = Vec::new();
    for &(piece, at, len, _) in &s.control {
        edges.extend([(piece, at, Edge::Control), (piece, at + len, Edge::Control)]);
    }
    for (i, piece) in s.pieces.iter().enumerate() {
        let Piece::Slot(k) = piece else { continue };
        let Some((back, forward)) = s.reach.get(*k).copied().flatten() else {
            continue;
        };
        let Some(Piece::Literal(before)) = i.checked_sub(1).and_then(|i| s.pieces.get(i)) else {
            return None;
        };
        edges.push((i - 1, before.len().checked_sub(back)?, Edge::SpanStart));
        edges.push((i + 1, forward, Edge::SpanEnd));
    }
    edges.sort_unstable();
    let mut edges = edges.into_iter().peekable();
    let (mut out, mut part, mut spans) = (Vec::new(), Part::default(), 0);
    let mut end = |part: &mut Part, next: Option<usize>| {
        let done = std::mem::replace(part, Part { span: next, ..Part::default() });
        if !done.literal.is_empty() || done.slots > 0 {
            out.push(done);
        }
    };
    for (i, piece) in s.pieces.iter().enumerate() {
        match piece {
            Piece::Slot(_) => {
                part.literal.push_str(content);
                part.slots += 1;
            }
            Piece::Literal(l) => {
                let mut from = 0;
                while let Some((_, at, edge)) = edges.next_if(|e| e.0 == i) {
                    part.literal.push_str(l.get(from..at)?);
                    from = at;
                    let span = match edge {
                        Edge::Control => part.span,
                        Edge::SpanEnd => None,
                        Edge::SpanStart if part.span.is_some() => return None,
                        Edge::SpanStart => {
                            spans += 1;
                            Some(spans - 1)
                        }
                    };
                    end(&mut part, span);
                }
                part.literal.push_str(l.get(from..)?);
            }
        }
    }
    end(&mut part, None);
    Some(out)
}

/// Whether the pieces of a text, encoded one by one, give what the stretches between span edges do.
fn tried(s: &Skeleton, tokenizer: &Tokenizer, content: &str) -> Option<bool> {
    let (mut pieces, mut whole, mut stretch) = (Vec::new(), Vec::new(), String::new());
    let parts = parts(s, content)?;
    for (i, p) in parts.iter().enumerate() {
        tokenizer.encode(&p.literal, &mut pieces).ok()?;
        stretch.push_str(&p.literal);
        if parts.get(i + 1).is_none_or(|next| next.span != p.span) {
            tokenizer.encode(&stretch, &mut whole).ok()?;
            stretch.clear();
        }
    }
    Some(pieces == whole)
}
