//! Building and running the workspace's binaries.
//!
//! In: a name such as `dlm-prep`. Out: its path beside the running program, built with the same
//! profile, or the exit code and output of a run. Each process calls `cargo build` at most once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The folder of the running profile, for example `target/release`.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding the running program")?;
    let dir = exe.parent().context("the running program is in no folder")?;
    let dir = if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_path_buf())
}

/// Builds `dlm-prep` and `dlm-train` with the running profile, once per process, and returns their
/// folder.
pub fn build() -> Result<&'static Path> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_now(false).map_err(|e| format!("{e:#}")));
    built.as_deref().map_err(|e| anyhow::anyhow!("{e}"))
}

/// Builds them now; `loud` shows cargo's output. `DLM_FEATURES` names cargo features, for tests
/// that need a GPU.
pub fn build_now(loud: bool) -> Result<PathBuf> {
    let dir = profile_dir()?;
    let target = dir.parent().context("no target folder")?;
    let profile = match dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} names no profile", dir.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    // No -p: the default members together, so that features come out as in the user's own build.
    let mut command = Command::new(cargo);
    command
        .current_dir(crate::repository())
        .args(["build", "--locked", "--bins", "--profile", profile, "--target-dir"])
        .arg(target);
    if let Some(features) = std::env::var_os("DLM_FEATURES") {
        command.arg("--features").arg(features);
    }
    let output = if loud { command.stderr(Stdio::inherit()) } else { &mut command };
    let output = output.stdin(Stdio::null()).output().context("running cargo build")?;
    ensure!(
        output.status.success(),
        "cargo build failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(dir)
}

/// A command that sees no GPU, so that it computes the same on every machine, and that reports to
/// nobody.
pub fn on_the_cpu(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.env_remove("WANDB_API_KEY").env_remove("WANDB_MODE");
    command
}

/// A command for one of the binaries, in `directory`; without GPUs unless `DLM_TEST_DEVICE` names a
/// device.
pub fn command(name: &str, directory: &Path) -> Result<Command> {
    let path = build()?.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    ensure!(path.is_file(), "{} was not built", path.display());
    let mut command = match std::env::var_os("DLM_TEST_DEVICE") {
        None => on_the_cpu(path),
        Some(_) => Command::new(path),
    };
    // Nothing that these tests run may use a network.
    command.current_dir(directory).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1");
    Ok(command)
}

/// A finished run of a program.
#[derive(Debug)]
pub struct Run {
    /// The command line, for messages.
    pub call: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall time of the whole run.
    pub time: Duration,
}

/// Runs a binary to its end.
pub fn run(name: &str, directory: &Path, arguments: &[&str]) -> Result<Run> {
    let mut command = command(name, directory)?;
    command.args(arguments);
    capture(&mut command)
}

/// Runs any command to its end and keeps its output.
pub fn capture(command: &mut Command) -> Result<Run> {
    let call = format!("{command:?}");
    let started = Instant::now();
    let output = command.output().with_context(|| format!("starting {call}"))?;
    Ok(Run {
        call,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        time: started.elapsed(),
    })
}

impl Run {
    /// This run if it ended with `code` and did not panic, else an error that shows its output.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "{}\nended with {:?}, expected {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.call,
            self.code,
            tail(&self.stdout),
            tail(&self.stderr)
        );
        ensure!(
            !self.stderr.contains("panicked at"),
            "{}\npanicked:\n{}",
            self.call,
            tail(&self.stderr)
        );
        Ok(self)
    }

    /// This run if it succeeded.
    pub fn ok(self) -> Result<Self> {
        self.expect(0)
    }

    /// stdout as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("{}: stdout is not JSON: {}", self.call, tail(&self.stdout)))
    }

    /// stdout as one JSON value per line.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        let parse = |line: &str| {
            serde_json::from_str(line).with_context(|| format!("{}: not JSON: {line}", self.call))
        };
        self.stdout.lines().filter(|l| !l.trim().is_empty()).map(parse).collect()
    }
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    let start = (start..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    &text[start..]
}
