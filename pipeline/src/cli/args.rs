//! The command line as typed: what was not typed is `None` or empty. Defaults are in `config` and
//! in the options of the library; `help.rs` adds them to the help texts.

use crate::cli::choices::{
    AlignmentArg, ColourChoice, LossOnArg, LostTextArg, PaddingArg, SpecialTextArg,
};
use crate::config::overrides::SettingsOverrides;
use crate::config::policies::OverLong;
use crate::config::run_options::{EngineChoice, RenderChoice};
use crate::config::trained_roles::TrainedRoles;
use crate::manual::{CompletionsArgs, ManArgs};
use crate::prepare::builder::Prepare;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Conversations to packed Arrow rows for block-diffusion training.
#[derive(Parser, Debug)]
#[command(name = "dlm-prep", version = VERSION, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXIT_CODES)]
pub(super) struct Cli {
    /// Without a command, a dataset is prepared.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub prepare: PrepareArgs,
}

/// Version, commit and features, for `--version`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DLM_BUILD"), ")");

pub(super) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 the command line or a recipe is wrong, 130 interrupted (run the same command again to resume).";

/// Commands other than preparing a dataset.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Show rows of a dataset: prompt, response, padding, block boundaries.
    Inspect(InspectArgs),
    /// Show totals of a dataset: fill, padding, tokens with loss, lengths, sources.
    Stats(StatsArgs),
    /// Check every hash, every row and every total of a dataset.
    Verify {
        /// Folder of the dataset.
        dir: PathBuf,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how a chat template renders conversations, and what it takes for the assistant's text.
    Render(RenderArgs),
    /// Join datasets that were prepared in parts (--shard I/N).
    Merge {
        /// Folders of the datasets, in the order of the result.
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Folder to write the joined dataset to.
        #[arg(long)]
        out: PathBuf,
    },
    /// Export a dataset for datasets.load_from_disk of the Python library.
    ExportHf {
        /// Folder of the dataset.
        dir: PathBuf,
        /// Folder to write the export to.
        #[arg(long)]
        out: PathBuf,
    },
    /// Push a dataset to a Hugging Face hub, with a card; only what is missing there is sent. The
    /// token comes from HF_TOKEN or `hf auth login`.
    Push(PushArgs),
    /// Measure every stage, and the whole against the tokenizer engine alone.
    Bench(BenchArgs),
    /// Print the script that completes this program's command line in a shell.
    Completions(CompletionsArgs),
    /// Write the manual pages.
    Man(ManArgs),
}

/// Arguments of `push`.
#[derive(Args, Debug)]
pub(super) struct PushArgs {
    /// Folder of the dataset.
    pub dir: PathBuf,
    /// Repository on the hub, which is made if it is missing: ORG/NAME.
    #[arg(required_unless_present = "card")]
    pub id: Option<String>,
    /// Let everybody see a repository that has to be made [default: its owner only].
    #[arg(long)]
    pub public: bool,
    /// Write the card (README.md) into the folder, and push nothing.
    #[arg(long, conflicts_with = "public")]
    pub card: bool,
}

