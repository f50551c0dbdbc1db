//! `file://`: a folder of this machine as a bucket, such as a mounted one.
//!
//! Objects are files. A file is written under another name and renamed, so that it appears whole or
//! not at all. The tag of a file is its time of change, in nanoseconds, and its length.

use super::fault::{Fault, FaultKind};
use super::store::{ObjectInfo, Outcome, Parts, Store, changed, short};
use bytes::Bytes;
use dlm_datasets::fs::{create_partial, finish_partial, partial_path, sync_parent};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Files of this machine; a key is a path without its first slash.
pub(crate) struct DiskStore;

/// Folders within folders, at most.
const DEPTH: usize = 32;

impl Store for DiskStore {
    fn list(&self, folder: &str) -> Outcome<Vec<ObjectInfo>> {
        let (mut found, dir) = (Vec::new(), path_of(folder));
        match std::fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => walk(&dir, folder, DEPTH, &mut found)?,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Fault::of_io("listing the folder", &e)),
        }
        Ok(found)
    }

    fn head(&self, key: &str) -> Outcome<ObjectInfo> {
        let meta = std::fs::metadata(path_of(key)).map_err(|e| Fault::of_io("reading", &e))?;
        match meta.is_file() {
            true => Ok(info(key, &meta)),
            false => Err(Fault::new(FaultKind::NotFound, "this is no file")),
        }
    }

    fn read(
        &self,
        key: &str,
        ranges: Vec<Range<u64>>,
        tag: Option<&str>,
        take: &mut dyn FnMut(Bytes) -> Outcome<()>,
    ) -> Outcome<()> {
        let failed = |e: std::io::Error| Fault::of_io("reading", &e);
        let mut file = File::open(path_of(key)).map_err(failed)?;
        let now = info(key, &file.metadata().map_err(failed)?);
        if tag.is_some() && now.tag.as_deref() != tag {
            return Err(changed());
        }
        for range in ranges {
            let length = range.end - range.start;
            let mut bytes = Vec::with_capacity(length as usize);
            file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
            (&mut file).take(length).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 != length {
                return Err(short(length, bytes.len() as u64));
            }
            take(bytes.into())?;
        }
        Ok(())
    }

    fn write(&self, key: &str, content: Bytes) -> Outcome<()> {
        struct Once(Option<Bytes>);
        impl Parts for Once {
            fn next(&mut self) -> Outcome<Option<Bytes>> {
                Ok(self.0.take())
            }
            fn arrived(&mut self, _bytes: u64) {}
        }
        self.write_parts(key, &mut Once(Some(content)))
    }

    fn write_parts(&self, key: &str, parts: &mut dyn Parts) -> Outcome<()> {
        let path = path_of(key);
        let failed = |e: std::io::Error| Fault::of_io("writing", &e);
        let failed_too = |e: dlm_datasets::Error| Fault::new(FaultKind::Lasting, e.to_string());
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let temporary = partial_path(&path);
        let mut file = create_partial(&temporary).map_err(failed_too)?;
        while let Some(part) = parts.next()? {
            file.write_all(&part).map_err(failed)?;
            parts.arrived(part.len() as u64);
        }
        finish_partial(file, &temporary, &path).map_err(failed_too)
    }

    fn remove(&self, key: &str) -> Outcome<()> {
        let path = path_of(key);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Fault::of_io("removing", &e)),
            _ => {
                // A bucket has no empty folders.
                if let Some(parent) = path.parent() {
                    let _ = std::fs::remove_dir(parent);
                }
                let _ = sync_parent(&path);
                Ok(())
            }
        }
    }
}

fn path_of(key: &str) -> PathBuf {
    Path::new("/").join(key)
}

fn info(key: &str, meta: &Metadata) -> ObjectInfo {
    let time = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    let tag = time.map(|t| format!("{}-{}", t.as_nanos(), meta.len()));
    ObjectInfo { key: key.to_string(), bytes: meta.len(), tag }
}

/// The files below a folder; hidden ones and those with a name that is no text are left out.
fn walk(dir: &Path, key: &str, depth: usize, found: &mut Vec<ObjectInfo>) -> Outcome<()> {
    let failed = |e: std::io::Error| Fault::of_io("listing the folder", &e);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || name.ends_with(dlm_datasets::fs::PARTIAL) {
            continue;
        }
        let key = format!("{key}/{name}");
        match std::fs::metadata(entry.path()) {
            Ok(meta) if meta.is_file() => found.push(info(&key, &meta)),
            Ok(meta) if meta.is_dir() && depth > 0 => {
                walk(&entry.path(), &key, depth - 1, found)?;
            }
            _ => {}
        }
    }
    Ok(())
}
