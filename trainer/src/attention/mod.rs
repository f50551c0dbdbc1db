//! Attention over block-diffusion streams, in three implementations of the same function: under a
//! dense mask (the reference), over key ranges (any device), and by tiles (CPU, fp32).

pub(crate) mod dense;
pub(crate) mod plan;
pub(crate) mod ranges;
pub(crate) mod tiles;

pub(crate) use plan::{KeyRange, Tile, TilePlan};
