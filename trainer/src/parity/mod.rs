//! Comparison of this implementation with reference tensors: logits, loss and gradients of one
//! batch.
//!
//! In: a model folder and a case file made by another implementation ([`case`]). Out: the largest
//! differences and whether they are within tolerance ([`ParityReport`]). `compare.rs` computes,
//! `differences.rs` measures, `tolerances.rs` says how much may differ.

mod case;
mod compare;
mod differences;
mod tolerances;

pub(crate) use compare::compare;
pub use compare::{ParityOptions, ParityReport};
pub use tolerances::{ToleranceOptions, Tolerances};
