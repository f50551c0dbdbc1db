//! The signals that end a run after its state is saved.
//!
//! In: SIGTERM, SIGINT, SIGHUP (a terminal that closes), SIGUSR1 and SIGUSR2 (batch systems before
//! they end a job). Out: a flag. Further signals set the flag again, so that a save under way is
//! never cut short.
#![allow(unsafe_code, reason = "asking for a signal's disposition is a libc call")]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::error::{Error, Result};

/// A flag that any of the signals sets. A signal that this process was started to ignore, as SIGHUP
/// under nohup, stays ignored.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2] {
        if is_ignored(signal) {
            continue;
        }
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|e| Error::Device(format!("installing a signal handler failed: {e}")))?;
    }
    Ok(stop)
}

/// Whether this process was started to ignore a signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is a plain C struct for which all zeros are valid; with a null new action
    // the call only writes the current one into it.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut current) == 0
            && current.sa_sigaction == libc::SIG_IGN
    }
}
