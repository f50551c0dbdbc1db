//! The training loop and what feeds it.
//!
//! `source` makes the model ready, `data` the batches, `run` steps through the token budget, `report`
//! tells about it, `finish` exports.

pub mod data;
pub mod finish;
pub mod flops;
pub mod micro;
pub mod report;
pub mod run;
pub mod source;
pub mod tensorboard;
