//! Files that are either whole or absent: written under a temporary name, flushed to disk and
//! renamed into place, with the folder flushed too so that the new name survives a power cut.
//!
//! Used for every file that a later run trusts: data files, manifests, checkpoints, exports.

use crate::Error;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Suffix of a file that is still being written.
pub const PARTIAL: &str = ".partial";

/// The temporary name of `path` while it is being written: the same name with [`PARTIAL`] appended.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(PARTIAL);
    path.with_file_name(name)
}

/// Creates `path` and its missing parents.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::io("creating the folder", path))
}

/// Replaces `path` by a file with exactly these bytes. A reader sees the old file or the new one,
/// never a part.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = partial_path(path);
    let mut file = File::create(&temporary).map_err(Error::io("creating", &temporary))?;
    file.write_all(bytes).map_err(Error::io("writing", &temporary))?;
    file.sync_all().map_err(Error::io("flushing", &temporary))?;
    drop(file);
    rename(&temporary, path)
}

/// Renames a file or folder within one file system and makes the new name durable.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(Error::io("renaming to", to))?;
    sync_parent(to)
}

/// Flushes the folder that holds `path`, so that names created or removed in it survive a power
/// cut. File systems that cannot flush a folder are left alone: the rename itself is atomic.
pub fn sync_parent(path: &Path) -> Result<(), Error> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) => Path::new("."),
        None => return Ok(()),
    };
    match File::open(dir).and_then(|d| d.sync_all()) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput) => Ok(()),
        // Windows opens no folders, and some network file systems refuse to flush them.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(e) => Err(Error::io("flushing the folder", dir)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_no_temporary_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.b.json");
        assert_eq!(partial_path(&path), dir.path().join("a.b.json.partial"));
        write_atomic(&path, b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"old").unwrap();
        // The temporary name is taken by a folder, so the new file cannot even be created.
        std::fs::create_dir(dir.path().join("a.partial")).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("a.partial"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
