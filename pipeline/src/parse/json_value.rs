//! JSON as Python writes it.
//!
//! In: text. Out: a JSON value. An integer of 2^64 or more, which would lose digits, becomes a text
//! that holds them, and is an integer again for templates ([`WithIntegers`]). What this program
//! cannot hold (`NaN`, `Infinity`, integers of more than 38 digits) becomes a text that no
//! conversation may contain: it does no harm in a column that is not used, and elsewhere the row is
//! dropped by name.

use serde::Serializer;
use serde_json::Value;
use std::borrow::Cow;

/// Stands for a value that cannot be held.
const UNHELD: &str = "\"\u{FDD0}\"";
/// Precedes the digits of an integer that a JSON value cannot hold.
const DIGITS: char = '\u{FDE3}';

/// The value in a text.
pub(crate) fn parse_json(text: &str) -> serde_json::Result<Value> {
    match serde_json::from_str(text) {
        Ok(v) if !has_long_number(text) => Ok(v),
        parsed => {
            let held = |token: &str| match token.parse::<i128>() {
                Ok(_) => format!("\"{DIGITS}{token}\""),
                Err(_) => UNHELD.to_string(),
            };
            let text = without_marks(text);
            match (replaced(&text, &held), text) {
                (Some(text), _) => serde_json::from_str(&text),
                (None, Cow::Owned(text)) => serde_json::from_str(&text),
                (None, _) => parsed,
            }
        }
    }
}

/// A JSON text whose strings do not look like the integers of this module.
fn without_marks(text: &str) -> Cow<'_, str> {
    if !text.contains(DIGITS) && !text.to_ascii_lowercase().contains("\\ufde3") {
        return text.into();
    }
    let mut out = text.replace(DIGITS, "\u{FDD0}");
    while let Some(at) = out.to_ascii_lowercase().find("\\ufde3") {
        out.replace_range(at..at + 6, "\\ufdd0");
    }
    out.into()
}

/// The digits of an integer that [`parse_json`] holds as a text.
pub(crate) fn held_integer(text: &str) -> Option<&str> {
    let digits = text.strip_prefix(DIGITS)?;
    digits.parse::<i128>().is_ok().then_some(digits)
}

/// Serializes tool calls with their integers.
pub(crate) fn with_integers<S: Serializer>(v: &Option<Value>, s: S) -> Result<S::Ok, S::Error> {
    match v {
        Some(v) => s.serialize_some(&WithIntegers(v)),
        None => s.serialize_none(),
    }
}

/// Serializes what [`parse_json`] gave, with its integers.
pub(crate) struct WithIntegers<'a>(pub &'a Value);

impl serde::Serialize for WithIntegers<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Array(list) => s.collect_seq(list.iter().map(WithIntegers)),
            Value::Object(map) => s.collect_map(map.iter().map(|(k, v)| (k, WithIntegers(v)))),
            Value::String(text) => {
                match held_integer(text).and_then(|digits| digits.parse::<i128>().ok()) {
                    Some(number) => s.serialize_i128(number),
                    None => s.serialize_str(text),
                }
            }
            other => other.serialize(s),
        }
    }
}

/// Whether nineteen digits stand in a row, which is as many as 2^63 has.
fn has_long_number(text: &str) -> bool {
    text.as_bytes().split(|b| !b.is_ascii_digit()).any(|digits| digits.len() >= 19)
}

/// The text with every value that cannot be held replaced; None if there is none.
fn replaced(text: &str, stand_in: &dyn Fn(&str) -> String) -> Option<String> {
    let (mut out, mut rest, mut any) = (String::with_capacity(text.len() + 16), text, false);
    while let Some(at) = rest.find(|c: char| matches!(c, '"' | 'N' | 'I' | '-' | '0'..='9')) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|w| rest.starts_with(w));
        let taken = if let Some(text) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = text.bytes().position(|b| {
                let end = b == b'"' && !escaped;
                escaped = b == b'\\' && !escaped;
                end
            })?;
            end + 2
        } else if let Some(word) = word {
            word.len()
        } else {
            let number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
            rest.find(|c| !number(c)).unwrap_or(rest.len()).max(1)
        };
        let token = &rest[..taken];
        let integer = token.strip_prefix('-').unwrap_or(token);
        let huge = integer.len() >= 19
            && integer.bytes().all(|b| b.is_ascii_digit())
            && token.parse::<u64>().is_err()
            && token.parse::<i64>().is_err();
        if word.is_some() || huge {
            out.push_str(&stand_in(token));
            any = true;
        } else {
            out.push_str(token);
        }
        rest = &rest[taken..];
    }
    out.push_str(rest);
    any.then_some(out)
}
