//! Locates the contents of messages in a finished render.
//!
//! In: a [`Skeleton`], the rendered text and the messages. Out: a [`SkeletonAlignment`]: where each
//! content is in the text, and whether the template changed it.

use crate::parse::conversation::Message;
use crate::template::python_text::is_space;
use crate::template::skeleton::{Piece, Skeleton};

/// How a content compares with the text that the template wrote in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentMatch {
    /// They are equal.
    Exact,
    /// They differ in white space only.
    WhitespaceDiffers,
    /// They differ otherwise, or the template wrote nothing.
    Differs,
}

/// The position of one message's content in the rendered text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentPosition {
    /// Index of the message.
    pub message: usize,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// How the text there compares with the content.
    pub matches: ContentMatch,
}

/// The positions of a skeleton's pieces in a rendered text.
#[derive(Debug)]
pub(crate) struct SkeletonAlignment {
    /// The contents, in the order of the text.
    pub contents: Vec<ContentPosition>,
    /// The first byte of every piece of the skeleton.
    pub piece_starts: Vec<usize>,
}

/// Aligns a skeleton with a rendered text. None if the text does not follow the skeleton.
pub(crate) fn align(s: &Skeleton, text: &str, messages: &[Message]) -> Option<SkeletonAlignment> {
    let mut at = 0;
    let mut contents = Vec::new();
    let mut piece_starts = Vec::with_capacity(s.pieces.len());
    for (i, piece) in s.pieces.iter().enumerate() {
        piece_starts.push(at);
        let rest = &text[at..];
        match piece {
            Piece::Literal(l) => {
                if rest.starts_with(l.as_str()) {
                    at += l.len();
                } else {
                    // The skeleton may have an empty `<think></think>` that the template writes
                    // only for answers without reasoning of their own.
                    let before_close = l
                        .trim_end_matches(is_space)
                        .strip_suffix("</think>")
                        .map(|x| x.trim_end_matches(is_space));
                    let before_think = before_close
                        .and_then(|x| x.strip_suffix("<think>"))
                        .filter(|x| rest.starts_with(x))?;
                    at += before_think.len();
                }
            }
            Piece::Slot(k) => {
                let content = &*messages.get(*k)?.content;
                let next = match s.pieces.get(i + 1) {
                    Some(Piece::Literal(l)) => l.as_str(),
                    _ => "",
                };
                let last = i + 2 >= s.pieces.len();
                // The next literal, up to a `<think>` that the template may omit in this text.
                let certain = match next.find("<think>") {
                    Some(at) => &next[..at],
                    None => next,
                };
                let follows = |tail: &str| {
                    if last { tail == next } else { tail.starts_with(certain) }
                };
                let (n, matches) = if rest.strip_prefix(content).is_some_and(follows) {
                    (content.len(), ContentMatch::Exact)
                } else if let Some(n) = match_ignoring_space(rest, content).and_then(|n| {
                    let spaces = rest[n..].len() - rest[n..].trim_start_matches(is_space).len();
                    (n..=n + spaces).find(|&p| rest.is_char_boundary(p) && follows(&rest[p..]))
                }) {
                    (n, ContentMatch::WhitespaceDiffers)
                } else if last {
                    (
                        rest.len()
                            .checked_sub(next.len())
                            .filter(|&n| rest.is_char_boundary(n) && &rest[n..] == next)?,
                        ContentMatch::Differs,
                    )
                } else {
                    (rest.find(certain).filter(|_| certain.len() > 1)?, ContentMatch::Differs)
                };
                contents.push(ContentPosition { message: *k, start: at, end: at + n, matches });
                at += n;
            }
        }
    }
    (at == text.len()).then_some(SkeletonAlignment { contents, piece_starts })
}

/// Whether `rest` starts with `content` if white space is ignored in both. Gives the number of
/// bytes of `rest` up to the last matching character.
pub(crate) fn match_ignoring_space(rest: &str, content: &str) -> Option<usize> {
    let mut characters = rest.char_indices().filter(|(_, c)| !is_space(*c));
    let mut end = 0;
    for c in content.chars().filter(|c| !is_space(*c)) {
        let (at, d) = characters.next()?;
        if c != d {
            return None;
        }
        end = at + c.len_utf8();
    }
    (end > 0 || content.chars().all(is_space)).then_some(end)
}

/// Length in bytes of an empty `<think></think>` block at the start of `text`, with the white space
/// after it; 0 if there is none.
pub(crate) fn empty_think_block(text: &str) -> usize {
    let inside = text.strip_prefix("<think>").map(|t| t.trim_start_matches(is_space));
    match inside.and_then(|t| t.strip_prefix("</think>")) {
        Some(after) => text.len() - after.trim_start_matches(is_space).len(),
        None => 0,
    }
}
