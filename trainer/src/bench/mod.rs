//! Throughput measurements.

pub mod presets;
