//! What the program can be told to do, one file each.

pub mod bench;
pub mod build;
pub mod inspect;
pub mod render;
pub mod stats;
pub mod verify;
