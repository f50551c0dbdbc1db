//! What a template writes around the contents of messages.
//!
//! In: a render with a mark in place of every content. Out: a [`Skeleton`], literals and slots by
//! turns. [`fill_in`] puts contents into one, [`align`] lays one over a finished render and says
//! where each content stands and whether it stands there verbatim.

use crate::parse::conversation::Message;
use crate::template::control::{mark, read_mark};
use crate::template::jinja::{GENERATION_END, GENERATION_START, is_space};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Opens the mark of a content.
pub const SLOT: char = '\u{FDD0}';
/// Closes it.
pub const SLOT_END: char = '\u{FDD1}';

/// A piece of a skeleton.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// What the template writes.
    Literal(String),
    /// The content of message number …
    Slot(usize),
}

/// A render without the contents of its messages; the same for every conversation of the same
/// roles.
#[derive(Debug, Default)]
pub struct Skeleton {
    /// Literals and slots by turns, a literal first and last.
    pub pieces: Vec<Piece>,
    /// Control tokens in literals: (piece, offset in it, length, id).
    pub control: Vec<(usize, usize, usize, i32)>,
    /// Whether filling it in could stand for rendering; it has still to be
    /// [tried](Self::stands_for_render).
    pub linear: bool,
    /// `{% generation %}` marks: (piece, offset in it, is start).
    pub generation: Vec<(usize, usize, bool)>,
    /// By message, for the assistant's with a slot: white space before it that is the response's,
    /// bytes after it up to the end of turn.
    pub reach: Vec<Option<(usize, usize)>>,
    /// Whether it has been filled in before.
    used: AtomicBool,
    tried: OnceLock<bool>,
    frame: OnceLock<Option<Frame>>,
}

impl Skeleton {
    /// Whether filling it in stands for rendering: `try_out` says so once. A long skeleton is not
    /// tried when it is used for the first time, which may well be the last.
    pub fn stands_for_render(&self, long: bool, try_out: impl FnOnce() -> bool) -> bool {
        let first = !self.used.swap(true, Ordering::Relaxed);
        self.linear && !(long && first) && *self.tried.get_or_init(try_out)
    }

    /// Its frame, made by `make` once.
    pub fn frame(&self, make: impl FnOnce() -> Option<Frame>) -> Option<&Frame> {
        self.frame.get_or_init(make).as_ref()
    }
}

/// A piece of text between two cuts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramePiece {
    /// Bytes of literals in it.
    pub literal: usize,
    /// Contents in it.
    pub slots: usize,
    /// Its ids, if it holds no content.
    pub ids: Vec<i32>,
    /// The assistant span it belongs to, by number.
    pub span: Option<usize>,
}

/// A skeleton cut into pieces, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The pieces.
    pub pieces: Vec<FramePiece>,
}

/// A stretch of the text the assistant speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte, end-of-turn token included.
    pub end: usize,
    /// Whether it may carry loss.
    pub loss: bool,
}

/// A rendered conversation.
#[derive(Debug, Clone, Default)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// In order, not overlapping.
    pub spans: Vec<Span>,
    /// Where content holds control-token strings: the control tokens the template wrote (place,
    /// length, id), in order. All other text is text.
    pub control: Option<Vec<(usize, usize, i32)>>,
    /// The skeleton this is, filled in, where the template was not asked.
    pub skeleton: Option<Arc<Skeleton>>,
    /// Bytes of the contents in it, in order.
    pub slots: Vec<usize>,
    /// Turns of which the template changed the white space only.
    pub respaced: u64,
    /// Turns of which it changed more (policies `mask` and `keep`).
    pub rewritten: u64,
}

/// What was made of the conversation counts, not how.
impl PartialEq for Rendered {
    fn eq(&self, o: &Self) -> bool {
        let of = |r: &Self| (r.respaced, r.rewritten);
        self.text == o.text
            && self.spans == o.spans
            && self.control == o.control
            && of(self) == of(o)
    }
}

impl Rendered {
    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.spans.clear();
        self.slots.clear();
        (self.control, self.skeleton) = (None, None);
        (self.respaced, self.rewritten) = (0, 0);
    }
}

/// How a content stands in a render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As it was written.
    Verbatim,
    /// With other white space.
    Respaced,
    /// Otherwise, or not at all.
    Lost,
}

/// Fills contents into a skeleton. `control` asks for the places of control tokens, which a content
/// then may hold the strings of.
pub fn fill_in(s: &Skeleton, messages: &[Message], control: bool, out: &mut Rendered) {
    let mut controls = control.then(Vec::new);
    let mut next = s.control.iter().peekable();
    for (i, piece) in s.pieces.iter().enumerate() {
        match piece {
            Piece::Literal(l) => {
                if let Some(list) = &mut controls {
                    while let Some(&&(p, offset, len, id)) = next.peek()
                        && p == i
                    {
                        list.push((out.text.len() + offset, len, id));
                        next.next();
                    }
                }
                out.text.push_str(l);
            }
            Piece::Slot(k) => {
                let content = messages.get(*k).map_or("", |m| &*m.content);
                let start = out.text.len();
                out.text.push_str(content);
                out.slots.push(content.len());
                if let Some((back, forward)) = s.reach.get(*k).copied().flatten() {
                    out.spans.push(Span {
                        start: start - back,
                        end: out.text.len() + forward,
                        loss: true,
                    });
                }
            }
        }
    }
    out.control = controls;
}

