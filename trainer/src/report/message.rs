//! Lines for people, on stderr.

use std::fmt::Display;
use std::io::Write;

/// Write one line to stderr. A closed stderr is ignored: a run does not end because nobody reads
/// its messages.
pub fn message(line: impl Display) {
    let line = format!("{line}\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
}
