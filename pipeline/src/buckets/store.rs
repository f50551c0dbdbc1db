//! The operations of a bucket, each one try: `folder.rs` repeats them.

use super::fault::Fault;
use bytes::Bytes;
use std::ops::Range;

/// Result of one try.
pub(crate) type Outcome<T> = std::result::Result<T, Fault>;

/// An object as the bucket describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectInfo {
    /// Its whole key.
    pub key: String,
    pub bytes: u64,
    /// What changes with the content: the ETag, or the generation; of a file its time.
    pub tag: Option<String>,
}

/// The content of a large object, part after part.
pub(crate) trait Parts {
    /// The next part; none at the end.
    fn next(&mut self) -> Outcome<Option<Bytes>>;

    /// A part of this many bytes has arrived.
    fn arrived(&mut self, bytes: u64);
}

/// A bucket.
pub(crate) trait Store: Send + Sync {
    /// Everything below a folder (a key without a slash at its end; empty for all).
    fn list(&self, folder: &str) -> Outcome<Vec<ObjectInfo>>;

    fn head(&self, key: &str) -> Outcome<ObjectInfo>;

    /// Hands ranges of an object over, one after another, until `take` fails. Some are fetched
    /// ahead. Each range arrives whole, and of an object with the given tag, if one is given.
    fn read(
        &self,
        key: &str,
        ranges: Vec<Range<u64>>,
        tag: Option<&str>,
        take: &mut dyn FnMut(Bytes) -> Outcome<()>,
    ) -> Outcome<()>;

    /// Writes a small object. It appears whole or not at all.
    fn write(&self, key: &str, content: Bytes) -> Outcome<()>;

    /// Writes a large object in parts. It appears whole or not at all.
    fn write_parts(&self, key: &str, parts: &mut dyn Parts) -> Outcome<()>;

    /// Removes an object; one that is not there is removed already.
    fn remove(&self, key: &str) -> Outcome<()>;
}

/// The reason for a range that is not what was asked for.
pub(crate) fn short(expected: u64, found: u64) -> Fault {
    use super::fault::FaultKind::Passing;
    Fault::new(Passing, format!("the bucket sends {found} bytes of a range of {expected}"))
}

/// The reason for an object that changed while it was read.
pub(crate) fn changed() -> Fault {
    use super::fault::FaultKind::Lasting;
    Fault::new(Lasting, "the object was replaced while it was read; give the same command again")
}
