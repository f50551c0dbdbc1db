//! SIGINT, SIGTERM and SIGHUP (a terminal that closes): the first one asks the run to stop, a
//! second SIGINT or SIGTERM ends the process at once.
#![allow(unsafe_code, reason = "asking for a signal's disposition is a libc call")]

use crate::cli::console;

/// Calls `stop` at the first signal. SIGHUP stays ignored where this process was started to ignore
/// it, as under nohup.
pub(super) fn on_interrupt(stop: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    if !is_ignored(SIGHUP) {
        signals.add_signal(SIGHUP)?;
    }
    std::thread::spawn(move || {
        for (k, signal) in signals.forever().enumerate() {
            if k > 0 && signal == SIGHUP {
                continue;
            }
            if k > 0 {
                std::process::exit(130);
            }
            console::note("stopping; run the same command again to resume");
            stop();
        }
    });
    Ok(())
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is a plain C struct for which all zeros are valid; with a null new action
    // the call only writes the current one into it.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut current) == 0
            && current.sa_sigaction == libc::SIG_IGN
    }
}
