//! What is plotted, and where it is written.

use std::path::PathBuf;

/// The horizontal axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PlotAxis {
    /// Optimizer steps.
    #[default]
    Step,
    /// Source tokens consumed.
    Tokens,
}

/// What to plot.
#[derive(Clone, Debug)]
pub(crate) struct PlotOptions {
    /// Folders of runs (output.dir), or their metrics.jsonl; several share the charts.
    pub runs: Vec<PathBuf>,
    /// File to write; `None`: report.html in the first run's folder.
    pub out: Option<PathBuf>,
    pub x: PlotAxis,
}
