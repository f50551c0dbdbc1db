//! Files that are whole or not there: temporary name, fsync, rename, fsync of the folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Write bytes under a temporary name and rename them into place.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = temporary(path);
    let mut f = File::create(&tmp).map_err(|e| Error::io(&tmp, "creating", e))?;
    f.write_all(bytes).map_err(|e| Error::io(&tmp, "writing", e))?;
    f.sync_all().map_err(|e| Error::io(&tmp, "flushing", e))?;
    drop(f);
    rename(&tmp, path)
}

/// The name a file has until it is whole.
pub fn temporary(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.partial"))
}

/// Rename and make it durable.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io(to, "renaming into place", e))?;
    sync_parent(to)
}

/// Make a rename in the parent folder durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(|e| Error::io(dir, "flushing the folder", e))?;
    }
    Ok(())
}

/// Flush a file that another writer produced.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io(path, "flushing", e))
}

/// sha256 of a file, as hex.
pub fn sha256(path: &Path) -> Result<String> {
    let mut f = File::open(path).map_err(|e| Error::io(path, "opening", e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n =
            std::io::Read::read(&mut f, &mut buffer).map_err(|e| Error::io(path, "reading", e))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Create a folder and its parents.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, "creating the folder", e))
}
