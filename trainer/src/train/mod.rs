//! The training loop and what feeds it.
//!
//! `source` makes the model ready, `data` the batches, `run` goes through the token budget step by `step` (in micro-batches that
//! `micro` and `memory` fit to the device), `evaluate` and `report` tell about it, `finish` exports.

pub mod data;
pub mod evaluate;
pub mod finish;
pub mod flops;
mod memory;
pub mod micro;
pub mod report;
pub mod run;
pub mod source;
mod step;
pub mod tensorboard;
