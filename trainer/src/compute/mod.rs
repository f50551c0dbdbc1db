//! The device a run computes on.

pub mod device;
