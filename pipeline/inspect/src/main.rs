//! `dlm-inspect`: tables over a packed dataset, with polars.
//!
//! In: a folder written by dlm-prep, and optionally a query. Out, on stdout: one summary line per
//! source or category, or the result of the query, as a table or as one JSON object per row. Tables
//! for `--sql`: `packed` (the Arrow files as they are, with `split` and `row`) and `documents` (one
//! row per conversation, see `tables.rs`).

#![allow(unsafe_code, reason = "std::env::set_var before other threads exist")]

mod json;
mod tables;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use dlm_datasets::Dataset;

/// How the summary groups documents.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// By source file or dataset.
    Source,
    /// By the rows' category.
    Category,
}

#[derive(Parser)]
#[command(name = "dlm-inspect", version, about = "Tables over packed datasets")]
struct Args {
    /// Folder written by dlm-prep
    dir: PathBuf,
    /// SQL query over the tables `packed` and `documents`
    #[arg(long, value_name = "QUERY", conflicts_with = "by")]
    sql: Option<String>,
    /// What a line of the summary stands for
    #[arg(long, value_enum, default_value_t = By::Source)]
    by: By,
    /// Print one JSON object per row
    #[arg(long)]
    json: bool,
    /// How many rows of a table are shown; JSON always has all
    #[arg(long, default_value_t = 50, value_name = "N")]
    rows: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // SAFETY: no other thread exists yet; polars reads these variables when it formats a table.
    unsafe {
        std::env::set_var("POLARS_FMT_MAX_ROWS", args.rows.to_string());
        std::env::set_var("POLARS_FMT_MAX_COLS", "40");
        std::env::set_var("POLARS_TABLE_WIDTH", "200");
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // a closed stderr changes nothing
            let _ = writeln!(std::io::stderr(), "dlm-inspect: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let dataset = Dataset::open(&args.dir)?;
    let frame = match &args.sql {
        Some(query) => tables::query(&dataset, query)
            .with_context(|| format!("query {query:?} (the tables are packed and documents)"))?,
        None => tables::query(&dataset, &tables::summary(matches!(args.by, By::Category)))?,
    };
    if args.json {
        return say(&json::lines(&frame)?);
    }
    if args.sql.is_none() {
        let m = dataset.manifest();
        let c = &m.counts;
        let dropped: Vec<String> =
            c.dropped.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        let dropped = if dropped.is_empty() { "none".to_string() } else { dropped.join(", ") };
        say(&format!(
            "{}: {} train and {} eval rows of {} tokens in blocks of {}; {} conversations read, {} kept, dropped: {dropped}\n",
            args.dir.display(),
            m.packing.train_rows,
            m.packing.eval_rows,
            m.seq_len,
            m.bd_size,
            c.rows_read,
            c.rows_kept
        ))?;
    }
    say(&format!("{frame}\n"))
}

/// Writes to stdout; a closed pipe is not an error.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to stdout")
        }
        _ => Ok(()),
    }
}
