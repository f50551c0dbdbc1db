//! `dlm-train generate`: complete prompts in diffusion blocks, one token at a time, or as that by
//! proposals that are verified.
//!
//! In: a model and prompts (text, conversations or ids). Out, on stdout: the text, or with `--json`
//! one object per prompt; on stderr: forward passes, tokens per forward pass and tokens per second.

use std::path::PathBuf;
use std::time::Instant;

use clap::{ArgGroup, Args};
use serde_json::{Map, Value};

use super::place::PlaceArgs;
use super::printer::{Form, Printer};
use crate::decode::generate_options::ModeOptions;
use crate::decode::prompt;
use crate::error::{Error, Result};
use crate::generate::{DecodeMode, GenerateOptions, ModelFiles, Prompt};
use crate::report::console;

/// Arguments of `dlm-train generate` as typed.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("prompts").required(true).args(["prompt", "ids", "input"])))]
pub(super) struct GenerateArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Folder of an adapter (LoRA) of the model, as export.lora=adapter or peft writes it.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A user's message; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Token ids, for example 1,2,3; needs no tokenizer.
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub ids: Option<String>,
    /// JSONL file with one {"messages": [...], "tools": [...]}, {"prompt": "..."} or {"ids": [...]}
    /// per line; tools may be left out, and a content may be a list of text parts.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Encode text as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// Variables of the chat template as a JSON object, such as {"enable_thinking": false}. One
    /// with think in its name says how the answer opens [default: as in the training data].
    #[arg(long, value_name = "JSON", conflicts_with_all = ["raw", "ids"])]
    pub template_kwargs: Option<String>,
    /// How to decode [default: block; verify with an adapter that proposes at mask tokens].
    #[arg(long, value_enum)]
    pub mode: Option<DecodeMode>,
    /// Fix every token whose probability is above this [default: 0.95].
    #[arg(long)]
    pub threshold: Option<f64>,
    /// Tokens per block [default: the model folder's bd_size, else 32].
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
    /// Tokens per sub-block [default: 8, or the block where 8 does not divide it].
    #[arg(long, value_name = "N")]
    pub sub_block_size: Option<usize>,
    /// Run single sub-blocks where keys and values of the rest of the block are known: faster in
    /// large batches, approximate.
    #[arg(long)]
    pub sub_block_cache: bool,
    /// Whether the first pass over a block that the prompt begins runs together with the prompt's
    /// last whole blocks; the same tokens [default: true].
    #[arg(long, value_name = "true|false")]
    pub fuse_prefill: Option<bool>,
    /// Run the first pass over a block together with the commit of the block before it where its
    /// first token was foreseen: fewer and wider passes, the same tokens.
    #[arg(long)]
    pub fuse_commit: bool,
    /// Blocks that are decoded at a time: fewer and wider passes, approximate [default: 1].
    #[arg(long, value_name = "N")]
    pub blocks_in_flight: Option<usize>,
    /// Verify mode: tokens of a pass beside the last decided one, at most; proposals that are
    /// verified and masks that make new ones [default: 7].
    #[arg(long, value_name = "N")]
    pub propose: Option<usize>,
    /// Length limit of a completion in tokens [default: 256].
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Prompts decoded together; each gets the tokens it would get alone [default: 1].
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Id of the mask token [default: the model folder's].
    #[arg(long, value_name = "ID")]
    pub mask_token_id: Option<i64>,
    /// Id that ends a completion, may be given more than once, or `none` [default: the model
    /// folder's].
    #[arg(long, value_name = "ID|none")]
    pub stop_token_id: Vec<String>,
    /// Text that ends a completion, which is cut before it; may be given more than once.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Draw tokens from the distribution of the logits divided by this; 0 takes the most likely
    /// ones [default: 0].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Draw from the most likely tokens that have this probability together [default: 1].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Draw from this many most likely tokens; 0: from all [default: 0].
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Seed of the first prompt's random numbers; the next prompt has the next seed [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Print one JSON object per prompt.
    #[arg(long)]
    pub json: bool,
    /// Print text as soon as it is final [default: on a terminal, for one prompt].
    #[arg(long, conflicts_with_all = ["json", "show_passes"])]
    pub stream: bool,
    /// Print the text after each forward pass before the text itself: what the pass decided in
    /// brackets, and a ░ for each hidden position of a begun block.
    #[arg(long, conflicts_with = "json")]
    pub show_passes: bool,
}

/// Completes and prints. The call is checked before the weights are read.
pub(super) fn run(args: &GenerateArgs) -> Result<bool> {
    let prompts = read_prompts(args)?;
    let mut options = options(args)?;
    let files = ModelFiles::open_adapted(&args.model, args.adapter.as_deref())?;
    options.mode = args.mode.unwrap_or(files.usual_mode());
    mode_options(args).check(&[options.mode])?;
    let prompts = files.encode(&prompts, &options)?;
    let stops = files.request(&options)?.stop.map(|stop| stop.strings).unwrap_or_default();
    let codec = files.codec().ok().cloned();
    let block_size = match options.mode {
        DecodeMode::Block => files.block_size(&options),
        DecodeMode::Ar | DecodeMode::Verify => 1,
    };
    for warning in files.warnings(&prompts, &options).into_iter().chain(files.other_source()) {
        console::message(format_args!("warning: {warning}"));
    }
    let started = Instant::now();
    let mut model = files.load(&args.place.options())?;
    console::message(format_args!(
        "loaded {} on {} in {:.1} s",
        args.model.display(),
        model.device(),
        started.elapsed().as_secs_f64()
    ));
    let count = prompts.len();
    let form = match (args.json, args.show_passes, args.stream) {
        (true, ..) => Form::Json,
        (_, true, _) => Form::Passes { block_size },
        (.., true) => Form::Stream,
        _ if count == 1 && console::is_terminal() => Form::Stream,
        _ => Form::Whole,
    };
    let mut printer = Printer::new(form, options.mode, codec, stops, console::text::<String>);
    let started = Instant::now();
    model.generate_each(prompts, &options, |at, progress| printer.take(at, progress))?;
    if printer.has_no_reader() {
        return Ok(true);
    }
    let (tokens, passes) = printer.totals();
    let seconds = started.elapsed().as_secs_f64();
    console::message(format_args!(
        "{count} prompts: {tokens} tokens, {passes} forward passes counted per prompt, {:.2} tokens per forward, {seconds:.2} s, {:.1} tokens/s",
        tokens as f64 / passes.max(1) as f64,
        tokens as f64 / seconds.max(1e-9)
    ));
    Ok(true)
}