/// Arguments of a preparation.
#[derive(Args, Debug, Clone)]
pub(super) struct PrepareArgs {
    /// Files or folders: parquet, JSON lines (plain, .gz, .zst), Arrow; also in a bucket, as
    /// gs://BUCKET/FOLDER or 's3://BUCKET/FOLDER/*.parquet'.
    #[arg(long, num_args = 1.., value_name = "FILE|DIR", required_unless_present_any = ["dataset", "recipe"], conflicts_with_all = ["dataset", "recipe"])]
    pub input: Vec<PathBuf>,
    /// A dataset of the Hugging Face hub (HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are
    /// honoured).
    #[arg(long, value_name = "ORG/NAME")]
    pub dataset: Option<String>,
    /// Sources, their shares and settings in a YAML file, or `nemotron`.
    #[arg(long, value_name = "FILE|NAME")]
    pub recipe: Option<PathBuf>,
    /// Branch, tag or commit of the dataset; the commit is recorded.
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Config of the dataset or of a folder, as its README.md names it [default: the one that the
    /// README.md marks as default, as load_dataset takes it].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["recipe", "files"])]
    pub config: Option<String>,
    /// Splits of the dataset or of a folder, as its README.md or the names of its files give them;
    /// all takes every split, and without a README.md the name of a folder or file is a split, too
    /// [default: train].
    #[arg(long, value_delimiter = ',', value_name = "A,B", conflicts_with = "recipe")]
    pub split: Vec<String>,
    /// Files of the dataset or of a folder whose path matches one of these globs (*, **, ?, [a-z]),
    /// without regard to configs and splits.
    #[arg(long, value_delimiter = ',', value_name = "GLOB", conflicts_with = "recipe")]
    pub files: Vec<String>,
    /// Columns that have other names in the files, for example messages=chat,system=sys.
    #[arg(long, value_delimiter = ',', value_name = "OURS=THEIRS", value_parser = parse_column, conflicts_with = "recipe")]
    pub columns: Vec<(String, String)>,
    /// Tokenizer: a folder (tokenizer.json, tokenizer_config.json), hf://ORG/NAME[@REV], ORG/NAME,
    /// or a folder in a bucket (gs://, s3://, az://).
    #[arg(long, value_name = "ID|DIR", required = true)]
    pub tokenizer: Option<PathBuf>,
    /// Folder to write the dataset to; also in a bucket (gs://, s3://, az://).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Chat template: chatml, llama3, or a Jinja file; without it, the tokenizer's own.
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,
    /// Variables for the chat template of every conversation, for example
    /// {"enable_thinking": false}; a row's column chat_template_kwargs comes first.
    #[arg(long, value_name = "JSON")]
    pub template_kwargs: Option<String>,
    /// Tokens per packed row, a multiple of --bd-size.
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Block size in tokens.
    #[arg(long)]
    pub bd_size: Option<usize>,
    /// What fills a document up to its next block boundary.
    #[arg(long, value_enum)]
    pub padding: Option<PaddingArg>,
    /// From where blocks are counted.
    #[arg(long, value_enum)]
    pub alignment: Option<AlignmentArg>,
    /// Which assistant turns carry loss.
    #[arg(long, value_enum)]
    pub loss_on: Option<LossOnArg>,
    /// The roles whose turns carry loss: assistant, user, system, tool, all.
    #[arg(long, value_name = "A,B")]
    pub train_on_roles: Option<TrainedRoles>,
    /// Take no loss on thoughts (<think>, reasoning fields, analysis channels); the rest of the
    /// turn keeps its loss.
    #[arg(long)]
    pub mask_thinking: bool,
    /// What happens to conversations longer than a row.
    #[arg(long, value_enum)]
    pub over_long: Option<OverLong>,
    /// Tokens of context that a continued document opens with (--over-long split).
    #[arg(long)]
    pub split_context: Option<usize>,
    /// What happens to strings in message content that spell a control token.
    #[arg(long, value_enum)]
    pub special_text: Option<SpecialTextArg>,
    /// What happens to assistant text that the template deletes or rewrites.
    #[arg(long, value_enum)]
    pub lost_text: Option<LostTextArg>,
    /// The mask token; appended to the tokenizer if it has no such token.
    #[arg(long)]
    pub mask_token: Option<String>,
    /// The time that strftime_now returns in templates; fixed, so that the output does not depend
    /// on the day on which it is made.
    #[arg(long, value_name = "TIME")]
    pub now: Option<String>,
    /// Share of conversations to hold out as the eval split, chosen by a hash of their text.
    #[arg(long)]
    pub eval_fraction: Option<f64>,
    /// Drop conversations that were seen before (16 bytes of memory each, and as much on the disk
    /// until the run has finished).
    #[arg(long)]
    pub dedup: bool,
    /// Stop after this many document tokens.
    #[arg(long)]
    pub max_tokens: Option<u64>,
    /// Stop after this many tokens with loss.
    #[arg(long)]
    pub max_response_tokens: Option<u64>,
    /// Stop after this many rows.
    #[arg(long)]
    pub max_rows: Option<u64>,
    /// This machine's part of the rows, as I/N with I from 0.
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    pub shard: Option<(u64, u64)>,
    /// Fail if more than this share of conversations has no token to learn from.
    #[arg(long)]
    pub max_unsupervised: Option<f64>,
    /// Number of documents that the packer chooses from.
    #[arg(long)]
    pub pack_window: Option<usize>,
    /// Packed rows per data file; a run can be resumed after every data file.
    #[arg(long)]
    pub shard_rows: Option<usize>,
    /// Worker threads [default: all cores]. The output does not depend on their number.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Seed of the choice of held-out conversations.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Which tokenizer engine is used.
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
    /// Which rows the chat template renders.
    #[arg(long, value_enum)]
    pub render: Option<RenderChoice>,
    /// Print what the run would give, estimated from a sample of the input, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Replace the dataset in the output folder; only one that dlm-prep wrote.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

impl PrepareArgs {
    /// The library's call, without progress.
    pub(super) fn to_prepare(&self) -> Prepare {
        let mut p = Prepare::new(self.tokenizer.clone().unwrap_or_default())
            .inputs(&self.input)
            .splits(&self.split)
            .files(&self.files)
            .columns(self.columns.iter().cloned())
            .overrides(self.overrides())
            .engine(self.engine.unwrap_or_default())
            .render(self.render.unwrap_or_default())
            .overwrite(self.overwrite);
        if let Some(dataset) = &self.dataset {
            p = p.dataset(dataset);
        }
        if let Some(config) = &self.config {
            p = p.config(config);
        }
        if let Some(revision) = &self.revision {
            p = p.revision(revision);
        }
        if let Some(recipe) = &self.recipe {
            p = p.recipe(recipe);
        }
        if let Some(template) = &self.template {
            p = p.template(template);
        }
        if let Some(kwargs) = &self.template_kwargs {
            p = p.template_kwargs(kwargs);
        }
        if let Some(workers) = self.workers {
            p = p.workers(workers);
        }
        p
    }

    fn overrides(&self) -> SettingsOverrides {
        SettingsOverrides {
            seq_len: self.seq_len,
            bd_size: self.bd_size,
            padding: self.padding.map(Into::into),
            alignment: self.alignment.map(Into::into),
            loss_on: self.loss_on.map(Into::into),
            train_on_roles: self.train_on_roles,
            mask_thinking: self.mask_thinking.then_some(true),
            over_long: self.over_long,
            split_context: self.split_context,
            special_text: self.special_text.map(Into::into),
            lost_text: self.lost_text.map(Into::into),
            mask_token: self.mask_token.clone(),
            now: self.now.clone(),
            pack_window: self.pack_window,
            shard_rows: self.shard_rows,
            eval_fraction: self.eval_fraction,
            dedup: self.dedup.then_some(true),
            max_tokens: self.max_tokens,
            max_response_tokens: self.max_response_tokens,
            max_rows: self.max_rows,
            shard: self.shard,
            max_unsupervised: self.max_unsupervised,
            seed: self.seed,
        }
    }
}

/// Parses `OURS=THEIRS`.
fn parse_column(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(ours, theirs)| (ours.trim().to_string(), theirs.trim().to_string()))
        .filter(|(ours, theirs)| !ours.is_empty() && !theirs.is_empty())
        .ok_or_else(|| {
            "expected OURS=THEIRS, the name that dlm-prep knows and the name in the file, for example messages=chat".to_string()
        })
}

/// Parses `I/N`.
fn parse_shard(text: &str) -> Result<(u64, u64), String> {
    text.split_once('/')
        .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)))
        .ok_or_else(|| "expected I/N, for example 0/4".to_string())
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// Folder of the dataset.
    pub dir: PathBuf,
    /// Index of the first row.
    #[arg(long)]
    pub row: Option<usize>,
    /// Number of rows to show.
    #[arg(long)]
    pub rows: Option<usize>,
    /// Show rows of the eval split.
    #[arg(long)]
    pub eval: bool,
    /// Show what the two complementary views hide: the masks that training draws with
    /// train.seed=SEED.
    #[arg(long, value_name = "SEED")]
    pub views: Option<u64>,
    /// With --views: the epoch whose masks are shown, from 0 (train split; the eval split has the
    /// same masks in every epoch).
    #[arg(long, requires = "views")]
    pub epoch: Option<u64>,
    /// With --views: the smallest probability of hiding a token, as conversion.noise_eps.
    #[arg(long, requires = "views")]
    pub noise_eps: Option<f64>,
    /// When terminal colours are used.
    #[arg(long, value_enum)]
    pub color: Option<ColourChoice>,
}

