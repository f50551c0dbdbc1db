//! Output of the command line: results on standard output, everything else on standard error.
//!
//! A reader that closes standard output early (`| head`), and a terminal that hangs up, end the
//! output, not the program: the work is done to its end and the exit code is 0. Other failures to
//! write results, such as a full disk, are errors (exit code 1). Lines on standard error are
//! dropped if it is closed, full or hung up.

use crate::error::{Error, Result};
use crate::progress::{DownloadCounters, ProcessingCounters, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{BufWriter, ErrorKind, IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two progress lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Writes results to standard output.
pub(crate) struct ResultWriter<W: Write = BufWriter<Stdout>> {
    /// None once it has no reader.
    out: Option<W>,
}

impl ResultWriter {
    /// A writer to standard output.
    pub(crate) fn stdout() -> Self {
        ResultWriter { out: Some(BufWriter::new(std::io::stdout())) }
    }
}

impl<W: Write> ResultWriter<W> {
    /// Writes `text`.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        self.apply(|out| out.write_all(text.as_bytes()))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn write_json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))?;
        self.write(&(text + "\n"))
    }

    /// Passes everything on to the reader.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.apply(|out| out.flush())
    }

    fn apply(&mut self, write: impl FnOnce(&mut W) -> std::io::Result<()>) -> Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        match write(out) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe || has_hung_up(&e) => {
                // what is buffered has no reader either
                self.out = None;
                Ok(())
            }
            result => result.map_err(Error::io("writing", "standard output")),
        }
    }
}

/// Writes a text to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = ResultWriter::stdout();
    out.write(text)?;
    out.finish()
}

/// Writes a value as one line of JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut out = ResultWriter::stdout();
    out.write_json(value)?;
    out.finish()
}

/// Whether an error of standard output is that of a terminal which has hung up: an input/output
/// error, as of a failing disk, but of a device.
#[cfg(unix)]
fn has_hung_up(error: &std::io::Error) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let kind = || {
        let out = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned().ok()?);
        Some(out.metadata().ok()?.file_type())
    };
    error.raw_os_error() == Some(libc::EIO) && kind().is_some_and(|kind| kind.is_char_device())
}

#[cfg(not(unix))]
fn has_hung_up(_error: &std::io::Error) -> bool {
    false
}

/// Writes what clap answers to a call: help and version to standard output, what is wrong to
/// standard error. Returns the exit code.
pub(super) fn answer(answer: &clap::Error) -> ExitCode {
    let (wrong, plain) = (answer.use_stderr(), std::env::var_os("NO_COLOR").is_some());
    let terminal =
        if wrong { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    let rendered = answer.render();
    let shown = if terminal && !plain { rendered.ansi().to_string() } else { rendered.to_string() };
    let code = u8::try_from(answer.exit_code()).unwrap_or(2);
    if wrong {
        note(shown.trim_end_matches('\n'));
    } else if let Err(error) = print(&shown) {
        note(&format!("error: {error}"));
        return ExitCode::from(error.exit_code());
    }
    ExitCode::from(code)
}

/// Writes one line to standard error.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shows reports on standard error: a progress bar on a terminal, else a line every ten seconds.
#[derive(Default)]
pub struct ConsoleProgress {
    display: Mutex<Option<Display>>,
}

/// What is shown of one stretch of work.
struct Display {
    bar: Option<ProgressBar>,
    begin: Instant,
    next_line: Duration,
    /// Bytes on the disk when a download began.
    first_bytes: u64,
}

impl Display {
    fn new(bar: impl FnOnce() -> ProgressBar, first_bytes: u64) -> Display {
        let bar = std::io::stderr().is_terminal().then(bar);
        Display { bar, begin: Instant::now(), next_line: LINE_INTERVAL, first_bytes }
    }

    /// Whether it is time for a line, without a terminal.
    fn line_is_due(&mut self) -> bool {
        let due = self.bar.is_none() && self.begin.elapsed() >= self.next_line;
        if due {
            self.next_line += LINE_INTERVAL;
        }
        due
    }
}

impl ConsoleProgress {
    fn with_display(&self, create: impl FnOnce() -> Display, show: impl FnOnce(&mut Display)) {
        let mut display = self.display.lock().unwrap_or_else(PoisonError::into_inner);
        show(display.get_or_insert_with(create));
    }
}

impl Progress for ConsoleProgress {
    fn notice(&self, line: &str) {
        let display = self.display.lock().unwrap_or_else(PoisonError::into_inner);
        match display.as_ref().and_then(|d| d.bar.as_ref()) {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    fn processing(&self, counters: &ProcessingCounters) {
        self.with_display(
            || Display::new(ProgressBar::new_spinner, 0),
            |display| {
                let seconds = display.begin.elapsed().as_secs_f64().max(1e-3);
                let (tokens, bytes) = (counters.tokens as f64, counters.text_bytes as f64);
                let line = || {
                    format!(
                        "{} rows  {:.1} M tokens  {:.2} M tokens/s  {:.1} MB/s of text",
                        counters.rows,
                        tokens / 1e6,
                        tokens / 1e6 / seconds,
                        bytes / 1e6 / seconds
                    )
                };
                if let Some(bar) = &display.bar {
                    bar.set_message(line());
                    bar.tick();
                } else if display.line_is_due() {
                    note(&line());
                }
            },
        );
    }

    fn downloading(&self, counters: &DownloadCounters) {
        let bar = || {
            let bar = ProgressBar::new(counters.total_bytes);
            let style = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_position(counters.bytes);
            bar.reset_elapsed();
            bar
        };
        self.with_display(
            || Display::new(bar, counters.bytes),
            |display| {
                if let Some(bar) = &display.bar {
                    bar.set_position(counters.bytes);
                } else if display.line_is_due() {
                    let new = counters.bytes.saturating_sub(display.first_bytes) as f64;
                    note(&format!(
                        "fetching   {:.0} of {:.0} MB, {:.1} MB/s",
                        counters.bytes as f64 / 1e6,
                        counters.total_bytes as f64 / 1e6,
                        new / display.begin.elapsed().as_secs_f64() / 1e6
                    ));
                }
            },
        );
    }

    fn finished(&self) {
        let display = self.display.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(bar) = display.and_then(|d| d.bar) {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails with an error kind after some bytes.
    struct Limited(usize, ErrorKind);

    impl Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if bytes.len() > self.0 {
                return Err(self.1.into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        let mut closed = ResultWriter { out: Some(Limited(4, ErrorKind::BrokenPipe)) };
        closed.write("text").unwrap();
        closed.write("more").unwrap();
        assert!(closed.out.is_none());
        closed.write_json(&[1, 2]).unwrap();
        closed.finish().unwrap();
        let mut full = ResultWriter { out: Some(Limited(4, ErrorKind::StorageFull)) };
        full.write("text").unwrap();
        let message = full.write("more").unwrap_err().to_string();
        assert!(message.contains("writing standard output"), "{message}");
    }
}
