//! This implementation held against reference tensors.

pub mod case;
