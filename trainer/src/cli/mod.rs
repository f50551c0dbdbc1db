//! The command line of `dlm-train`, one file per command, and of `wf`.
//!
//! Each command parses its arguments as they were typed, calls the library and prints the outcome:
//! results on stdout, lines for people on stderr.

mod bench;
mod eval;
mod export;
mod generate;
mod parity;
mod passes;
mod place;
mod plan;
mod plot;
mod printer;
mod serve;
mod tasks;
mod train;
mod validation;
pub(crate) mod wf;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use dlm_prep::program_manual::{self, CompletionsArgs, ManArgs};

use crate::compute::mapped_files;
use crate::error::Result;
use crate::report::console;

/// Version, commit and features, for `--version`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DLM_BUILD"), ")");

#[derive(Parser)]
#[command(
    name = "dlm-train",
    version = VERSION,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    about = "Fine-tune an autoregressive model into a block-diffusion model, and use it"
)]
struct DlmTrain {
    #[command(flatten)]
    train: train::TrainArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Complete prompts, in diffusion blocks or one token at a time.
    Generate(generate::GenerateArgs),
    /// Serve a model over HTTP, as OpenAI's completions and chat completions.
    Serve(serve::ServeArgs),
    /// Evaluate a model: its loss on a packed dataset, or its answers to tasks.
    Eval(eval::EvalArgs),
    /// Write a Hugging Face folder from a checkpoint of a run.
    Export(export::ExportArgs),
    /// Compare logits, loss and gradients of a model with reference tensors.
    Parity(parity::ParityArgs),
    /// Say what a run will take, before a machine is rented: memory, time, price, disk.
    Plan(plan::PlanArgs),
    /// Plot the metrics of runs as one HTML file.
    Plot(plot::PlotArgs),
    /// Measure throughput.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// Print the script that completes this program's command line in a shell.
    Completions(CompletionsArgs),
    /// Write the manual pages.
    Man(ManArgs),
}

/// Runs `dlm-train` on the arguments of this process.
///
/// The exit code is 0 when the work is done, 1 when it failed (for `parity` also when a difference
/// is out of tolerance), 2 for a wrong call or configuration, 130 after an interruption.
pub(crate) fn main() -> ExitCode {
    mapped_files::watch();
    let arguments = match DlmTrain::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return console::answer(&answer),
    };
    let result = match &arguments.command {
        None => train::run(&arguments.train),
        Some(Command::Generate(args)) => generate::run(args),
        Some(Command::Serve(args)) => serve::run(args),
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Export(args)) => export::run(args),
        Some(Command::Parity(args)) => parity::run(args),
        Some(Command::Plan(args)) => plan::run(args),
        Some(Command::Plot(args)) => plot::run(args),
        Some(Command::Bench { command }) => bench::run(command),
        Some(Command::Completions(args)) => print_completions(DlmTrain::command(), args),
        Some(Command::Man(args)) => write_manual(DlmTrain::command(), args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            console::message(format_args!("dlm-train: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn print_completions(program: clap::Command, args: &CompletionsArgs) -> Result<bool> {
    console::text(program_manual::completions(program, args)).map(|_| true)
}

fn write_manual(program: clap::Command, args: &ManArgs) -> Result<bool> {
    let pages = program_manual::write_man_pages(program, args)?;
    console::message(program_manual::wrote(pages, &args.dir));
    Ok(true)
}
