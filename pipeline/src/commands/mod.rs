//! What the program can be told to do, one file each.

pub mod bench;
pub mod build;
pub mod export_hf;
pub mod inspect;
pub mod merge;
pub mod render;
pub mod stats;
pub mod verify;
