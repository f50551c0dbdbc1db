//! `dlm-train`: train, export, decode and check block-diffusion language models.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dlm_train::{Result, commands};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "dlm-train", version, args_conflicts_with_subcommands = true, arg_required_else_help = true, about = "Fine-tune an autoregressive model into a block-diffusion one, and use it")]
struct Cli {
    #[command(flatten)]
    train: commands::train::TrainArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Hold this implementation against reference tensors.
    Parity(commands::parity::ParityArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Result<bool> = match &cli.command {
        None => commands::train::run(&cli.train),
        Some(Command::Parity(args)) => commands::parity::run(args),
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
