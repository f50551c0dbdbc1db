//! The command line, as typed.

use crate::config::policies::OverLong;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Conversations to packed Arrow rows for block-diffusion training.
#[derive(Parser, Debug)]
#[command(name = "dlm-prep", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do; without a command, prepare a dataset.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Preparation.
    #[command(flatten)]
    pub build: PrepareArgs,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 the call or a recipe is wrong, 130 interrupted (run the same command again to go on).";

/// Other things to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show rows of a dataset: prompt, response, padding, block boundaries.
    Inspect(InspectArgs),
    /// Totals of a dataset: fill, padding, loss tokens, lengths, sources.
    Stats(StatsArgs),
    /// Check every hash, every row and every total of a dataset.
    Verify {
        /// The dataset's folder.
        dir: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a chat template makes of conversations.
    Render(RenderArgs),
    /// Join datasets prepared in parts (--shard I/N).
    Merge {
        /// Their folders, in the order wanted.
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Output folder.
        #[arg(long)]
        out: PathBuf,
    },
    /// Write what datasets.load_from_disk reads.
    ExportHf {
        /// The dataset's folder.
        dir: PathBuf,
        /// Output folder.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measure every stage, and the whole against the bare tokenizer engine.
    Bench(BenchArgs),
}

/// Preparing a dataset.
#[derive(Args, Debug, Clone)]
pub struct PrepareArgs {
    /// Files or folders: parquet, JSONL (plain, .gz, .zst), Arrow.
    #[arg(long, num_args = 1.., value_name = "FILE|DIR", required_unless_present_any = ["dataset", "recipe"], conflicts_with_all = ["dataset", "recipe"])]
    pub input: Vec<PathBuf>,
    /// A dataset on the Hugging Face hub (HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE are
    /// honoured).
    #[arg(long, value_name = "ORG/NAME")]
    pub dataset: Option<String>,
    /// Sources, shares and settings in a YAML file, or `nemotron`.
    #[arg(long, value_name = "FILE|NAME")]
    pub recipe: Option<PathBuf>,
    /// Branch, tag or commit of the dataset; pinned to a commit and recorded.
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Only these splits or categories of the dataset, by folder or file name.
    #[arg(long, value_delimiter = ',', value_name = "A,B", requires = "dataset")]
    pub split: Vec<String>,
    /// Only files whose path fits one of these globs.
    #[arg(long, value_delimiter = ',', value_name = "GLOB", requires = "dataset")]
    pub files: Vec<String>,
    /// Tokenizer: a folder (tokenizer.json, tokenizer_config.json), hf://ORG/NAME[@REV], or
    /// ORG/NAME.
    #[arg(long, value_name = "ID|DIR", required = true)]
    pub tokenizer: Option<PathBuf>,
    /// Output folder.
    #[arg(long, default_value = "datasets/packed", value_name = "DIR")]
    pub out: PathBuf,
    /// Chat template: chatml, llama3, or a Jinja file; the tokenizer's own if not given.
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,
    /// Tokens per row.
    #[arg(long, default_value_t = 512)]
    pub seq_len: usize,
    /// Block size.
    #[arg(long, default_value_t = 32)]
    pub bd_size: usize,
    /// What fills a document up to its block boundary.
    #[arg(long, value_enum, default_value_t = PaddingArg::Mask)]
    pub padding: PaddingArg,
    /// Which grid blocks follow.
    #[arg(long, value_enum, default_value_t = AlignmentArg::Sample)]
    pub alignment: AlignmentArg,
    /// Which assistant turns carry loss.
    #[arg(long, value_enum, default_value_t = LossOnArg::All)]
    pub loss_on: LossOnArg,
    /// Conversations longer than a row.
    #[arg(long, value_enum, default_value_t = OverLong::Truncate)]
    pub over_long: OverLong,
    /// Tokens of context a continued document opens with (--over-long split).
    #[arg(long, default_value_t = 128)]
    pub split_context: usize,
    /// Control-token strings inside message content.
    #[arg(long, value_enum, default_value_t = SpecialTextArg::Text)]
    pub special_text: SpecialTextArg,
    /// Assistant text that the template deletes or rewrites.
    #[arg(long, value_enum, default_value_t = LostTextArg::Drop)]
    pub lost_text: LostTextArg,
    /// The mask token; appended to the tokenizer if it lacks it.
    #[arg(long, default_value = crate::config::policies::MASK_TOKEN)]
    pub mask_token: String,
    /// The date strftime_now tells templates (output must not depend on the day it was made).
    #[arg(long, value_name = "TIME")]
    pub now: Option<String>,
    /// Share of conversations held out, chosen by a hash of what is said.
    #[arg(long, default_value_t = 0.0)]
    pub eval_fraction: f64,
    /// Leave out conversations seen before (16 bytes of memory each, and as much in the state
    /// file).
    #[arg(long)]
    pub dedup: bool,
    /// Stop after so many document tokens.
    #[arg(long)]
    pub max_tokens: Option<u64>,
    /// Stop after so many response tokens.
    #[arg(long)]
    pub max_response_tokens: Option<u64>,
    /// Stop after so many rows.
    #[arg(long)]
    pub max_rows: Option<u64>,
    /// This machine's part of the rows, as I/N with I from 0.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Fail when more than this share of conversations has no token to learn from.
    #[arg(long, default_value_t = 0.05)]
    pub max_unsupervised: f64,
    /// Documents the packer chooses among.
    #[arg(long, default_value_t = 1024)]
    pub pack_window: usize,
    /// Rows per data file; also how often a run can be resumed.
    #[arg(long, default_value_t = 16384)]
    pub shard_rows: usize,
    /// Worker threads; all cores if not given. Output does not depend on it.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Seed of the eval split.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Which tokenizer engine: auto checks the fast one against the stable one on a sample.
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub engine: EngineArg,
    /// Whether every row is rendered, or only those the template does not plainly copy (found by
    /// experiment, checked on one row in 61).
    #[arg(long, value_enum, default_value_t = RenderArg::Auto)]
    pub render: RenderArg,
    /// Say what would be done and what it would give, by a look at a part of the inputs, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Replace what is in the output folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident => $target:path { $($(#[$vdoc:meta])* $v:ident),+ }) => {
        $(#[$doc])*
        #[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $v),+ }
        impl From<$name> for $target {
            fn from(v: $name) -> Self {
                match v { $($name::$v => <$target>::$v),+ }
            }
        }
    };
}

choice!(
/// Block padding.
PaddingArg => dlm_datasets::manifest::Padding {
    /// The mask token.
    Mask,
    /// The end-of-text token.
    Eos
});
choice!(
/// Block grid.
AlignmentArg => dlm_datasets::manifest::Alignment {
    /// Counted from the document's start, as in decoding.
    Sample,
    /// The last response alone is a multiple of the block size.
    Response
});
choice!(
/// Loss policy.
LossOnArg => dlm_datasets::manifest::LossOn {
    /// Every assistant turn.
    All,
    /// The last one.
    Last
});
choice!(
/// Control-token strings.
SpecialTextArg => crate::config::policies::SpecialText {
    /// They are text.
    Text,
    /// They are control tokens, as in Python tools.
    AsSpecial,
    /// The conversation is left out.
    Reject
});
choice!(
/// Assistant text the template changes.
LostTextArg => crate::config::policies::LostText {
    /// The conversation is left out.
    Drop,
    /// The turn stays as context, without loss.
    Mask,
    /// Loss on what the template made of it.
    Keep
});

/// Tokenizer engine.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineArg {
    /// The fast one where it agrees with the stable one.
    Auto,
    /// The fast one, unchecked.
    Fast,
    /// The stable one.
    Stable,
}

