//! Control-token strings inside message content, which must be encoded as ordinary text.
//!
//! In: message content. Out: the content with every string that spells a control token replaced by
//! a placeholder that the template copies unchanged (`placeholder.rs`). After rendering, a string
//! that spells a control token was written by the template and is that token; a placeholder is
//! turned back into text.

use crate::error::{Error, Result};
use crate::parse::conversation::Message;
use crate::parse::json_value::held_integer;
use crate::template::placeholder::{
    CONTROL_END, CONTROL_START, parse_placeholder, push_placeholder,
};
use crate::tokenize::tokenizer::AddedToken;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use serde_json::Value;

/// Searches text for the control tokens of a tokenizer.
pub(crate) struct ControlTokens {
    /// Finds control tokens, leftmost and longest first.
    finder: AhoCorasick,
    /// Finds, overlaps included: the control tokens, then the triggers, then the first two bytes of
    /// the noncharacters that placeholders consist of.
    scanner: AhoCorasick,
    tokens: Vec<(String, i32)>,
    triggers: usize,
}

/// Kinds of strings that [`ControlTokens::scan`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TextScan {
    /// Strings that spell a control token.
    pub control: bool,
    /// Strings that the template treats specially (see [`crate::template::verbatim`]).
    pub trigger: bool,
    /// Noncharacters that placeholders consist of.
    pub reserved: bool,
}

impl ControlTokens {
    /// The control tokens among `added`: those marked special, and the end-of-text token `eos`.
    pub(crate) fn new(added: &[AddedToken], eos: Option<&str>) -> Result<Self> {
        Self::with_triggers(added, eos, &[])
    }

