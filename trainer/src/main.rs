//! `dlm-train`: train, export, decode and check block-diffusion language models.

#![allow(unsafe_code, reason = "an option of the allocator, set before other threads exist")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dlm_train::{Result, cli};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// mimalloc's own: the value of an option unless its environment variable sets it. The option's
    /// number is its place in `mi_option_t`.
    fn mi_option_set_default(option: std::ffi::c_int, value: std::ffi::c_long);
}

/// Freed memory is kept for ten seconds instead of ten milliseconds: every step allocates what the
/// step before has freed, and the system clears each page it takes back and gives again (7 steps of
/// 4.5 M parameters: 33,667 page faults and 1.04 s of system time before, 655 and 0.22 s so).
/// `MIMALLOC_PURGE_DELAY` wins.
fn keep_freed_memory() {
    const PURGE_DELAY: std::ffi::c_int = 15;
    // SAFETY: mimalloc is linked as the global allocator; the call writes one of its settings,
    // before other threads exist.
    unsafe { mi_option_set_default(PURGE_DELAY, 10_000) };
}

#[derive(Parser)]
#[command(
    name = "dlm-train",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    about = "Fine-tune an autoregressive model into a block-diffusion one, and use it"
)]
struct Cli {
    #[command(flatten)]
    train: cli::train::TrainArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Complete prompts, in diffusion blocks or one token at a time.
    Generate(cli::generate::GenerateArgs),
    /// Mean loss of a model folder on a packed dataset.
    Eval(cli::eval::EvalArgs),
    /// Write a Hugging Face folder from a run's checkpoint.
    Export(cli::export::ExportArgs),
    /// Hold this implementation against reference tensors.
    Parity(cli::parity::ParityArgs),
    /// Draw a run's metrics as one HTML file.
    Plot(dlm_train::report::plot::PlotArgs),
    /// Measure throughput.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: cli::bench::BenchCommand,
    },
}

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = Cli::parse();
    let result: Result<bool> = match &cli.command {
        None => cli::train::run(&cli.train),
        Some(Command::Generate(args)) => cli::generate::run(args),
        Some(Command::Eval(args)) => cli::eval::run(args),
        Some(Command::Export(args)) => cli::export::run(args),
        Some(Command::Parity(args)) => cli::parity::run(args),
        Some(Command::Plot(args)) => dlm_train::report::plot::run(args),
        Some(Command::Bench { what }) => cli::bench::run(what),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("dlm-train: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
