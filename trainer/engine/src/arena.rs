//! Memory for what a pass keeps: one allocation that is handed out front to back.

use std::rc::Rc;

use crate::device::{Buffer, Device};
use crate::error::Result;

/// Every piece starts at a multiple of this, bytes.
const ALIGNMENT: usize = 256;

/// Hands out addresses; with address 0 as its start it only counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    start: u64,
    used: usize,
    /// Bytes of one element of activations.
    element: usize,
}

impl Cursor {
    pub(crate) fn new(start: u64) -> Self {
        Cursor::of(start, 4)
    }

    /// A cursor for activations whose elements have this many bytes.
    pub(crate) fn of(start: u64, element: usize) -> Self {
        Cursor { start, used: 0, element }
    }

    /// The address of `bytes` bytes.
    pub(crate) fn take(&mut self, bytes: usize) -> u64 {
        let at = self.start + self.used as u64;
        self.used += bytes.next_multiple_of(ALIGNMENT);
        at
    }

    /// `[rows, columns]` activations.
    pub(crate) fn act(&mut self, rows: usize, columns: usize) -> u64 {
        self.take(self.element * rows * columns)
    }

    /// `[rows, columns]` fp32.
    pub(crate) fn fp32(&mut self, rows: usize, columns: usize) -> u64 {
        self.take(4 * rows * columns)
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// One allocation, made larger when a batch needs more.
#[derive(Default)]
pub(crate) struct Arena {
    buffer: Option<Buffer>,
}

impl Arena {
    /// The start of at least `bytes` bytes.
    pub(crate) fn room(
        &mut self,
        device: &Rc<Device>,
        bytes: usize,
        what: &'static str,
    ) -> Result<u64> {
        if let Some(buffer) = self.buffer.as_ref().filter(|buffer| buffer.bytes() >= bytes) {
            return Ok(buffer.address());
        }
        // the old memory first, so that both need not fit
        self.buffer = None;
        // batches differ a little in length; an eighth more saves most further allocations
        let buffer = match device.allocate(bytes + bytes / 8, what) {
            Ok(buffer) => buffer,
            Err(_) => device.allocate(bytes, what)?,
        };
        let address = buffer.address();
        self.buffer = Some(buffer);
        Ok(address)
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.buffer.as_ref().map_or(0, Buffer::bytes)
    }
}
