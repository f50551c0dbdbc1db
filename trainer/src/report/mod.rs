//! What a run reports: metrics as JSON lines, TensorBoard event files, plots, lines on the
//! terminal.

pub(crate) mod console;
pub mod metrics;
pub mod plot;
pub mod step_record;
pub mod tensorboard;