/// The options that one mode alone reads.
fn mode_options(args: &GenerateArgs) -> ModeOptions {
    let of_blocks = [
        ("--threshold", args.threshold.is_some()),
        ("--block-size", args.block_size.is_some()),
        ("--sub-block-size", args.sub_block_size.is_some()),
        ("--sub-block-cache", args.sub_block_cache),
        ("--fuse-prefill", args.fuse_prefill.is_some()),
        ("--fuse-commit", args.fuse_commit),
        ("--blocks-in-flight", args.blocks_in_flight.is_some()),
    ];
    ModeOptions::default()
        .of(DecodeMode::Block, &of_blocks)
        .of(DecodeMode::Verify, &[("--propose", args.propose.is_some())])
}

/// The settings of a call.
fn options(args: &GenerateArgs) -> Result<GenerateOptions> {
    let usual = GenerateOptions::default();
    let mode = args.mode.unwrap_or(usual.mode);
    if let Some(mode) = args.mode {
        mode_options(args).check(&[mode])?;
    }
    let drawing = [
        ("--top-p", args.top_p.is_some()),
        ("--top-k", args.top_k.is_some()),
        ("--seed", args.seed.is_some()),
    ];
    let typed = drawing.iter().find(|(_, typed)| *typed);
    if let (Some((flag, _)), false) = (typed, args.temperature.is_some_and(|t| t != 0.0)) {
        return Err(Error::Usage(format!(
            "{flag} has no meaning at temperature 0, which takes the most likely tokens; give --temperature, for example 1"
        )));
    }
    Ok(GenerateOptions {
        mode,
        raw: args.raw,
        template_kwargs: template_kwargs(args.template_kwargs.as_deref())?,
        threshold: args.threshold.unwrap_or(usual.threshold),
        block_size: args.block_size,
        sub_block_size: args.sub_block_size,
        sub_block_cache: args.sub_block_cache,
        fuse_prefill: args.fuse_prefill.unwrap_or(usual.fuse_prefill),
        fuse_commit: args.fuse_commit,
        blocks_in_flight: args.blocks_in_flight.unwrap_or(usual.blocks_in_flight),
        propose: args.propose,
        max_new_tokens: args.max_new_tokens.unwrap_or(usual.max_new_tokens),
        batch_size: args.batch_size.unwrap_or(usual.batch_size),
        mask_token_id: args.mask_token_id,
        stop_token_ids: stop_token_ids(&args.stop_token_id)?,
        stop: args.stop.clone(),
        temperature: args.temperature.unwrap_or(usual.temperature),
        top_p: args.top_p.unwrap_or(usual.top_p),
        top_k: args.top_k.unwrap_or(usual.top_k),
        seed: args.seed.unwrap_or(usual.seed),
    })
}

fn read_prompts(args: &GenerateArgs) -> Result<Vec<Prompt>> {
    if let Some(path) = &args.input {
        return prompt::read_jsonl(path);
    }
    match &args.ids {
        Some(ids) => Ok(vec![Prompt::Ids(prompt::parse_ids(ids)?)]),
        None => Ok(args.prompt.iter().cloned().map(Prompt::Text).collect()),
    }
}

/// The variables of `--template-kwargs`.
pub(super) fn template_kwargs(text: Option<&str>) -> Result<Map<String, Value>> {
    let Some(text) = text else { return Ok(Map::new()) };
    let variables: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        Error::Usage(format!(
            "--template-kwargs {text}: {error}; expected a JSON object such as {{\"enable_thinking\": false}}"
        ))
    })?;
    let own = ["messages", "tools", "documents", "add_generation_prompt"];
    match own.iter().find(|name| variables.contains_key(**name)) {
        Some(name) => Err(Error::Usage(format!(
            "--template-kwargs: {name} is set by generate itself (messages and tools are keys of a line of --input)"
        ))),
        None => Ok(variables),
    }
}

/// `None` where the option was not given; empty for `none`.
pub(super) fn stop_token_ids(typed: &[String]) -> Result<Option<Vec<i64>>> {
    match typed {
        [] => Ok(None),
        [none] if none == "none" => Ok(Some(Vec::new())),
        ids => {
            let parse = |id: &String| {
                id.parse::<i64>().map_err(|_| {
                    Error::Usage(format!(
                        "--stop-token-id {id}: expected a token id, or `none` alone"
                    ))
                })
            };
            ids.iter().map(parse).collect::<Result<_>>().map(Some)
        }
    }
}
