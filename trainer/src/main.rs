//! `dlm-train`: train, export, decode and check block-diffusion language models.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dlm_train::{Result, commands};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    train: commands::train::TrainArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Complete prompts, in diffusion blocks or one token at a time.
    Generate(commands::generate::GenerateArgs),
    /// Mean loss of a model folder on a packed dataset.
    Eval(commands::eval::EvalArgs),
    /// Write a Hugging Face folder from a run's checkpoint.
    Export(commands::export::ExportArgs),
    /// Hold this implementation against reference tensors.
    Parity(commands::parity::ParityArgs),
    /// Draw a run's metrics as one HTML file.
    Plot(commands::plot::PlotArgs),
    /// Measure throughput.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: commands::bench::BenchCommand,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Result<bool> = match &cli.command {
        None => commands::train::run(&cli.train),
        Some(Command::Generate(args)) => commands::generate::run(args),
        Some(Command::Eval(args)) => commands::eval::run(args),
        Some(Command::Export(args)) => commands::export::run(args),
        Some(Command::Parity(args)) => commands::parity::run(args),
        Some(Command::Plot(args)) => commands::plot::run(args),
        Some(Command::Bench { what }) => commands::bench::run(what),
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
