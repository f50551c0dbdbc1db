//! Rendered conversations become documents: token ids, labels, cuts to the row length, and padding
//! to the block grid.

pub mod block;
pub mod encode_skeleton;
pub mod supervise;
pub mod truncate;
