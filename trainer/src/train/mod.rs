//! The training loop and what feeds it.
//!
//! `source` makes the model ready, `data` the batches, `run` goes through the token budget step by
//! `step` (in micro-batches that `micro` and `memory` fit to the device), `evaluate` and `report`
//! tell about it, `finish` exports.

pub mod data;
pub mod evaluate;
pub mod finish;
pub mod flops;
pub mod micro_batch;
mod out_of_memory;
pub mod run;
mod step;
