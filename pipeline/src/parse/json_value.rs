//! JSON as Python writes it.
//!
//! In: text. Out: a JSON value. What this program cannot hold (`NaN`, `Infinity`, integers of 2^64
//! or more, which would lose digits) becomes a text that no conversation may contain: it does no
//! harm in a column that is not used, and elsewhere the row is dropped by name.

use serde_json::Value;

/// Stands for a value that cannot be held.
const UNHELD: &str = "\"\u{FDD0}\"";

/// The value in a text; None if it is not JSON.
pub(crate) fn parse_json(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(v) if !has_long_number(text) => Some(v),
        parsed => match replaced(text) {
            Some(text) => serde_json::from_str(&text).ok(),
            None => parsed.ok(),
        },
    }
}

/// Whether nineteen digits stand in a row, which is as many as 2^63 has.
fn has_long_number(text: &str) -> bool {
    text.as_bytes().split(|b| !b.is_ascii_digit()).any(|digits| digits.len() >= 19)
}

/// The text with every value that cannot be held replaced; None if there is none.
fn replaced(text: &str) -> Option<String> {
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
            out.push_str(UNHELD);
            any = true;
        } else {
            out.push_str(token);
        }
        rest = &rest[taken..];
    }
    out.push_str(rest);
    any.then_some(out)
}
