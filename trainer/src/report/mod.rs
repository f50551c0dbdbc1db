//! What a run reports: messages, metrics as JSON lines, TensorBoard event files, plots.

pub mod metrics;
pub mod plot;
pub mod step_record;
pub mod tensorboard;

use std::fmt::Display;
use std::io::Write;

/// Write one line to stderr. A closed stderr is ignored: a run does not end because nobody reads
/// its messages.
pub fn message(line: impl Display) {
    let line = format!("{line}\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
}
