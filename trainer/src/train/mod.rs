//! The training loop and what feeds it.
//!
//! `source` makes the model ready, `data` the batches, `run` steps through the token budget, `report` tells about it.

pub mod data;
pub mod flops;
pub mod report;
pub mod run;
pub mod source;
