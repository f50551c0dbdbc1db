//! Throughput of training at true shapes, with random weights and synthetic packed rows, and times
//! of decoding passes.
//!
//! In: [`TrainBenchOptions`]. Out: [`TrainBenchReport`]. `options.rs` has the settings,
//! `presets.rs` the shapes, `rows.rs` the data, `train.rs` the measurement; `decode.rs` measures
//! decoding.

mod decode;
mod options;
pub(crate) mod presets;
mod rows;
mod train;

pub(crate) use decode::{DecodeBenchOptions, DecodeBenchReport, Measured, measure_decoding};
pub(crate) use options::{BenchLayout, TrainBenchOptions};
pub(crate) use train::{TrainBenchReport, measure};
