//! Errors of templates as one line for people.

use crate::template::limits::{FUEL, MESSAGE_CHARS};
use minijinja::ErrorKind;

/// How the message for a render without end begins.
pub(crate) const OUT_OF_FUEL: &str = "the template takes more steps";

/// The message of an error on one line, without minijinja's source listing.
pub(crate) fn one_line(e: &minijinja::Error) -> String {
    if e.kind() == ErrorKind::OutOfFuel {
        return format!(
            "{OUT_OF_FUEL} than are allowed for one conversation ({} million, and more for long ones; --help lists the limits)",
            FUEL / 1_000_000
        );
    }
    let mut out = e.detail().map_or_else(|| e.to_string(), |d| d.to_string());
    if let Some(line) = e.line() {
        out.push_str(&format!(" (line {line} of the template)"));
    }
    let mut shown: String = out.chars().take(MESSAGE_CHARS).collect();
    if shown.len() < out.len() {
        shown.push('…');
    }
    shown.replace('\n', " ")
}
