//! Cached keys and values of a decoding engine.

use crate::device::Buffer;

/// Keys and values of every layer, each `[rows · positions, K · D]`.
pub(crate) struct Cache {
    pub rows: usize,
    pub positions: usize,
    pub buffer: Buffer,
}
