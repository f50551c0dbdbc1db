//! Local files as objects: small ones at once, large ones in parts; each one is looked at
//! afterwards.
//!
//! After an upload the bucket must name the length that was sent and, where its tag is an MD5, the
//! MD5. Where the MD5 differs the object is read back: with encryption by keys of a key service
//! tags are no MD5s although they look like it. Wrong content is sent again.

use super::fault::{Fault, FaultKind};
use super::folder::BucketFolder;
use super::store::{Outcome, Parts};
use super::tag::{Comparison, ContentMd5, ContentTags};
use crate::error::{Error, Result};
use bytes::Bytes;
use dlm_datasets::hash::HashWriter;
use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest part of an object that is written in parts. S3 wants 5 MiB and at most 10,000.
const PART: u64 = 8 << 20;
/// Parts of an object, at most.
const MOST_PARTS: u64 = 9_000;
/// How often an object is sent whose content then is another one.
const ATTEMPTS: usize = 3;

/// Bytes of each part of an object.
pub(super) fn part_bytes(bytes: u64) -> u64 {
    PART.max(bytes.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

/// What was sent.
struct Sent {
    bytes: u64,
    sha256: String,
    tags: ContentTags,
}

impl BucketFolder<'_> {
    /// Writes a small object and checks it.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let length = content.len() as u64;
        self.send_checked(name, || Ok((Cursor::new(content), length)), None).map(|_| ())
    }

    /// Sends a file and returns its sha256. A file that grows meanwhile is sent as long as it was
    /// at the beginning.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason, or where the file has not the expected sha256;
    /// [`Error::Io`] of the local disk.
    pub fn upload(&self, name: &str, path: &Path, expected: Option<&str>) -> Result<String> {
        let open = || {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        // Asked here, so that a missing file is an error of the disk and not of the bucket.
        open().map_err(Error::io("opening", path))?;
        self.send_checked(name, open, expected)
    }

    fn send_checked<R: Read>(
        &self,
        name: &str,
        open: impl Fn() -> std::io::Result<(R, u64)>,
        expected: Option<&str>,
    ) -> Result<String> {
        let failed = |fault: Fault| self.error(name, &fault);
        let mut found = String::new();
        for _ in 0..ATTEMPTS {
            let sent = self.retry(|| {
                let (content, length) = open().map_err(|e| Fault::of_io("reading the file", &e))?;
                self.send(name, content, length)
            });
            let sent = sent.map_err(failed)?;
            if let Some(expected) = expected.filter(|sha256| *sha256 != sent.sha256) {
                // What stands there now is of no use to anybody.
                self.remove(name)?;
                let text = format!(
                    "not sent: the local file has the sha256 {}, expected {expected}: it is damaged",
                    sent.sha256
                );
                return Err(failed(Fault::new(FaultKind::Lasting, text)));
            }
            match self.retry(|| self.look(name, &sent)).map_err(failed)? {
                None => return Ok(sent.sha256),
                Some(wrong) => found = wrong,
            }
        }
        let text = format!("sent {ATTEMPTS} times, and each time the bucket then has {found}");
        Err(failed(Fault::new(FaultKind::Lasting, text)))
    }

    fn send(&self, name: &str, content: impl Read, length: u64) -> Outcome<Sent> {
        let part = part_bytes(length);
        let mut parts = FileParts {
            content,
            left: length,
            part,
            hash: HashWriter::new(std::io::sink()),
            md5: ContentMd5::new(part),
            moved: &self.moved,
        };
        let key = self.key(name);
        if length <= part {
            let content = parts.next()?.unwrap_or_default();
            self.store.write(&key, content)?;
            parts.arrived(length);
        } else {
            self.store.write_parts(&key, &mut parts)?;
        }
        Ok(Sent { bytes: length, sha256: parts.hash.finish().2, tags: parts.md5.finish() })
    }

    /// Looks at an object that was sent: none if it is right, else what is there, in words.
    fn look(&self, name: &str, sent: &Sent) -> Outcome<Option<String>> {
        let key = self.key(name);
        let there = match self.store.head(&key) {
            Ok(there) => there,
            Err(fault) if fault.kind == FaultKind::NotFound => {
                return Ok(Some("no such object".to_string()));
            }
            Err(fault) => return Err(fault),
        };
        if there.bytes != sent.bytes {
            return Ok(Some(format!("{} bytes instead of {}", there.bytes, sent.bytes)));
        }
        let odd = self.tags_are_odd.load(Ordering::Relaxed);
        if odd || sent.tags.compare(there.tag.as_deref()) != Comparison::Differs {
            return Ok(None);
        }
        let (mut hash, mut from) = (HashWriter::new(std::io::sink()), 0);
        let mut ranges = Vec::new();
        while from < there.bytes {
            let to = (from + PART).min(there.bytes);
            ranges.push(from..to);
            from = to;
        }
        self.store.read(&key, ranges, there.tag.as_deref(), &mut |bytes| {
            self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            hash.write_all(&bytes).map_err(|e| Fault::of_io("hashing", &e))
        })?;
        if hash.finish().2 == sent.sha256 {
            self.tags_are_odd.store(true, Ordering::Relaxed);
            return Ok(None);
        }
        Ok(Some("another content, by its sha256".to_string()))
    }
}

/// A content in parts, hashed on the way.
struct FileParts<'m, R> {
    content: R,
    left: u64,
    part: u64,
    hash: HashWriter<std::io::Sink>,
    md5: ContentMd5,
    moved: &'m AtomicU64,
}

impl<R: Read> Parts for FileParts<'_, R> {
    fn next(&mut self) -> Outcome<Option<Bytes>> {
        let length = self.part.min(self.left);
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(length as usize);
        let failed = |e: std::io::Error| Fault::of_io("reading the file", &e);
        (&mut self.content).take(length).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 != length {
            let text = "the file became shorter while it was sent";
            return Err(Fault::new(FaultKind::Lasting, text));
        }
        self.left -= length;
        self.hash.write_all(&bytes).map_err(failed)?;
        self.md5.update(&bytes);
        Ok(Some(bytes.into()))
    }

    fn arrived(&mut self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }
}
