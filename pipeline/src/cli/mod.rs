//! The command line: parses the arguments, calls the library, prints the result.

mod args;
mod bench;
mod choices;
pub(crate) mod console;
mod datasets;
mod help;
mod prepare;
mod push;
mod render;
mod signals;

use crate::manual::{completions, write_man_pages, wrote};
use args::Command;
use std::process::ExitCode;

/// Runs the program with the process's arguments; the exit code.
pub fn main() -> ExitCode {
    let cli = match help::parse() {
        Ok(cli) => cli,
        Err(answer) => return console::answer(&answer),
    };
    let result = match &cli.command {
        None => prepare::run(&cli.prepare),
        Some(Command::Inspect(a)) => datasets::inspect(a),
        Some(Command::Stats(a)) => datasets::stats(a),
        Some(Command::Verify { dir, json }) => datasets::verify(dir, *json),
        Some(Command::Render(a)) => render::run(a),
        Some(Command::Merge { dirs, out }) => datasets::merge(dirs, out),
        Some(Command::ExportHf { dir, out }) => datasets::export_hf(dir, out),
        Some(Command::Push(a)) => push::run(a),
        Some(Command::Bench(a)) => bench::run(a),
        Some(Command::Completions(a)) => console::print(&completions(help::command(), a)),
        Some(Command::Man(a)) => {
            write_man_pages(help::command(), a).map(|pages| console::note(&wrote(pages, &a.dir)))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            console::note(&format!("error: {e}"));
            ExitCode::from(e.exit_code())
        }
    }
}