/// Arguments of `stats`.
#[derive(Args, Debug)]
pub(super) struct StatsArgs {
    /// Folder of the dataset.
    pub dir: PathBuf,
    /// Print the totals as JSON.
    #[arg(long)]
    pub json: bool,
    /// Write the totals as an HTML page with charts, too.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Worker threads of `bench` if none are given.
pub(super) const BENCH_WORKERS: usize = 2;
/// Runs of each measurement of `bench` if none are given.
pub(super) const BENCH_REPEAT: usize = 3;

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// Files or folders to measure on.
    #[arg(long, num_args = 1.., required = true)]
    pub input: Vec<PathBuf>,
    /// Tokenizer: a folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long, value_name = "ID|DIR")]
    pub tokenizer: PathBuf,
    /// Threads of the engine alone and worker threads of the whole.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Runs of each measurement; the best one counts.
    #[arg(long)]
    pub repeat: Option<usize>,
    /// Folder in which files are written, in a folder of their own that is removed afterwards;
    /// without it, the folder of temporary files.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `render`.
#[derive(Args, Debug)]
pub(super) struct RenderArgs {
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
    /// JSON lines: one template context per line.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// The time that strftime_now returns, as 2025-07-10T12:00:00; without it, the present.
    #[arg(long, value_name = "TIME")]
    pub now: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_typed_is_set() {
        let parse = |more: &[&str]| {
            let call = ["dlm-prep", "--input", "a.jsonl", "--tokenizer", "t"];
            Cli::parse_from(call.iter().chain(more)).prepare.overrides()
        };
        assert_eq!(parse(&[]), SettingsOverrides::default());
        let typed = SettingsOverrides {
            seq_len: Some(512),
            shard: Some((1, 4)),
            dedup: Some(true),
            ..Default::default()
        };
        assert_eq!(parse(&["--seq-len", "512", "--shard", "1/4", "--dedup"]), typed);
    }
}