    /// Like [`new`](Self::new); scans for `triggers` too.
    pub(crate) fn with_triggers(
        added: &[AddedToken],
        eos: Option<&str>,
        triggers: &[String],
    ) -> Result<Self> {
        let is_control = |t: &&AddedToken| {
            (t.special || Some(t.content.as_str()) == eos) && !t.content.is_empty()
        };
        let tokens: Vec<(String, i32)> =
            added.iter().filter(is_control).map(|t| (t.content.clone(), t.id as i32)).collect();
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
        let scanner = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&patterns)
            .map_err(failed)?;
        Ok(ControlTokens { finder, scanner, tokens, triggers: triggers.len() })
    }

    /// The control tokens, as strings with their ids.
    pub(crate) fn tokens(&self) -> &[(String, i32)] {
        &self.tokens
    }

    /// Scans a text and sets the flags of `scan` for what it contains.
    pub(crate) fn scan(&self, text: &str, scan: &mut TextScan) {
        // Most texts contain nothing, which one pass finds out quickly. Only the others are
        // searched for every match, overlaps included.
        if !self.scanner.is_match(text) {
            return;
        }
        for m in self.scanner.find_overlapping_iter(text) {
            let k = m.pattern().as_usize();
            if k < self.tokens.len() {
                scan.control = true;
            } else if k < self.tokens.len() + self.triggers {
                scan.trigger = true;
            } else if text.as_bytes().get(m.end()).is_some_and(|b| (0x90..=0xAF).contains(b)) {
                scan.reserved = true;
            }
        }
    }

    /// The first control token in `text`: its byte offset, its length in bytes, its id.
    pub(crate) fn first(&self, text: &str) -> Option<(usize, usize, i32)> {
        let m = self.finder.find(text)?;
        Some((m.start(), m.len(), self.tokens[m.pattern().as_usize()].1))
    }

    /// Replaces strings that spell a control token by placeholders.
    pub(crate) fn escape(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let mut from = 0;
        for m in self.finder.find_iter(text) {
            out.push_str(&text[from..m.start()]);
            push_placeholder(CONTROL_START, m.pattern().as_usize(), CONTROL_END, &mut out);
            from = m.end();
        }
        out.push_str(&text[from..]);
        out
    }

    /// Applies [`escape`](Self::escape) to every string value inside a JSON value.
    pub(crate) fn escape_json(&self, v: &mut Value) {
        match v {
            Value::String(s) => *s = self.escape(s),
            Value::Array(a) => a.iter_mut().for_each(|x| self.escape_json(x)),
            Value::Object(o) => o.values_mut().for_each(|x| self.escape_json(x)),
            _ => {}
        }
    }

    /// Scans every string of a JSON value, keys included.
    pub(crate) fn scan_json(&self, v: &Value, scan: &mut TextScan) {
        match v {
            Value::String(s) if held_integer(s).is_some() => {}
            Value::String(s) => self.scan(s, scan),
            Value::Array(a) => a.iter().for_each(|x| self.scan_json(x, scan)),
            Value::Object(o) => o.iter().for_each(|(k, x)| {
                self.scan(k, scan);
                self.scan_json(x, scan);
            }),
            _ => {}
        }
    }

    /// Scans the contents, tool calls, thoughts, names and ids of messages.
    pub(crate) fn scan_messages(&self, messages: &[Message]) -> TextScan {
        let mut scan = TextScan::default();
        for m in messages {
            self.scan(&m.content, &mut scan);
            let values = m.tool_calls.iter().chain(&m.tool_responses);
            values.for_each(|v| self.scan_json(v, &mut scan));
            m.thoughts().iter().for_each(|t| self.scan(t, &mut scan));
            for text in [&m.name, &m.tool_call_id].into_iter().flatten() {
                self.scan(text, &mut scan);
            }
        }
        scan
    }

    /// Applies [`escape`](Self::escape) to the contents, tool calls, thoughts, names and ids of
    /// messages.
    pub(crate) fn escape_messages<'m>(&self, messages: &[Message<'m>]) -> Vec<Message<'m>> {
        let mut escaped = messages.to_vec();
        for m in &mut escaped {
            m.content = self.escape(&m.content).into();
            let values = m.tool_calls.iter_mut().chain(&mut m.tool_responses);
            values.for_each(|v| self.escape_json(v));
            m.thoughts_mut().for_each(|t| *t = self.escape(t));
            for text in [&mut m.name, &mut m.tool_call_id].into_iter().flatten() {
                *text = self.escape(text);
            }
        }
        escaped
    }

    /// Replaces placeholders by the strings they stand for; the inverse of
    /// [`escape`](Self::escape).
    pub(crate) fn unescape(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(CONTROL_START) {
            out.push_str(&rest[..at]);
            let after = &rest[at + CONTROL_START.len_utf8()..];
            match parse_placeholder(after, CONTROL_END)
                .and_then(|(n, tail)| self.tokens.get(n).map(|t| (t, tail)))
            {
                Some(((token, _), tail)) => {
                    out.push_str(token);
                    rest = tail;
                }
                None => {
                    out.push(CONTROL_START);
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        out
    }

    /// Splits text at control tokens. Each item is the text up to the next control token, and that
    /// token's id and length in bytes (None at the end of the text).
    pub(crate) fn split<'a>(
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

    fn control() -> ControlTokens {
        let t =
            |content: &str, id, special| AddedToken { content: content.to_string(), id, special };
        ControlTokens::new(
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
    fn scan_and_split() {
        let c = control();
        let (nothing, control) =
            (TextScan::default(), TextScan { control: true, ..Default::default() });
        assert_eq!(scan(&c, "plain <think> <|x|>"), nothing);
        assert_eq!(scan(&c, "x<|ab|>"), control);
        assert_eq!(scan(&c, "</s>"), control);
        assert_eq!(scan(&c, "a\u{FDD0}"), TextScan { reserved: true, ..Default::default() });
        assert_eq!(scan(&c, "a\u{FDCF}\u{FDF0}"), nothing);
        let parts: Vec<_> = c.split("x<|a|>y</s>").collect();
        assert_eq!(parts, [("x", Some((1, 5))), ("y", Some((4, 4))), ("", None)]);
        let c = ControlTokens::with_triggers(&[], None, &["</think>".to_string()]).unwrap();
        assert_eq!(scan(&c, "a</think>"), TextScan { trigger: true, ..Default::default() });
    }

    fn scan(c: &ControlTokens, text: &str) -> TextScan {
        let mut seen = TextScan::default();
        c.scan(text, &mut seen);
        seen
    }

    proptest! {
        #[test]
        fn escape_is_reversible(parts in prop::collection::vec(prop_oneof![Just("<|a|>".to_string()), Just("<|".to_string()), Just("</s>".to_string()), "\\PC{0,8}"], 0..12)) {
            let c = control();
            let text = parts.concat();
            prop_assume!(!scan(&c, &text).reserved);
            let escaped = c.escape(&text);
            prop_assert!(c.first(&escaped).is_none(), "{:?}", escaped);
            prop_assert_eq!(c.unescape(&escaped), text);
        }
    }
}
