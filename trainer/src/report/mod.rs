//! What a run reports: messages, metrics as JSON lines, TensorBoard event files, plots.

pub(crate) mod console;
pub mod metrics;
pub mod plot;
pub mod step_record;
pub mod tensorboard;
