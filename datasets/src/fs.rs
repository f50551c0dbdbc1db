//! Files that are either whole or absent: written under a temporary name, flushed to disk and
//! renamed into place, with the folder flushed too so that the new name survives a power cut.
//!
//! Used for every file that a later run trusts: data files, manifests, checkpoints, exports.
//!
//! A temporary file is always a new one (`O_EXCL`), so that nothing is written through a link which
//! somebody placed under its name, and only its owner may read it (mode 0600). Finished files have
//! the mode that the umask gives to new ones.

use crate::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
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
    let mut file = create_partial(&temporary)?;
    file.write_all(bytes).map_err(Error::io("writing", &temporary))?;
    finish_partial(file, &temporary, path)
}

/// Opens a file for reading. A pipe or device, on which reading could wait for ever or never end,
/// is refused before it is opened.
pub fn open_file(path: &Path) -> std::io::Result<File> {
    if std::fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    let problem = "a folder, pipe or device; expected a file";
    Err(std::io::Error::new(ErrorKind::InvalidInput, problem))
}

/// Creates the file at a temporary name for writing. What a killed process left under that name is
/// removed first; a link is removed, not followed.
pub fn create_partial(temporary: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let opened = match options.open(temporary) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            std::fs::remove_file(temporary).and_then(|()| options.open(temporary))
        }
        opened => opened,
    };
    opened.map_err(Error::io("creating", temporary))
}

/// Flushes a file that [`create_partial`] created and gives it its final name and the mode of an
/// ordinary file.
pub fn finish_partial(file: File, temporary: &Path, path: &Path) -> Result<(), Error> {
    file.sync_all().map_err(Error::io("flushing", temporary))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o666 & !umask());
        let changed = file.set_permissions(mode);
        // a file system without modes has none to change
        if changed.as_ref().is_err_and(|e| e.kind() != ErrorKind::PermissionDenied) {
            changed.map_err(Error::io("setting the mode of", temporary))?;
        }
    }
    drop(file);
    rename(temporary, path)
}

/// The file mode creation mask of this process, as Linux reports it; elsewhere the usual one.
#[cfg(unix)]
fn umask() -> u32 {
    static MASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *MASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
    })
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

/// Name of the lock file in a folder that a process writes to.
pub const LOCK: &str = ".lock";

/// The right to write to a folder, exclusive among processes that call [`lock_dir`].
///
/// The operating system ends it with the process, however that ends, so that a lock file which a
/// killed process left is taken over. On a file system without locks it excludes nobody.
#[derive(Debug)]
pub struct FolderLock {
    /// Holds the lock of the operating system as long as it is open.
    _file: File,
    path: PathBuf,
    /// Folders that did not exist before, deepest first.
    created: Vec<PathBuf>,
}

/// Creates `dir` where it is missing and locks it. Dropping the lock removes the lock file, and the
/// folders that were created if nothing was written to them.
///
/// # Errors
/// [`Error::Locked`] with the process id and the host of the holder, [`Error::Io`] where the folder
/// cannot be written to, or where something else than a file has the lock's name.
pub fn lock_dir(dir: &Path) -> Result<FolderLock, Error> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let created = dir.ancestors().take_while(missing).map(Path::to_path_buf).collect();
    create_dir(dir)?;
    let path = dir.join(LOCK);
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        // new, or there already: a link is never followed to a file that would be created
        let opened = match options.clone().create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => options.open(&path),
            opened => opened,
        };
        let named = std::fs::symlink_metadata(&path);
        if named.as_ref().is_ok_and(|named| !named.is_file()) {
            let problem = "a link, folder or device, not a lock file; remove it";
            return Err(Error::io("locking", &path)(std::io::Error::other(problem)));
        }
        let mut file = match opened {
            // the holder before has removed it meanwhile
            Err(e) if e.kind() == ErrorKind::NotFound && dir.is_dir() => continue,
            opened => opened.map_err(Error::io("creating", &path))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_string(),
                    holder => holder.to_string(),
                };
                return Err(Error::Locked { path: dir.to_path_buf(), holder });
            }
            // a network file system without locks must not keep anybody from working
            Err(TryLockError::Error(_)) => {}
        }
        // The holder before may have removed the file between its opening here and its locking.
        if !is_at(&file, &path) {
            continue;
        }
        let holder = format!("process {} on {}\n", std::process::id(), host());
        let written = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        written.map_err(Error::io("writing", &path))?;
        return Ok(FolderLock { _file: file, path, created });
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        for dir in &self.created {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Whether `path` still names the open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Whether `path` still names the open file: an open file cannot be removed here.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// The name of this machine.
fn host() -> String {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok())
        .map_or_else(|| "this machine".to_string(), |name| name.trim().to_string())
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

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed_and_modes_are_those_of_the_umask() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        std::fs::write(at("victim"), "kept").unwrap();
        std::fs::write(at("ordinary"), "").unwrap();
        symlink(at("victim"), at("a.partial")).unwrap();
        let file = create_partial(&at("a.partial")).unwrap();
        assert_eq!(mode("a.partial"), 0o600);
        finish_partial(file, &at("a.partial"), &at("a")).unwrap();
        write_atomic(&at("b"), b"new").unwrap();
        assert_eq!((mode("a"), mode("b")), (mode("ordinary"), mode("ordinary")));
        symlink(at("victim"), at(LOCK)).unwrap();
        let error = lock_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(".lock") && error.contains("remove it"), "{error}");
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"kept");
    }

    #[cfg(unix)]
    #[test]
    fn only_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        open_file(&dir.path().join("link")).unwrap();
        for other in [dir.path(), Path::new("/dev/zero")] {
            let error = open_file(other).unwrap_err().to_string();
            assert!(error.contains("expected a file"), "{error}");
        }
        let absent = open_file(&dir.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_locked_folder_names_its_holder_and_a_dead_one_is_succeeded() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let lock = lock_dir(&folder).unwrap();
        let error = lock_dir(&folder).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} on", std::process::id())), "{error}");
        drop(lock);
        assert!(!dir.path().join("a").exists());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(LOCK), "process 1 on elsewhere\n").unwrap();
        std::fs::write(folder.join("result"), "").unwrap();
        drop(lock_dir(&folder).unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
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
