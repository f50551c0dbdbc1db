//! Attention over block-diffusion streams, in three implementations of the same function: under a
//! dense mask (the reference), over key ranges (any device), and by tiles (CPU, fp32).

pub mod dense;
pub mod plan;
pub mod ranges;
pub mod tiles;

pub use plan::{KeyRange, Tile, TilePlan};
