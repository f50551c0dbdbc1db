//! Rendered conversations become documents: token ids, labels, cuts to the row length, and padding
//! to the block grid.

pub(crate) mod block;
pub(crate) mod encode_skeleton;
pub(crate) mod masked;
pub(crate) mod supervise;
pub(crate) mod truncate;
pub(crate) mod turns;
