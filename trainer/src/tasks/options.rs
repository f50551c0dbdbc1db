//! The options of an evaluation on tasks.

use std::path::PathBuf;

use crate::decode::generate_options::{DecodeMode, GenerateOptions, ModeOptions};
use crate::generate::ModelOptions;

/// What is evaluated, and how.
#[derive(Debug)]
pub(crate) struct TaskOptions {
    /// Model folder or hub name.
    pub model: PathBuf,
    /// Folder of an adapter beside it.
    pub adapter: Option<PathBuf>,
    /// The model that it was converted from, as the baseline.
    pub source: Baseline,
    /// JSONL file of tasks.
    pub tasks: PathBuf,
    /// Use the first tasks of the file only.
    pub limit: Option<usize>,
    /// Regular expression whose last match is the answer.
    pub extract: Option<String>,
    /// How to decode; empty: every way that the model has.
    pub modes: Vec<DecodeMode>,
    /// What was given that one mode alone reads.
    pub mode_options: ModeOptions,
    /// Thresholds of block mode; each is combined with each sub-block size.
    pub thresholds: Vec<f64>,
    /// Sub-block sizes of block mode; empty: the usual one.
    pub sub_block_sizes: Vec<usize>,
    /// Blocks in flight of block mode; each is combined with each of the others.
    pub blocks_in_flight: Vec<usize>,
    /// Tokens of a pass of verify mode beside the last decided one; empty: the usual number.
    pub propose: Vec<usize>,
    /// Everything else about decoding.
    pub decoding: GenerateOptions,
    pub place: ModelOptions,
    /// Folder for completions, results and plots; with it a killed evaluation goes on.
    pub out: Option<PathBuf>,
}

/// Where the baseline comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Baseline {
    /// The source that the model's dlm_config.json names, where it can be found.
    Recorded,
    /// This folder or hub name.
    Named(PathBuf),
    /// None is wanted.
    None,
}
