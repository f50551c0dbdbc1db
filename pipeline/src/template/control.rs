//! Control-token strings inside message content, which are text and must stay text.
//!
//! In: content as people wrote it. Out: the same with every control-token string replaced by a mark
//! the template carries through untouched; after rendering, what looks like a control token is one
//! the template wrote, and a mark is text. Marks are Unicode noncharacters (U+FDD0 … U+FDEF), which
//! never occur in text meant for interchange; rows that hold some are dropped by name.

use crate::error::{Error, Result};
use crate::tokenize::tokenizer::AddedToken;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use serde_json::Value;

const OPEN: char = '\u{FDEE}';
const CLOSE: char = '\u{FDEF}';
const DIGIT: u32 = 0xFDD2;

/// `n` as a mark between two noncharacters.
pub fn mark(open: char, n: usize, close: char, out: &mut String) {
    out.push(open);
    for shift in (0..4).rev() {
        out.extend(char::from_u32(DIGIT + ((n >> (4 * shift)) & 15) as u32));
    }
    out.push(close);
}

/// The number of a mark that `text` starts with (behind its opening character), and what follows
/// it.
pub fn read_mark(text: &str, close: char) -> Option<(usize, &str)> {
    let mut n = 0;
    let mut chars = text.char_indices();
    for _ in 0..4 {
        let (_, c) = chars.next()?;
        let digit = (c as u32).checked_sub(DIGIT).filter(|d| *d < 16)?;
        n = n * 16 + digit as usize;
    }
    let (at, c) = chars.next()?;
    (c == close).then(|| (n, &text[at + c.len_utf8()..]))
}

/// Finds control tokens.
pub struct ControlText {
    /// The tokens.
    finder: AhoCorasick,
    /// The tokens, triggers, and last the first two bytes of the reserved noncharacters, overlaps
    /// included.
    looker: AhoCorasick,
    tokens: Vec<(String, i32)>,
    triggers: usize,
}

/// What was found in texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlMatch {
    /// Control-token strings.
    pub control: bool,
    /// Strings the template treats specially.
    pub trigger: bool,
    /// Characters we use as marks.
    pub reserved: bool,
}

impl ControlText {
    /// For a tokenizer's control tokens.
    pub fn new(added: &[AddedToken], eos: Option<&str>) -> Result<Self> {
        Self::with_triggers(added, eos, &[])
    }

