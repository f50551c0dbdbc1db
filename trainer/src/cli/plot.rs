//! `dlm-train plot RUN…`: plots the metrics of runs as one HTML file and prints its path.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::report::console;
use crate::report::plot::{PlotAxis, PlotOptions, plot};

/// Options of `dlm-train plot`.
#[derive(Args, Debug)]
pub(super) struct PlotArgs {
    /// Folders of runs (output.dir), or their metrics.jsonl; several share the charts.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// File to write; default: report.html in the first run's folder.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Horizontal axis.
    #[arg(long, value_enum, default_value_t)]
    pub x: PlotAxis,
}

/// Plots and prints the path of the page.
pub(super) fn run(args: &PlotArgs) -> Result<bool> {
    let options = PlotOptions { runs: args.runs.clone(), out: args.out.clone(), x: args.x };
    console::result(plot(&options)?.display())?;
    Ok(true)
}
