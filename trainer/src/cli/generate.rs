//! `dlm-train generate`: complete prompts in diffusion blocks, or one token at a time.
//!
//! In: a model and prompts (text, conversations or ids). Out, on stdout: the text, or with `--json`
//! one object per prompt; on stderr: forward passes, tokens per forward pass and tokens per second.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};

use super::passes;
use crate::compute::{ComputeDtype, EngineChoice, WeightFormat};
use crate::decode::prompt::{self, PromptCodec};
use crate::error::{Error, Result};
use crate::generate::{Completion, DecodeMode, GenerateOptions, ModelFiles, ModelOptions, Prompt};
use crate::report::console::{self, Reader};

/// Arguments of `dlm-train generate` as typed.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("prompts").required(true).args(["prompt", "ids", "input"])))]
pub(super) struct GenerateArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
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
    /// How to decode [default: block].
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
    /// Dtype of activations and matrix products [default: bf16 on CUDA, fp32 elsewhere].
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeDtype>,
    /// Format of the weights on the CPU [default: auto].
    #[arg(long, value_enum)]
    pub weights: Option<WeightFormat>,
    /// What computes [default: auto].
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
    /// auto, cpu, cuda[:N] or wgpu [default: auto].
    #[arg(long)]
    pub device: Option<String>,
    /// Print one JSON object per prompt.
    #[arg(long)]
    pub json: bool,
    /// Print the text after each forward pass before the text itself: what the pass decided in
    /// brackets, and a ░ for each hidden position of a begun block.
    #[arg(long, conflicts_with = "json")]
    pub show_passes: bool,
}

/// Sums over all completions.
#[derive(Default)]
struct Totals {
    tokens: usize,
    passes: usize,
    seconds: f64,
}

/// Completes and prints. The call is checked before the weights are read.
pub(super) fn run(args: &GenerateArgs) -> Result<bool> {
    let prompts = read_prompts(args)?;
    let options = options(args)?;
    let files = ModelFiles::open(&args.model)?;
    let prompts = files.encode(&prompts, &options)?;
    files.request(&options)?;
    let codec = files.codec().ok().cloned();
    let block_size = match options.mode {
        DecodeMode::Block => files.block_size(&options),
        DecodeMode::Ar => 1,
    };
    for warning in files.warnings(&prompts, &options) {
        console::message(format_args!("warning: {warning}"));
    }
    let started = Instant::now();
    let mut place = ModelOptions { dtype: args.dtype, ..ModelOptions::default() };
    if let Some(engine) = args.engine {
        place.engine = engine;
    }
    place.weights = args.weights.unwrap_or_default();
    if let Some(device) = &args.device {
        place.device = device.clone();
    }
    let mut model = files.load(&place)?;
    console::message(format_args!(
        "loaded {} on {} in {:.1} s",
        args.model.display(),
        model.device(),
        started.elapsed().as_secs_f64()
    ));
    let count = prompts.len();
    let mut totals = Totals::default();
    let mut printed = 0;
    // those that are there before their turn
    let mut early: BTreeMap<usize, Completion> = BTreeMap::new();
    let started = Instant::now();
    let mut is_read = true;
    model.generate_each(prompts, &options, |at, completion| {
        early.insert(at, completion);
        while let Some(completion) = early.remove(&printed) {
            printed += 1;
            totals.tokens += completion.ids.len();
            totals.passes += completion.passes.total();
            let shown = match args.show_passes {
                true => Some(passes_of(&completion, &codec, block_size)?),
                false => None,
            };
            for text in shown.into_iter().chain([line(&completion, options.mode, args.json)]) {
                is_read &= console::result(text)? != Reader::Gone;
            }
        }
        Ok(is_read)
    })?;
    if !is_read {
        return Ok(true);
    }
    totals.seconds = started.elapsed().as_secs_f64();
    let Totals { tokens, passes, seconds } = totals;
    console::message(format_args!(
        "{count} prompts: {tokens} tokens, {passes} forward passes counted per prompt, {:.2} tokens per forward, {seconds:.2} s, {:.1} tokens/s",
        tokens as f64 / passes.max(1) as f64,
        tokens as f64 / seconds.max(1e-9)
    ));
    Ok(true)
}

/// The settings of a call. Options of block mode are refused in autoregressive mode.
fn options(args: &GenerateArgs) -> Result<GenerateOptions> {
    let usual = GenerateOptions::default();
    let mode = args.mode.unwrap_or(usual.mode);
    let block_only = [
        ("--threshold", args.threshold.is_some()),
        ("--block-size", args.block_size.is_some()),
        ("--sub-block-size", args.sub_block_size.is_some()),
        ("--sub-block-cache", args.sub_block_cache),
    ];
    let typed = block_only.iter().find(|(_, typed)| *typed);
    if let (DecodeMode::Ar, Some((flag, _))) = (mode, typed) {
        return Err(Error::Usage(format!("{flag} has no meaning with --mode ar")));
    }
    Ok(GenerateOptions {
        mode,
        raw: args.raw,
        template_kwargs: template_kwargs(args.template_kwargs.as_deref())?,
        threshold: args.threshold.unwrap_or(usual.threshold),
        block_size: args.block_size,
        sub_block_size: args.sub_block_size,
        sub_block_cache: args.sub_block_cache,
        max_new_tokens: args.max_new_tokens.unwrap_or(usual.max_new_tokens),
        batch_size: args.batch_size.unwrap_or(usual.batch_size),
        mask_token_id: args.mask_token_id,
        stop_token_ids: stop_token_ids(&args.stop_token_id)?,
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

/// The text of a completion after each of its passes.
fn passes_of(
    completion: &Completion,
    codec: &Option<Arc<PromptCodec>>,
    block_size: usize,
) -> Result<String> {
    let pieces = match codec {
        Some(codec) => passes::pieces(&completion.ids, |ids| codec.decode(ids))?,
        None => completion.ids.iter().map(|id| format!("{id} ")).collect(),
    };
    let (decided, prompt) = (&completion.decided, completion.prompt_ids.len());
    let colours = console::has_colours();
    Ok(passes::lines(&pieces, decided, prompt, block_size, colours).join("\n"))
}

/// A completion as it is printed: an object, the text, or the ids where there is no text.
fn line(completion: &Completion, mode: DecodeMode, as_json: bool) -> String {
    let Completion { prompt_ids, ids, text, stopped, passes, seconds, .. } = completion;
    if as_json {
        let object = json!({
            "prompt_ids": prompt_ids,
            "completion_ids": ids,
            "token_passes": completion.decided.iter().map(|d| d.pass).collect::<Vec<_>>(),
            "token_logprobs": completion.decided.iter().map(|d| d.probability.ln()).collect::<Vec<_>>(),
            "text": text,
            "stopped": stopped,
            "passes": {
                "prefill": passes.prefill,
                "block": passes.block,
                "small": passes.small,
                "commit": passes.commit,
                "total": passes.total(),
            },
            "tokens_per_forward": completion.tokens_per_forward(),
            "seconds": seconds,
            "mode": if mode == DecodeMode::Block { "block" } else { "ar" },
        });
        return object.to_string();
    }
    match text {
        Some(text) => text.clone(),
        None => ids.iter().map(i64::to_string).collect::<Vec<_>>().join(","),
    }
}