    /// [`new`](Self::new), looking out for `triggers` too.
    pub fn with_triggers(
        added: &[AddedToken],
        eos: Option<&str>,
        triggers: &[String],
    ) -> Result<Self> {
        let wanted = |t: &&AddedToken| {
            (t.special || Some(t.content.as_str()) == eos) && !t.content.is_empty()
        };
        let tokens: Vec<(String, i32)> =
            added.iter().filter(wanted).map(|t| (t.content.clone(), t.id as i32)).collect();
        let failed = |e: aho_corasick::BuildError| {
            Error::Internal(format!("searching for control tokens: {e}"))
        };
        let mut patterns: Vec<&[u8]> = tokens.iter().map(|(s, _)| s.as_bytes()).collect();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&patterns)
            .map_err(failed)?;
        patterns.extend(triggers.iter().map(String::as_bytes));
        patterns.push(&[0xEF, 0xB7]);
        let looker = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&patterns)
            .map_err(failed)?;
        Ok(ControlText { finder, looker, tokens, triggers: triggers.len() })
    }

    /// The tokens and their ids.
    pub fn tokens(&self) -> &[(String, i32)] {
        &self.tokens
    }

    /// Looks through a text; adds to `found`.
    pub fn look(&self, text: &str, found: &mut ControlMatch) {
        // The common case, nothing at all, is one pass that may skip; only then is every match,
        // overlaps too, looked at.
        if !self.looker.is_match(text) {
            return;
        }
        for m in self.looker.find_overlapping_iter(text) {
            let k = m.pattern().as_usize();
            if k < self.tokens.len() {
                found.control = true;
            } else if k < self.tokens.len() + self.triggers {
                found.trigger = true;
            } else if text.as_bytes().get(m.end()).is_some_and(|b| (0x90..=0xAF).contains(b)) {
                found.reserved = true;
            }
        }
    }

    /// The first control token in `text`: where, how long, its id.
    pub fn first(&self, text: &str) -> Option<(usize, usize, i32)> {
        let m = self.finder.find(text)?;
        Some((m.start(), m.len(), self.tokens[m.pattern().as_usize()].1))
    }

    /// Replaces control-token strings by marks.
    pub fn mark(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let mut from = 0;
        for m in self.finder.find_iter(text) {
            out.push_str(&text[from..m.start()]);
            mark(OPEN, m.pattern().as_usize(), CLOSE, &mut out);
            from = m.end();
        }
        out.push_str(&text[from..]);
        out
    }

    /// [`mark`](Self::mark) for every string in a JSON value.
    pub fn mark_json(&self, v: &mut Value) {
        match v {
            Value::String(s) => *s = self.mark(s),
            Value::Array(a) => a.iter_mut().for_each(|x| self.mark_json(x)),
            Value::Object(o) => o.values_mut().for_each(|x| self.mark_json(x)),
            _ => {}
        }
    }

    /// Looks through every string of a JSON value.
    pub fn look_json(&self, v: &Value, found: &mut ControlMatch) {
        match v {
            Value::String(s) => self.look(s, found),
            Value::Array(a) => a.iter().for_each(|x| self.look_json(x, found)),
            Value::Object(o) => o.iter().for_each(|(k, x)| {
                self.look(k, found);
                self.look_json(x, found);
            }),
            _ => {}
        }
    }

    /// The text with its marks turned back.
    pub fn unmark(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(OPEN) {
            out.push_str(&rest[..at]);
            let after = &rest[at + OPEN.len_utf8()..];
            match read_mark(after, CLOSE)
                .and_then(|(n, tail)| self.tokens.get(n).map(|t| (t, tail)))
            {
                Some(((token, _), tail)) => {
                    out.push_str(token);
                    rest = tail;
                }
                None => {
                    out.push(OPEN);
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        out
    }

    /// Splits text at control tokens: (text between, id and length of the token after it).
    pub fn split<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (&'a str, Option<(i32, usize)>)> + 'a {
        let mut rest = Some(text);
        std::iter::from_fn(move || {
            let text = rest.take()?;
            match self.first(text) {
                Some((at, len, id)) => {
                    rest = Some(&text[at + len..]);
                    Some((&text[..at], Some((id, len))))
                }
                None => Some((text, None)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn control() -> ControlText {
        let t =
            |content: &str, id, special| AddedToken { content: content.to_string(), id, special };
        ControlText::new(
            &[
                t("<|a|>", 1, true),
                t("<|ab|>", 2, true),
                t("<think>", 3, false),
                t("</s>", 4, false),
            ],
            Some("</s>"),
        )
        .unwrap()
    }

    #[test]
    fn finds_what_controls() {
        let c = control();
        let (nothing, control) =
            (ControlMatch::default(), ControlMatch { control: true, ..Default::default() });
        assert_eq!(look(&c, "plain <think> <|x|>"), nothing);
        assert_eq!(look(&c, "x<|ab|>"), control);
        assert_eq!(look(&c, "</s>"), control);
        assert_eq!(look(&c, "a\u{FDD0}"), ControlMatch { reserved: true, ..Default::default() });
        assert_eq!(look(&c, "a\u{FDCF}\u{FDF0}"), nothing);
        let parts: Vec<_> = c.split("x<|a|>y</s>").collect();
        assert_eq!(parts, [("x", Some((1, 5))), ("y", Some((4, 4))), ("", None)]);
        let c = ControlText::with_triggers(&[], None, &["</think>".to_string()]).unwrap();
        assert_eq!(look(&c, "a</think>"), ControlMatch { trigger: true, ..Default::default() });
    }

    fn look(c: &ControlText, text: &str) -> ControlMatch {
        let mut found = ControlMatch::default();
        c.look(text, &mut found);
        found
    }

    proptest! {
        #[test]
        fn marks_come_back(parts in prop::collection::vec(prop_oneof![Just("<|a|>".to_string()), Just("<|".to_string()), Just("</s>".to_string()), "\\PC{0,8}"], 0..12)) {
            let c = control();
            let text = parts.concat();
            prop_assume!(!look(&c, &text).reserved);
            let marked = c.mark(&text);
            prop_assert!(c.first(&marked).is_none(), "{:?}", marked);
            prop_assert_eq!(c.unmark(&marked), text);
        }
    }
}
