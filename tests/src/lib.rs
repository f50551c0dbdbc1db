//! The sample data set: its generator, and small runs on it that several tests need.
//!
//! In: seeds, a temporary folder, arguments. Out: conversations and files, a packed dataset, a
//! training run.

pub mod sample;
pub mod samples;
