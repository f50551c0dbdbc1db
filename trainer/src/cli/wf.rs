//! `wf`: launch, follow and cancel training runs on rented machines.
//!
//! In: the command line. Out: the exit code of the process; `launch` does the work.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::launch;
use crate::report::console;

/// Runs listed by `wf runs` unless `--limit` says otherwise.
const RUNS: usize = 10;

#[derive(Parser)]
#[command(name = "wf", version, about = "Train on rented machines through SkyPilot")]
struct Wf {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Launch a training run.
    Dlm(Box<launch::DlmArgs>),
    /// Print the log of a run.
    Logs {
        /// Name of the run.
        name: String,
        /// Keep printing new lines until the run ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop a run.
    Cancel {
        /// Name of the run.
        name: String,
    },
    /// List runs.
    Runs {
        /// Number of runs to list [default: 10].
        #[arg(short = 'n', long)]
        limit: Option<usize>,
    },
}

/// Runs `wf` on the arguments of this process.
pub(crate) fn main() -> ExitCode {
    let result = match Wf::parse().command {
        Command::Dlm(args) => launch::launch(&args),
        Command::Logs { name, follow } => launch::logs(&name, follow),
        Command::Cancel { name } => launch::cancel(&name),
        Command::Runs { limit } => launch::runs(limit.unwrap_or(RUNS)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::message(format_args!("wf: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
