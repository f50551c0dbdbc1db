//! SIGINT and SIGTERM: the first one asks the run to stop, the second one ends the process at once.

use crate::cli::console;

/// Calls `stop` at the first signal.
pub(super) fn on_interrupt(stop: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for (k, _) in signals.forever().enumerate() {
            if k > 0 {
                std::process::exit(130);
            }
            console::note("stopping; run the same command again to resume");
            stop();
        }
    });
    Ok(())
}
