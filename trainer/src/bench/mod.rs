//! Throughput of training at true shapes, with random weights and synthetic packed rows.
//!
//! In: [`TrainBenchOptions`]. Out: [`TrainBenchReport`]. `presets.rs` has the shapes, `rows.rs` the
//! data, `train.rs` the measurement.

mod presets;
mod rows;
mod train;

pub use train::{BenchLayout, TrainBenchOptions, TrainBenchReport, measure};
