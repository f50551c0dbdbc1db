//! What a run reports: metrics as JSON lines, TensorBoard event files, plots.

pub mod metrics;
pub mod plot;
mod svg;
pub mod tensorboard;
