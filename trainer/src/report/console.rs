//! The one place that writes to the terminal: results to stdout, messages to stderr.
//!
//! A reader may close either pipe at any time (`dlm-train generate … | head`), and a terminal may
//! hang up. A stdout without a reader is reported to the caller, which then has nothing more to
//! print and exits with the code that its work earned; a stdout that is full is an error (exit code
//! 1). Lines for a stderr that is closed, full or hung up are dropped. None of it ever panics.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use crate::error::{Error, Result};

/// Whether somebody still reads stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The text was written.
    Present,
    /// The pipe is closed, or the terminal has hung up: further results have no reader.
    Gone,
}

/// Writes one line of results to stdout.
pub(crate) fn result(line: impl Display) -> Result<Reader> {
    text(format_args!("{line}\n"))
}

/// Writes results to stdout as they are.
pub(crate) fn text<T: Display>(text: T) -> Result<Reader> {
    write_to(&mut io::stdout().lock(), text)
}

/// Whether colours can be seen on stdout, and are wanted (`NO_COLOR` is not set).
pub(crate) fn has_colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Whether stdout is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Writes what clap answers to a call: help and version to stdout, what is wrong to stderr. Returns
/// the exit code.
pub(crate) fn answer(answer: &clap::Error) -> ExitCode {
    let (wrong, plain) = (answer.use_stderr(), std::env::var_os("NO_COLOR").is_some());
    let terminal = if wrong { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    let rendered = answer.render();
    let shown = if terminal && !plain { rendered.ansi().to_string() } else { rendered.to_string() };
    let code = u8::try_from(answer.exit_code()).unwrap_or(2);
    if wrong {
        message(shown.trim_end_matches('\n'));
    } else if let Err(error) = text(shown) {
        message(&error);
        return ExitCode::from(error.exit_code());
    }
    ExitCode::from(code)
}

/// Writes one line to stderr. A closed stderr is ignored: a run does not end because nobody reads
/// its messages.
pub(crate) fn message(line: impl Display) {
    let line = format!("{line}\n");
    drop(io::stderr().write_all(line.as_bytes()));
}

fn write_to(out: &mut impl Write, text: impl Display) -> Result<Reader> {
    // one call per text, so that lines of several processes do not mix
    let text = text.to_string();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Present),
        Err(error) if error.kind() == ErrorKind::BrokenPipe || has_hung_up(&error) => {
            Ok(Reader::Gone)
        }
        Err(error) => Err(Error::io("stdout", "writing", error)),
    }
}

/// Whether an error of stdout is that of a terminal which has hung up: an input/output error, as of
/// a failing disk, but of a device.
#[cfg(unix)]
fn has_hung_up(error: &io::Error) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let kind = || {
        let stdout = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
        Some(stdout.metadata().ok()?.file_type())
    };
    error.raw_os_error() == Some(libc::EIO) && kind().is_some_and(|kind| kind.is_char_device())
}

#[cfg(not(unix))]
fn has_hung_up(_error: &io::Error) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose write end answers with this kind of error.
    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn closed_pipe_is_no_error_but_a_full_disk_is() {
        assert_eq!(write_to(&mut Vec::new(), "x").unwrap(), Reader::Present);
        assert_eq!(write_to(&mut Failing(ErrorKind::BrokenPipe), "x").unwrap(), Reader::Gone);
        let error = write_to(&mut Failing(ErrorKind::StorageFull), "x").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().starts_with("stdout: writing failed"), "{error}");
    }
}
