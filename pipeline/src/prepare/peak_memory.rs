//! Peak memory of this process.

#![allow(unsafe_code, reason = "libc::getrusage where /proc is missing")]

/// Largest resident memory of this process so far, in megabytes (10^6 bytes).
pub(crate) fn peak_memory_mb() -> f64 {
    // VmHWM is this program's own; `ru_maxrss` would on Linux include what the parent process held
    // when it forked.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    if let Some(kib) = own {
        return kib * 1024.0 / 1e6;
    }
    // SAFETY: getrusage fills the struct it is given and reads nothing else.
    let usage = unsafe {
        let mut u: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut u);
        u
    };
    let unit = if cfg!(target_os = "macos") { 1.0 } else { 1024.0 };
    usage.ru_maxrss as f64 * unit / 1e6
}
