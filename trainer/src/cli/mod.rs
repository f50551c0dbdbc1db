//! The subcommands of `dlm-train`, one file each.

pub mod bench;
pub mod eval;
pub mod export;
pub mod generate;
pub mod parity;
pub mod train;
