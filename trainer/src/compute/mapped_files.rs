//! Mapped files that become shorter while they are read.
//!
//! Reading past the new end of a mapped file raises SIGBUS, which ends a process. With
//! [`watch`], the page that is missing becomes a page of zeros instead, and the fault is noted:
//! what reads mapped files asks [`fault`] before it uses what it read. Reading costs nothing more
//! than without. `pread` would cost 3.4 instead of 1.2 microseconds for a row of 512 tokens, which
//! no step notices, but Arrow and safetensors read the mapping themselves, and would have to go.
#![allow(unsafe_code, reason = "a signal handler")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Address of the first access that failed; 0 where none did.
static FAULT: AtomicUsize = AtomicUsize::new(0);
/// Bytes of a page.
#[cfg(unix)]
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// Watches from now on, for the whole process: for programs, not for libraries.
#[cfg(unix)]
pub(crate) fn watch() {
    // SAFETY: sysconf and sigaction are called with valid arguments; the handler only makes calls
    // that a signal handler may make.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE);
        PAGE.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Does nothing: mapped files cannot be cut off here.
#[cfg(not(unix))]
pub(crate) fn watch() {}

#[cfg(unix)]
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t. A page of a file mapping that has no file behind
    // it any more is replaced by a private page of zeros, which a reader cannot tell from a file
    // whose end was overwritten. Anything else gets the default action when the access is repeated.
    unsafe {
        let address = (*info).si_addr() as usize;
        let page = PAGE.load(Ordering::Relaxed);
        if (*info).si_code == libc::BUS_ADRERR && page > 0 {
            let start = (address & !(page - 1)) as *mut libc::c_void;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            if libc::mmap(start, page, libc::PROT_READ, flags, -1, 0) == start {
                FAULT.store(address.max(1), Ordering::SeqCst);
                return;
            }
        }
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// The address of an access to a file that was cut off, if there was one.
pub(crate) fn fault() -> Option<usize> {
    Some(FAULT.load(Ordering::SeqCst)).filter(|address| *address != 0)
}

/// Refuses what was read of `path` where a mapped file was cut off meanwhile.
pub(crate) fn check(path: &Path) -> Result<()> {
    match fault() {
        None => Ok(()),
        Some(_) => Err(Error::format(
            path,
            "became shorter while it was read, or the disk fails; copy it again, then give the same command",
        )),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// In a process of its own, since a fault is noted for good.
    #[test]
    fn a_file_that_is_cut_off_reads_as_zeros_and_is_noted() {
        const CHILD: &str = "DLM_TEST_CUT_OFF";
        if std::env::var_os(CHILD).is_none() {
            let name =
                "compute::mapped_files::tests::a_file_that_is_cut_off_reads_as_zeros_and_is_noted";
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let done = child.args([name, "--exact"]).env(CHILD, "1").output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(done.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        watch();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        // SAFETY: the file is cut off below, which is what is tested.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        assert_eq!(map[1 << 19], 7);
        check(&path).unwrap();
        file.set_len(10).unwrap();
        assert_eq!(map[1 << 19], 0);
        assert!(fault().is_some());
        assert!(check(&path).unwrap_err().to_string().contains("became shorter"));
    }
}
