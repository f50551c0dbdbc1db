//! The subcommands of `dlm-train`, one file each.

pub mod parity;
pub mod train;
