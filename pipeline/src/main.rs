//! dlm-prep: parse, run, exit code.

use clap::Parser;
use dlm_prep::cli;
use dlm_prep::cli::args::{Cli, Command};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        None => cli::prepare::run(&cli.build),
        Some(Command::Inspect(a)) => cli::inspect::run(a),
        Some(Command::Stats(a)) => cli::stats::run(a),
        Some(Command::Verify { dir, json }) => cli::verify::run(dir, *json),
        Some(Command::Render(a)) => cli::render::run(a),
        Some(Command::Merge { dirs, out }) => cli::merge::run(dirs, out),
        Some(Command::ExportHf { dir, out }) => cli::export_hf::run(dir, out),
        Some(Command::Bench(a)) => cli::bench::run(a),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
