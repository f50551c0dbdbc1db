//! The options of `dlm-train eval --tasks FILE`.
//!
//! In: a model, tasks with known answers, and settings to compare. Out, on stdout: a table with a
//! line per setting, or one JSON object.

use std::path::PathBuf;

use clap::Args;

use super::generate::{stop_token_ids, template_kwargs};
use crate::compute::WeightFormat;
use crate::decode::generate_options::{DecodeMode, GenerateOptions, ModeOptions};
use crate::error::Result;
use crate::generate::ModelOptions;
use crate::report::console;
use crate::tasks::{Baseline, TaskOptions, evaluate};

/// Options that only `--tasks` has.
#[derive(Args, Debug)]
#[command(next_help_heading = "With --tasks")]
pub(super) struct TaskArgs {
    /// The model that it was converted from, which answers in ar mode as the baseline, or `none`
    /// [default: source_checkpoint of the model's dlm_config.json].
    #[arg(long, value_name = "MODEL|none", conflicts_with = "data")]
    pub source: Option<PathBuf>,
    /// Use the first tasks of the file only [default: all].
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub limit: Option<usize>,
    /// Regular expression: its last match in a completion is the answer, or its group where it has
    /// one [default: the whole completion; the last number for GSM8K's form].
    #[arg(long, value_name = "REGEX", conflicts_with = "data", allow_hyphen_values = true)]
    pub extract: Option<String>,
    /// How to decode; several separated by commas [default: ar, and block for a converted model;
    /// verify with an adapter that proposes at mask tokens].
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "data")]
    pub mode: Vec<DecodeMode>,
    /// Thresholds of block mode, separated by commas [default: 0.95].
    #[arg(long, value_delimiter = ',', conflicts_with = "data")]
    pub threshold: Vec<f64>,
    /// Sub-block sizes of block mode, separated by commas; each is combined with each threshold
    /// [default: 8, or the block where 8 does not divide it].
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "data")]
    pub sub_block_size: Vec<usize>,
    /// Run single sub-blocks where keys and values of the rest of the block are known: faster in
    /// large batches, approximate.
    #[arg(long, conflicts_with = "data")]
    pub sub_block_cache: bool,
    /// Whether the first pass over a block that the prompt begins runs together with the prompt's
    /// last whole blocks; the same tokens [default: true].
    #[arg(long, value_name = "true|false", conflicts_with = "data")]
    pub fuse_prefill: Option<bool>,
    /// Run the first pass over a block together with the commit of the block before it where its
    /// first token was foreseen: fewer and wider passes, the same tokens.
    #[arg(long, conflicts_with = "data")]
    pub fuse_commit: bool,
    /// Blocks that are decoded at a time, several numbers separated by commas; each is combined
    /// with each threshold and sub-block size. More than one is approximate [default: 1].
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "data")]
    pub blocks_in_flight: Vec<usize>,
    /// Verify mode: tokens of a pass beside the last decided one, at most; several numbers
    /// separated by commas [default: 7].
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "data")]
    pub propose: Vec<usize>,
    /// Tokens per block [default: the model folder's bd_size, else 32].
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub block_size: Option<usize>,
    /// Encode `prompt` and `question` as they are, without the chat template.
    #[arg(long, conflicts_with = "data")]
    pub raw: bool,
    /// Variables of the chat template as a JSON object, such as {"enable_thinking": false}.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["data", "raw"])]
    pub template_kwargs: Option<String>,
    /// Length limit of a completion in tokens [default: 256].
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub max_new_tokens: Option<usize>,
    /// Prompts decoded together; each gets the tokens it would get alone [default: 1].
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub batch_size: Option<usize>,
    /// Id that ends a completion, may be given more than once, or `none` [default: the model
    /// folder's].
    #[arg(long, value_name = "ID|none", conflicts_with = "data")]
    pub stop_token_id: Vec<String>,
    /// Format of the weights on the CPU [default: auto].
    #[arg(long, value_enum, conflicts_with = "data")]
    pub weights: Option<WeightFormat>,
    /// Folder for the completions, results.json and report.html; called again with it, a killed
    /// evaluation goes on.
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    pub out: Option<PathBuf>,
}

/// Answers the tasks and prints the report.
pub(super) fn run(
    args: &TaskArgs,
    (model, adapter): (PathBuf, Option<PathBuf>),
    tasks: PathBuf,
    place: ModelOptions,
    json: bool,
) -> Result<bool> {
    let usual = GenerateOptions::default();
    let thresholds =
        if args.threshold.is_empty() { vec![usual.threshold] } else { args.threshold.clone() };
    let of_blocks = [
        ("--threshold", !args.threshold.is_empty()),
        ("--sub-block-size", !args.sub_block_size.is_empty()),
        ("--sub-block-cache", args.sub_block_cache),
        ("--fuse-prefill", args.fuse_prefill.is_some()),
        ("--fuse-commit", args.fuse_commit),
        ("--blocks-in-flight", !args.blocks_in_flight.is_empty()),
        ("--block-size", args.block_size.is_some()),
    ];
    let mode_options = ModeOptions::default()
        .of(DecodeMode::Block, &of_blocks)
        .of(DecodeMode::Verify, &[("--propose", !args.propose.is_empty())]);
    if !args.mode.is_empty() {
        mode_options.check(&args.mode)?;
    }
    let options = TaskOptions {
        model,
        adapter,
        source: match &args.source {
            None => Baseline::Recorded,
            Some(none) if none.as_os_str() == "none" => Baseline::None,
            Some(path) => Baseline::Named(path.clone()),
        },
        tasks,
        limit: args.limit,
        extract: args.extract.clone(),
        modes: args.mode.clone(),
        mode_options,
        thresholds,
        sub_block_sizes: args.sub_block_size.clone(),
        blocks_in_flight: match args.blocks_in_flight.as_slice() {
            [] => vec![usual.blocks_in_flight],
            several => several.to_vec(),
        },
        propose: args.propose.clone(),
        decoding: GenerateOptions {
            raw: args.raw,
            template_kwargs: template_kwargs(args.template_kwargs.as_deref())?,
            block_size: args.block_size,
            sub_block_cache: args.sub_block_cache,
            fuse_prefill: args.fuse_prefill.unwrap_or(usual.fuse_prefill),
            fuse_commit: args.fuse_commit,
            max_new_tokens: args.max_new_tokens.unwrap_or(usual.max_new_tokens),
            batch_size: args.batch_size.unwrap_or(usual.batch_size),
            stop_token_ids: stop_token_ids(&args.stop_token_id)?,
            ..usual
        },
        place,
        out: args.out.clone(),
    };
    let report = evaluate(&options)?;
    console::result(if json { report.to_json()? } else { report.to_text() })?;
    if let Some(out) = &args.out {
        console::message(format_args!("wrote {}", out.join("report.html").display()));
    }
    Ok(true)
}
