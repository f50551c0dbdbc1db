//! The one place that writes to the terminal: results to stdout, messages to stderr.
//!
//! A reader may close either pipe at any time (`dlm-train generate … | head`). A closed stdout is
//! reported to the caller, which then has nothing more to print and exits with the code that its
//! work earned; a closed stderr is ignored. Neither ever panics.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::{Error, Result};

/// Whether somebody still reads stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The text was written.
    Present,
    /// The pipe is closed: further results have no reader.
    Gone,
}

/// Writes one line of results to stdout.
pub(crate) fn result(line: impl Display) -> Result<Reader> {
    text(format_args!("{line}\n"))
}

/// Writes results to stdout as they are.
pub(crate) fn text(text: impl Display) -> Result<Reader> {
    write_to(&mut io::stdout().lock(), text)
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
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Error::io("stdout", "writing", error)),
    }
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
