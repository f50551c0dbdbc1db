//! Tests across several rooms of this crate.

mod frame;
mod fuzz;
mod goldens;