/// Rendering.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenderArg {
    /// Where needed.
    Auto,
    /// Every row.
    Each,
}

/// Showing rows.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The dataset's folder.
    pub dir: PathBuf,
    /// Which row.
    #[arg(long, default_value_t = 0)]
    pub row: usize,
    /// How many rows.
    #[arg(long, default_value_t = 1)]
    pub rows: usize,
    /// Rows of the eval split.
    #[arg(long)]
    pub eval: bool,
    /// Show what the two complementary views hide: the masks that training draws with
    /// train.seed=SEED.
    #[arg(long, value_name = "SEED")]
    pub views: Option<u64>,
    /// With --views: the epoch whose masks are shown, from 0 (train split; evaluation has masks of
    /// its own).
    #[arg(long, default_value_t = 0, requires = "views")]
    pub epoch: u64,
    /// With --views: the smallest probability of hiding a token, as conversion.noise_eps.
    #[arg(long, default_value_t = dlm_datasets::mask::NOISE_EPS, requires = "views")]
    pub noise_eps: f64,
    /// Colours: auto, always, never.
    #[arg(long, default_value = "auto")]
    pub color: String,
}

/// Totals.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// The dataset's folder.
    pub dir: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Measuring.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Files or folders.
    #[arg(long, num_args = 1.., required = true)]
    pub input: Vec<PathBuf>,
    /// Tokenizer: a folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long, value_name = "ID|DIR")]
    pub tokenizer: PathBuf,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    pub workers: usize,
    /// Runs of each measurement; the best counts.
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// Where to write the files measured; removed afterwards.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Rendering.
#[derive(Args, Debug)]
pub struct RenderArgs {
    /// Tokenizer: a folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(
        long,
        value_name = "ID|DIR",
        conflicts_with = "template",
        required_unless_present = "template"
    )]
    pub tokenizer: Option<PathBuf>,
    /// A Jinja file, chatml or llama3.
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,
    /// JSONL: one template context a line.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// What strftime_now tells, as 2025-07-10T12:00:00; the present if not given.
    #[arg(long, value_name = "TIME")]
    pub now: Option<String>,
}
