//! Plots of a run's metrics as one self-contained HTML file (`dlm-train plot RUN…`).
//!
//! In: `metrics.jsonl` of one or several runs. Out: a summary, then loss, what tells whether a
//! conversion works (`held_out.rs`), learning rate, gradient norm, source tokens per second, data
//! wait and memory over steps or tokens, as inline SVG that
//! follows the reader's light or dark mode. Lines that are no step record (a last line cut off by a
//! crash) are skipped and counted.

mod held_out;
mod options;
mod page;
mod panels;
mod run_data;
mod summary;

use std::path::{Path, PathBuf};

pub(crate) use options::{PlotAxis, PlotOptions};

use crate::error::{Error, Result};
use crate::report::console::message;
use dlm_datasets::fs;

/// Runs that one page can distinguish by colour.
const MAX_RUNS: usize = 6;

/// Write the page; returns its path.
pub(crate) fn plot(options: &PlotOptions) -> Result<PathBuf> {
    if options.runs.len() > MAX_RUNS {
        return Err(Error::Usage(format!(
            "{} runs; one page shows at most {MAX_RUNS}",
            options.runs.len()
        )));
    }
    let first = options.runs.first().ok_or_else(|| Error::Usage("no run to plot".into()))?;
    let mut runs = options.runs.iter().map(|p| run_data::read(p)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|r| r.name.clone()).collect();
    for (r, path) in runs.iter_mut().zip(&options.runs) {
        if names.iter().filter(|n| **n == r.name).count() > 1 {
            r.name = path.display().to_string();
        }
    }
    let out = options.out.clone().unwrap_or_else(|| {
        let dir =
            if first.is_dir() { first.as_path() } else { first.parent().unwrap_or(Path::new("")) };
        dir.join("report.html")
    });
    for r in runs.iter().filter(|r| r.skipped_lines > 0) {
        message(format_args!(
            "{}: {} of its lines hold no step record and were skipped",
            r.name, r.skipped_lines
        ));
    }
    fs::write_atomic(&out, page::page(&runs, options.x).as_bytes())?;
    Ok(out)
}
