//! How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere.

use crate::run::executor::Meter;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Shows `meter` while `work` runs.
pub fn watch<T>(meter: &Meter, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| show(meter, &done));
        // The display must end even if the work panics.
        struct Finish<'a>(&'a AtomicBool);
        impl std::ops::Drop for Finish<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _finish = Finish(&done);
        work()
    })
}

fn show(meter: &Meter, done: &AtomicBool) {
    let start = Instant::now();
    let line = || {
        let n = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed) as f64;
        let s = start.elapsed().as_secs_f64().max(1e-3);
        let (rows, tokens, bytes) = (n(&meter.rows), n(&meter.tokens), n(&meter.text_bytes));
        format!(
            "{} rows  {:.1} M tokens  {:.2} M tokens/s  {:.1} MB/s of text",
            rows,
            tokens / 1e6,
            tokens / 1e6 / s,
            bytes / 1e6 / s
        )
    };
    let terminal = std::io::stderr().is_terminal();
    let bar = terminal.then(indicatif::ProgressBar::new_spinner);
    let mut next = Duration::from_secs(10);
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        match &bar {
            Some(bar) => {
                bar.set_message(line());
                bar.tick();
            }
            None if start.elapsed() >= next => {
                next += Duration::from_secs(10);
                eprintln!("{}", line());
            }
            None => {}
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}
