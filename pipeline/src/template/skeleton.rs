//! The text that a template writes around the contents of messages.
//!
//! In: a conversation rendered with a placeholder in place of every content. Out: a [`Skeleton`],
//! which alternates literal text and slots for contents. `rendered.rs` fills contents into a
//! skeleton, `alignment.rs` locates contents in a finished render.

use crate::template::placeholder::{
    CONTENT_END, CONTENT_START, GENERATION_END, GENERATION_START, parse_placeholder,
    push_placeholder,
};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// Text that the template writes.
    Literal(String),
    /// The content of the message with this index.
    Slot(usize),
}

/// A control token that the template wrote into a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ControlPosition {
    /// First byte.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
    /// Token id.
    pub id: i32,
}

/// How much of the text around a content belongs to the assistant turn, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TurnMargins {
    /// White space before the content that the generation prompt does not contain.
    pub before: usize,
    /// Text after the content, up to and including the end-of-turn token.
    pub after: usize,
}

/// A position in a skeleton: the index of a piece and a byte offset in it.
pub(crate) type PiecePosition = (usize, usize);

/// An assistant turn with tool calls or thoughts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent<Position> {
    /// Where the turn begins and ends, piece by piece. There are results of calls between pieces.
    pub pieces: Vec<(Position, Position)>,
    /// Whether the template wrote the name and the arguments of every call.
    pub calls_written: bool,
    /// Whether the template wrote the thoughts.
    pub thoughts_written: bool,
}

/// A rendered conversation without the contents of its messages. It is the same for all
/// conversations with the same roles in the same order.
#[derive(Debug, Default)]
pub(crate) struct Skeleton {
    /// Literals and slots alternate; the first and the last piece are literals.
    pub pieces: Vec<Piece>,
    /// Control tokens in literals, in order: the index of the piece and the position in it.
    pub control: Vec<(usize, ControlPosition)>,
    /// Whether filling in contents may replace rendering, once
    /// [`can_replace_rendering`](Self::can_replace_rendering) has verified it.
    pub fillable: bool,
    /// Boundaries of `{% generation %}` blocks: (index of the piece, byte offset in it, is start).
    pub generation: Vec<(usize, usize, bool)>,
    /// The margins of assistant messages with a slot, by message index.
    pub turn_margins: Vec<Option<TurnMargins>>,
    /// The whole turns of assistant messages with tool calls or thoughts, by message index.
    pub turn_extents: HashMap<usize, Extent<PiecePosition>>,
    used: AtomicBool,
    verified: OnceLock<bool>,
    encoded: OnceLock<Option<EncodedSkeleton>>,
}

impl Skeleton {
    /// Whether filling in contents gives the same text as rendering. `verify` finds out by trial
    /// and is called at most once. A `long` skeleton is verified only on its second use, because
    /// many are used only once.
    pub(crate) fn can_replace_rendering(&self, long: bool, verify: impl FnOnce() -> bool) -> bool {
        let first = !self.used.swap(true, Ordering::Relaxed);
        self.fillable && !(long && first) && *self.verified.get_or_init(verify)
    }

    /// The encoded skeleton, which `encode` makes on the first call. None if the skeleton cannot be
    /// encoded ahead of its contents.
    pub(crate) fn encoded(
        &self,
        encode: impl FnOnce() -> Option<EncodedSkeleton>,
    ) -> Option<&EncodedSkeleton> {
        self.encoded.get_or_init(encode).as_ref()
    }

    /// The position that is byte `at` of `text`, a render with placeholders.
    pub(crate) fn position_in(text: &str, at: usize) -> Option<PiecePosition> {
        let s = Skeleton::parse(text.get(..at)?)?;
        match s.pieces.last()? {
            Piece::Literal(l) => Some((s.pieces.len() - 1, l.len())),
            Piece::Slot(_) => None,
        }
    }

    /// The bytes of turn `k`, which has tool calls or thoughts, in `text`; `piece_starts` as in
    /// [`SkeletonAlignment`](crate::template::alignment::SkeletonAlignment).
    pub(crate) fn extent(
        &self,
        k: usize,
        piece_starts: &[usize],
        text: &str,
    ) -> Option<Extent<usize>> {
        let turn = self.turn_extents.get(&k)?;
        let place = |(piece, offset): PiecePosition| {
            let next = piece_starts.get(piece + 1).copied().unwrap_or(text.len());
            Some((piece_starts.get(piece)? + offset).min(next))
        };
        let placed = turn.pieces.iter().map(|p| {
            let (start, end) = (place(p.0)?, place(p.1)?);
            text.get(start..end).map(|_| (start, end))
        });
        let pieces = placed.collect::<Option<Vec<_>>>()?;
        let &Extent { calls_written, thoughts_written, .. } = turn;
        Some(Extent { pieces, calls_written, thoughts_written })
    }

    /// Cuts a render with placeholders into literals and slots. None if a content occurs twice.
    pub(crate) fn parse(text: &str) -> Option<Skeleton> {
        let mut s = Skeleton::default();
        let mut seen = HashSet::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            match c {
                CONTENT_START => {
                    let (k, tail) = parse_placeholder(after, CONTENT_END)?;
                    if !seen.insert(k) {
                        return None;
                    }
                    s.pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    s.pieces.push(Piece::Slot(k));
                    rest = tail;
                }
                GENERATION_START | GENERATION_END => {
                    s.generation.push((s.pieces.len(), literal.len(), c == GENERATION_START));
                    rest = after;
                }
                _ => {
                    let n = rest
                        .find([CONTENT_START, GENERATION_START, GENERATION_END])
                        .unwrap_or(rest.len());
                    literal.push_str(&rest[..n]);
                    rest = &rest[n..];
                }
            }
        }
        s.pieces.push(Piece::Literal(literal));
        Some(s)
    }
}

/// A piece of an [`EncodedSkeleton`], between two positions at which the tokenizer always splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedPiece {
    /// Bytes of literal text in the piece.
    pub literal_bytes: usize,
    /// Number of contents in the piece.
    pub slots: usize,
    /// The token ids of the piece, if it contains no content.
    pub ids: Vec<i32>,
    /// The index of the assistant span that the piece belongs to.
    pub span: Option<usize>,
}

/// A skeleton whose literal text is tokenized already (`label/encode_skeleton.rs`). Its pieces
/// follow each other in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedSkeleton {
    /// All pieces of the text.
    pub pieces: Vec<EncodedPiece>,
}

/// The placeholder for the content of message `k`.
pub(crate) fn content_placeholder(k: usize) -> String {
    let mut s = String::new();
    push_placeholder(CONTENT_START, k, CONTENT_END, &mut s);
    s
}
