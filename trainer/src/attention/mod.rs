//! Attention over block-diffusion streams: by tiles on a CPU, over key ranges on any device.

pub mod ranges;
pub mod tiles;
mod tiles_cpu;
