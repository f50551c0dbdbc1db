//! `y = x Wᵀ` on the CPU for few rows of x, as decoding needs it: weights in fp32, bf16 or int8,
//! sums in fp32.
//!
//! With one row, the time is that of reading the weights: bf16 halves it, int8 quarters it. With
//! some eight rows, each weight is still read from memory once. Shape legend: R rows, I inputs, O
//! outputs. Activations are stored in groups of [`PANEL`] values: `[I / PANEL, R, PANEL]`, padded
//! with zeros, so that a task that computes some panels of outputs writes one contiguous part of
//! the result.

mod matrix;
mod product;
#[cfg(test)]
mod tests;
mod vectors;

pub(crate) use matrix::{Floats, Matrix, Panel};
pub(crate) use product::product;

/// Outputs of a panel, and inputs of a group.
pub(crate) const PANEL: usize = 32;

/// Groups or panels that hold `n` values.
pub(crate) fn groups(n: usize) -> usize {
    n.div_ceil(PANEL)
}

/// Values of one row in one group.
pub(crate) type Row = [f32; PANEL];
