//! `dlm-train generate`: completions in diffusion blocks, or one token at a time.
//!
//! In: a model folder and prompts (text, conversations or ids). Out, on stdout: the text, or with
//! `--json` one object a prompt; on stderr: passes, tokens per forward pass and tokens per second.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::json;

use crate::compute::{ComputeDtype, ComputePlan, device};
use crate::decode::folder::ModelFolder;
use crate::decode::prompt::{self, Prompt, PromptCodec};
use crate::decode::{ArOptions, BlockOptions, Completion};
use crate::error::{Error, Result};

/// How to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Diffusion blocks, many tokens a pass.
    Block,
    /// Causal, one token a pass.
    Ar,
}

/// Options of `dlm-train generate`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("prompts").required(true).args(["prompt", "ids", "input"])))]
pub struct GenerateArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// A user's message; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Token ids, for example 1,2,3; needs no tokenizer.
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub ids: Option<String>,
    /// JSONL of {"messages": [...]}, {"prompt": "..."} or {"ids": [...]}, one a line.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Encode text as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// block or ar.
    #[arg(long, value_enum, default_value_t = Mode::Block)]
    pub mode: Mode,
    /// Fix every token whose probability is above this [default: 0.95].
    #[arg(long)]
    pub threshold: Option<f64>,
    /// Tokens a block [default: the folder's bd_size].
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
    /// Tokens a sub-block [default: 8, or the block where 8 does not divide it].
    #[arg(long, value_name = "N")]
    pub sub_block_size: Option<usize>,
    /// Run single sub-blocks where the rest of the block is known: faster in large batches,
    /// approximate.
    #[arg(long)]
    pub sub_block_cache: bool,
    /// Length limit of a completion, in tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Prompts decoded together; each gets the tokens it would get alone.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch_size: usize,
    /// Id of the mask token [default: the folder's].
    #[arg(long, value_name = "ID")]
    pub mask_token_id: Option<i64>,
    /// Id that ends a completion, may be given more than once, or `none` [default: the folder's].
    #[arg(long, value_name = "ID|none")]
    pub stop_token_id: Vec<String>,
    /// fp32 or bf16 [default: fp32 on the CPU, bf16 on CUDA].
    #[arg(long)]
    pub dtype: Option<ComputeDtype>,
    /// auto, cpu, cuda[:N].
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Print one JSON object a prompt.
    #[arg(long)]
    pub json: bool,
}

/// Run.
pub fn run(args: &GenerateArgs) -> Result<bool> {
    let prompts = read_prompts(args)?;
    let stop_override = stop_ids(&args.stop_token_id)?;
    if args.batch_size == 0 {
        return Err(Error::Usage("--batch-size 0: expected 1 or more".into()));
    }
    let needs_text = prompts.iter().any(|prompt| !matches!(prompt, Prompt::Ids(_)));
    let dir = crate::io::source::folder_of(&args.model)?;
    let text = match PromptCodec::load(&dir) {
        Ok(text) => Some(text),
        Err(error) if needs_text => return Err(error),
        Err(_) => None,
    };
    let encode = |prompt: &Prompt| match (prompt, &text) {
        (Prompt::Ids(ids), _) => Ok(ids.clone()),
        (prompt, Some(text)) => text.encode(prompt, args.raw),
        (_, None) => {
            Err(Error::Usage(format!("{} has no tokenizer; give --ids", args.model.display())))
        }
    };
    let prompts = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;

    let folder = ModelFolder::read(&dir)?;
    let stop_ids = stop_override.unwrap_or_else(|| folder.stop_ids.clone());
    let how = plan(args, &folder, stop_ids)?;
    let compute = ComputePlan::new(device::choose(&args.device)?, args.dtype);
    let device = compute.device.name.clone();
    let started = Instant::now();
    let mut engine = folder.load(compute)?;
    eprintln!(
        "loaded {} on {} in {:.1} s",
        args.model.display(),
        device,
        started.elapsed().as_secs_f64()
    );
    let longest =
        prompts.iter().map(Vec::len).max().unwrap_or(0).saturating_add(args.max_new_tokens);
    let limit = folder.config.max_position_embeddings;
    if longest > limit {
        eprintln!(
            "warning: up to {longest} tokens with the prompt, but config.json claims positions up to {limit} only"
        );
    }

    let mut totals = (0usize, 0usize, 0f64);
    for group in prompts.chunks(args.batch_size) {
        let started = Instant::now();
        let done = match &how {
            DecodeOptions::Block(options) => engine.block(group, options)?,
            DecodeOptions::Ar(options) => engine.autoregressive(group, options)?,
        };
        let seconds = started.elapsed().as_secs_f64();
        totals.2 += seconds;
        for completion in &done {
            totals.0 += completion.generated().len();
            totals.1 += completion.passes.total();
            if !print(completion, args, text.as_ref(), seconds)? {
                return Ok(true);
            }
        }
    }
    let (tokens, passes, seconds) = totals;
    eprintln!(
        "{} prompts: {tokens} tokens, {passes} forward passes counted per prompt, {:.2} tokens per forward, {seconds:.2} s, {:.1} tokens/s",
        prompts.len(),
        ratio(tokens, passes),
        tokens as f64 / seconds.max(1e-9)
    );
    Ok(true)
}

