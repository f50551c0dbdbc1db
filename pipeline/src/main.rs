//! dlm-prep: parse, run, exit code.

use clap::Parser;
use dlm_prep::args::{Cli, Command};
use dlm_prep::commands;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        None => commands::build::run(&cli.build),
        Some(Command::Inspect(a)) => commands::inspect::run(a),
        Some(Command::Stats(a)) => commands::stats::run(a),
        Some(Command::Verify { dir, json }) => commands::verify::run(dir, *json),
        Some(Command::Render(a)) => commands::render::run(a),
        Some(Command::Merge { dirs, out }) => commands::merge::run(dirs, out),
        Some(Command::ExportHf { dir, out }) => commands::export_hf::run(dir, out),
        Some(Command::Bench(a)) => commands::bench::run(a),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
