//! Training, export and decoding.
pub mod config;
