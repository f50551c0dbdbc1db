//! `wf`: launch, follow and cancel training runs on rented machines.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dlm_train::launch;

#[derive(Parser)]
#[command(name = "wf", version, about = "Train on rented machines, through SkyPilot")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Launch a training run.
    Dlm(Box<launch::DlmArgs>),
    /// Print a run's log.
    Logs {
        /// Name of the run.
        name: String,
        /// Keep following it.
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
        /// How many.
        #[arg(short = 'n', long, default_value_t = 10)]
        limit: usize,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Dlm(args) => launch::launch(&args),
        Command::Logs { name, follow } => launch::logs(&name, follow),
        Command::Cancel { name } => launch::cancel(&name),
        Command::Runs { limit } => launch::runs(limit),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wf: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
