//! Running a command, and the errors when that fails.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::error::{Error, Result};

use super::task::shell_words;

/// Runs a command whose output goes to the terminal.
pub(super) fn run(command: &[String]) -> Result<()> {
    run_with(command, std::iter::empty())
}

/// The same, with variables besides those of this process.
pub(super) fn run_with<'a>(
    command: &[String],
    environment: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let status = Command::new(program)
        .args(arguments)
        .envs(environment)
        .status()
        .map_err(|error| not_started(program, error))?;
    if status.success() { Ok(()) } else { Err(failure(command, status)) }
}

/// The error of a program that could not be started.
pub(super) fn not_started(program: &str, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::Device(format!(
            "`{program}` is not installed; wf needs SkyPilot (pip install \"skypilot[gcp]\" or with another cloud's name)"
        )),
        _ => Error::io(Path::new(program), "starting", error),
    }
}

/// The error of a command that failed.
pub(super) fn failure(command: &[String], status: ExitStatus) -> Error {
    match status.code() {
        Some(code) => Error::Device(format!(
            "`{}` failed with exit code {code}; its own message is above",
            shell_words(command)
        )),
        None => Error::Interrupted(format!("`{}` was ended by a signal", shell_words(command))),
    }
}
