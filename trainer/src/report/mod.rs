//! What a run reports: messages, metrics as JSON lines, TensorBoard event files, Weights & Biases,
//! plots.

pub(crate) mod console;
pub(crate) mod held_out;
pub(crate) mod metrics;
pub(crate) mod plot;
pub(crate) mod proposals;
pub(crate) mod step_record;
pub(crate) mod tensorboard;
pub(crate) mod wandb;
