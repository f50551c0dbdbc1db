//! Documents to packed rows and files.

pub mod mixture;
pub mod packer;
pub mod sink;
