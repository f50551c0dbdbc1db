//! Placeholders that stand for other text while a template renders.
//!
//! They consist of Unicode noncharacters (U+FDD0 to U+FDEF), which never occur in text meant for
//! interchange; rows that contain any of them are dropped (`reserved_characters`). A numbered
//! placeholder is a start character, a number of four base-16 digits (U+FDD2 to U+FDE1) and an end
//! character.

/// Start and end of the placeholder for the content of message number n.
pub(crate) const CONTENT_START: char = '\u{FDD0}';
pub(crate) const CONTENT_END: char = '\u{FDD1}';

/// Start and end of mark number n inside a call or a thought.
pub(crate) const MARK_START: char = '\u{FDE4}';
pub(crate) const MARK_END: char = '\u{FDE5}';

/// Written before and after each `{% generation %}` block when the template context asks for it.
pub(crate) const GENERATION_START: char = '\u{FDEC}';
pub(crate) const GENERATION_END: char = '\u{FDED}';

/// Written in the text of a method that a template prints instead of calling it.
pub(crate) const METHOD_MARK: char = '\u{FDEB}';

/// Start and end of the placeholder for the string of control token number n.
pub(crate) const CONTROL_START: char = '\u{FDEE}';
pub(crate) const CONTROL_END: char = '\u{FDEF}';

const DIGIT_ZERO: u32 = 0xFDD2;

/// Appends the placeholder number `n` (below 65,536) to `out`.
pub(crate) fn push_placeholder(start: char, n: usize, end: char, out: &mut String) {
    out.push(start);
    for shift in (0..4).rev() {
        out.extend(char::from_u32(DIGIT_ZERO + ((n >> (4 * shift)) & 15) as u32));
    }
    out.push(end);
}

/// Reads a placeholder whose start character precedes `text`. Gives its number and the text after
/// it.
pub(crate) fn parse_placeholder(text: &str, end: char) -> Option<(usize, &str)> {
    let mut n = 0;
    let mut chars = text.char_indices();
    for _ in 0..4 {
        let (_, c) = chars.next()?;
        let digit = (c as u32).checked_sub(DIGIT_ZERO).filter(|d| *d < 16)?;
        n = n * 16 + digit as usize;
    }
    let (at, c) = chars.next()?;
    (c == end).then(|| (n, &text[at + c.len_utf8()..]))
}
