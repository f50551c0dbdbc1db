//! What the program can be told to do, one file each.

pub mod args;
pub mod bench;
pub mod export_hf;
pub mod inspect;
pub mod merge;
pub mod prepare;
pub mod render;
pub mod signals;
pub mod stats;
pub mod stats_html;
pub mod verify;