/// The mark that stands for message `k`'s content.
pub fn slot_text(k: usize) -> String {
    let mut s = String::new();
    mark(SLOT, k, SLOT_END, &mut s);
    s
}

/// Cuts a render of marks into literals and slots. None if a slot occurs twice.
pub fn parse_skeleton(text: &str) -> Option<Skeleton> {
    let mut s = Skeleton::default();
    let mut seen = HashSet::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            SLOT => {
                let (k, tail) = read_mark(after, SLOT_END)?;
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
                let n = rest.find([SLOT, GENERATION_START, GENERATION_END]).unwrap_or(rest.len());
                literal.push_str(&rest[..n]);
                rest = &rest[n..];
            }
        }
    }
    s.pieces.push(Piece::Literal(literal));
    Some(s)
}

/// Slots with their place and fit; the start of every piece; whether all is verbatim.
pub type Places = (Vec<(usize, usize, usize, Fit)>, Vec<usize>, bool);

/// Lays a skeleton over a text.
pub fn align(s: &Skeleton, text: &str, messages: &[Message]) -> Option<Places> {
    let mut at = 0;
    let (mut slots, mut starts, mut verbatim) =
        (Vec::new(), Vec::with_capacity(s.pieces.len()), true);
    for (i, piece) in s.pieces.iter().enumerate() {
        starts.push(at);
        let rest = &text[at..];
        match piece {
            Piece::Literal(l) => {
                if rest.starts_with(l.as_str()) {
                    at += l.len();
                } else {
                    // An empty thought that the template writes for answers without one.
                    let shell = l
                        .trim_end_matches(is_space)
                        .strip_suffix("</think>")
                        .map(|x| x.trim_end_matches(is_space));
                    let bare = shell
                        .and_then(|x| x.strip_suffix("<think>"))
                        .filter(|x| rest.starts_with(x))?;
                    at += bare.len();
                    verbatim = false;
                }
            }
            Piece::Slot(k) => {
                let content = &*messages.get(*k)?.content;
                let next = match s.pieces.get(i + 1) {
                    Some(Piece::Literal(l)) => l.as_str(),
                    _ => "",
                };
                let last = i + 2 >= s.pieces.len();
                // The literal that follows, or (it may hold a thought's shell) as much of it as is
                // certain.
                let sure = match next.find("<think>") {
                    Some(at) => &next[..at],
                    None => next,
                };
                let follows = |tail: &str| {
                    if last { tail == next } else { tail.starts_with(sure) }
                };
                let (n, fit) = if rest.strip_prefix(content).is_some_and(follows) {
                    (content.len(), Fit::Verbatim)
                } else if let Some(n) = loose(rest, content).and_then(|n| {
                    let spaces = rest[n..].len() - rest[n..].trim_start_matches(is_space).len();
                    (n..=n + spaces).find(|&p| rest.is_char_boundary(p) && follows(&rest[p..]))
                }) {
                    (n, Fit::Respaced)
                } else if last {
                    (
                        rest.len()
                            .checked_sub(next.len())
                            .filter(|&n| rest.is_char_boundary(n) && &rest[n..] == next)?,
                        Fit::Lost,
                    )
                } else {
                    (rest.find(sure).filter(|_| sure.len() > 1)?, Fit::Lost)
                };
                verbatim &= fit == Fit::Verbatim;
                slots.push((*k, at, at + n, fit));
                at += n;
            }
        }
    }
    (at == text.len()).then_some((slots, starts, verbatim))
}

/// How far `content` reaches in `rest` when white space does not count.
pub fn loose(rest: &str, content: &str) -> Option<usize> {
    let mut found = rest.char_indices().filter(|(_, c)| !is_space(*c));
    let mut end = 0;
    for c in content.chars().filter(|c| !is_space(*c)) {
        let (at, d) = found.next()?;
        if c != d {
            return None;
        }
        end = at + c.len_utf8();
    }
    (end > 0 || content.chars().all(is_space)).then_some(end)
}

/// Length of an empty thought at the start of `text`.
pub fn empty_thought(text: &str) -> usize {
    let inside = text.strip_prefix("<think>").map(|t| t.trim_start_matches(is_space));
    match inside.and_then(|t| t.strip_prefix("</think>")) {
        Some(after) => text.len() - after.trim_start_matches(is_space).len(),
        None => 0,
    }
}