enum DecodeOptions {
    Block(BlockOptions),
    Ar(ArOptions),
}

fn plan(args: &GenerateArgs, folder: &ModelFolder, stop_ids: Vec<i64>) -> Result<DecodeOptions> {
    let mask_id = args.mask_token_id.or(folder.mask_id);
    if args.mode == Mode::Ar {
        let block_only = [
            ("--threshold", args.threshold.is_some()),
            ("--block-size", args.block_size.is_some()),
            ("--sub-block-size", args.sub_block_size.is_some()),
            ("--sub-block-cache", args.sub_block_cache),
        ];
        if let Some((flag, _)) = block_only.iter().find(|(_, given)| *given) {
            return Err(Error::Usage(format!("{flag} has no meaning with --mode ar")));
        }
        return Ok(DecodeOptions::Ar(ArOptions {
            max_new_tokens: args.max_new_tokens,
            stop_ids,
            mask_id,
        }));
    }
    let mask_id = mask_id.ok_or_else(|| {
        Error::Usage(format!(
            "{} names no mask token (mask_token_id in dlm_config.json or config.json): it was not converted; use --mode ar, or give --mask-token-id",
            args.model.display()
        ))
    })?;
    let trained = folder.block_size;
    let block_size = args.block_size.or(trained).unwrap_or(32);
    if let Some(trained) = trained.filter(|trained| *trained != block_size) {
        eprintln!(
            "warning: --block-size {block_size}, but the model was trained with blocks of {trained}; expect worse text"
        );
    }
    let threshold = args.threshold.unwrap_or(0.95);
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Error::Usage(format!(
            "--threshold {threshold}: expected a probability, 0 to 1"
        )));
    }
    let usual = if block_size.is_multiple_of(8) { 8 } else { block_size };
    Ok(DecodeOptions::Block(BlockOptions {
        block_size,
        sub_block_size: args.sub_block_size.unwrap_or(usual),
        threshold,
        max_new_tokens: args.max_new_tokens,
        mask_id,
        stop_ids,
        sub_block_cache: args.sub_block_cache,
    }))
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

/// None where nothing was said; empty for `none`.
fn stop_ids(given: &[String]) -> Result<Option<Vec<i64>>> {
    match given {
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

/// Prints one completion; false when nobody reads any more.
fn print(
    completion: &Completion,
    args: &GenerateArgs,
    text: Option<&PromptCodec>,
    seconds: f64,
) -> Result<bool> {
    let generated = completion.generated();
    let decoded = text.map(|text| text.decode(generated)).transpose()?;
    let passes = completion.passes;
    let line = if args.json {
        let object = json!({
            "prompt_ids": completion.ids.get(..completion.prompt),
            "completion_ids": generated,
            "text": decoded,
            "stopped": completion.stopped,
            "passes": {
                "prefill": passes.prefill,
                "block": passes.block,
                "small": passes.small,
                "commit": passes.commit,
                "total": passes.total(),
            },
            "tokens_per_forward": ratio(generated.len(), passes.total()),
            "seconds": seconds,
            "mode": if args.mode == Mode::Block { "block" } else { "ar" },
        });
        object.to_string()
    } else {
        decoded
            .unwrap_or_else(|| generated.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
    };
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("stdout", "writing", error)),
    }
}

fn ratio(tokens: usize, passes: usize) -> f64 {
    tokens as f64 / passes.max(1) as f64
}
