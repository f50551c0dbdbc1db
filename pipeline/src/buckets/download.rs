//! Objects as local files: fetched in ranges, continued after an interruption, checked.

use super::address::is_plain;
use super::fault::{Fault, FaultKind};
use super::folder::{BucketFolder, BucketObject};
use super::tag::{Comparison, ContentMd5, ContentTags};
use super::upload::part_bytes;
use crate::error::{Error, Result};
use dlm_datasets::hash::{HashWriter, sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Bytes of a range.
const PIECE: u64 = 8 << 20;
/// How often an object is fetched whose content is not what it should be.
const ATTEMPTS: usize = 2;

impl BucketFolder<'_> {
    /// Fetches an object of a listing to the file `to` and returns its sha256. What an earlier try
    /// left is continued where the object is still the same. The length must be that of the
    /// listing; the content must have the given sha256, else, where the tag is an MD5, that MD5.
    ///
    /// # Errors
    /// [`Error::Input`] with the bucket's reason, [`Error::Damaged`] where the content is wrong
    /// twice; [`Error::Io`] of the local disk.
    pub fn fetch(
        &self,
        object: &BucketObject,
        to: &Path,
        expected: Option<&str>,
    ) -> Result<String> {
        let name = object.name.as_str();
        if !is_plain(name) {
            let text = "the name could lead out of the folder that it is fetched to; refused";
            return Err(self.error(name, &Fault::new(FaultKind::Lasting, text)));
        }
        let dir = to.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(Error::io("making the folder", dir))?;
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let part = self.fetch_part(object, to)?;
            let (sha256, tags) = sums(&part, object.bytes)?;
            let right = match expected {
                Some(expected) => expected == sha256,
                // The same content twice is what the bucket holds, whatever its tag looks like.
                None => {
                    tags.compare(object.tag.as_deref()) != Comparison::Differs
                        || before.as_ref() == Some(&sha256)
                }
            };
            if right {
                let flushed = File::open(&part).and_then(|file| file.sync_all());
                flushed.map_err(Error::io("flushing", &part))?;
                dlm_datasets::fs::rename(&part, to)?;
                return Ok(sha256);
            }
            std::fs::remove_file(&part).map_err(Error::io("removing", &part))?;
            before = Some(sha256);
        }
        let reason = match expected {
            Some(expected) => format!(
                "fetched {ATTEMPTS} times, and the content is not what it should be: its sha256 is {}, expected {expected}",
                before.unwrap_or_default()
            ),
            None => format!(
                "fetched {ATTEMPTS} times, with a different content each time, and neither is that of its tag"
            ),
        };
        Err(Error::Damaged { path: self.address.join(name).to_string(), reason })
    }

    /// The bytes of an object in a file beside `to`, complete.
    fn fetch_part(&self, object: &BucketObject, to: &Path) -> Result<PathBuf> {
        let version = format!("{} {:?} {}", self.address, object.tag, object.bytes);
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let part = to.with_file_name(format!(".{name}.{}.part", &sha256(version.as_bytes())[..8]));
        let have = || std::fs::metadata(&part).map_or(0, |meta| meta.len());
        if have() > object.bytes {
            std::fs::remove_file(&part).map_err(Error::io("removing", &part))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&part)
            .map_err(Error::io("opening", &part))?;
        let mut disk = None;
        let fetched = self.retry_while(have, || {
            let start = have();
            let ranges: Vec<_> = (start..object.bytes)
                .step_by(PIECE as usize)
                .map(|from| from..(from + PIECE).min(object.bytes))
                .collect();
            if ranges.is_empty() {
                return Ok(());
            }
            self.store.read(&self.key(&object.name), ranges, object.tag.as_deref(), &mut |bytes| {
                self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                file.write_all(&bytes).map_err(|e| {
                    let fault = Fault::new(FaultKind::Lasting, "the disk");
                    disk = Some(e);
                    fault
                })
            })
        });
        if fetched.is_err() && have() == 0 {
            // nothing to go on from
            let _ = std::fs::remove_file(&part);
        }
        match (fetched, disk) {
            (_, Some(e)) => Err(Error::io("writing", &part)(e)),
            (Err(fault), None) => Err(self.error(&object.name, &fault)),
            (Ok(()), None) => Ok(part),
        }
    }
}

/// sha256 of a file, and the tags that an object with its content can have.
pub(super) fn sums(path: &Path, bytes: u64) -> Result<(String, ContentTags)> {
    let mut file = File::open(path).map_err(Error::io("opening", path))?;
    let (mut hash, mut md5) =
        (HashWriter::new(std::io::sink()), ContentMd5::new(part_bytes(bytes)));
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("reading", path))?;
        if n == 0 {
            return Ok((hash.finish().2, md5.finish()));
        }
        hash.write_all(&buffer[..n]).map_err(Error::io("reading", path))?;
        md5.update(&buffer[..n]);
    }
}
