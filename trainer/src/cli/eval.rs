//! `dlm-train eval --model DIR --data DIR`: mean loss of a model folder on a packed dataset, under
//! fixed masks.
//!
//! Out: the block-diffusion loss and the causal loss, each the mean over counted tokens, in nats.

use std::path::PathBuf;

use burn::tensor::DType;
use clap::Args;
use dlm_datasets::Split;
use serde_json::json;

use crate::compute::device;
use crate::diffusion::{
    Attention, DocumentMask, Layout, Objective, ObjectiveSpec, PassOptions, StreamShape,
};
use crate::error::{Error, Result};
use crate::io::source;
use crate::model::{Decoder, ModelConfig, Params, load};
use crate::train::data::BatchPlan;
use crate::train::evaluate::evaluate;

/// Options of `dlm-train eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Packed dataset.
    #[arg(long)]
    pub data: PathBuf,
    /// train or eval; default: eval where the dataset has one.
    #[arg(long, value_parser = ["train", "eval"])]
    pub split: Option<String>,
    /// Rows at most.
    #[arg(long)]
    pub rows: Option<usize>,
    /// Rows a forward pass.
    #[arg(long, default_value_t = 8)]
    pub micro_rows: usize,
    /// Seed of the masks.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// fp32 or bf16.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub dtype: String,
    /// auto, cpu, cuda[:N].
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Run.
pub fn run(args: &EvalArgs) -> Result<bool> {
    let chosen = device::choose(&args.device)?;
    let data = crate::train::data::open(&args.data)?;
    let m = data.manifest();
    let split = match args.split.as_deref() {
        Some("train") => Split::Train,
        Some(_) => Split::Eval,
        None if data.rows(Split::Eval) > 0 => Split::Eval,
        None => Split::Train,
    };
    let rows = data.rows(split).min(args.rows.unwrap_or(usize::MAX));
    if rows == 0 {
        return Err(Error::Usage(format!(
            "{} has no {} rows; prepare it with --eval-fraction or use --split train",
            args.data.display(),
            split.name()
        )));
    }
    let folder = source::folder_of(&args.model)?;
    let mut cfg = ModelConfig::read(&folder)?;
    let params = Params::new(&cfg);
    let host = load::read_host(&folder, &mut cfg, &params)?;
    if m.mask_token_id as usize >= cfg.vocab_size {
        return Err(Error::Mismatch(format!(
            "the dataset's mask id {} has no row in {} (vocabulary {}); evaluate a converted model, or prepare the data with its tokenizer",
            m.mask_token_id,
            args.model.display(),
            cfg.vocab_size
        )));
    }
    let decoder = Decoder::new(cfg);
    let w = load::upload(host, &decoder.params, &chosen.device);
    let dtype = if args.dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let attention = Attention::best(&chosen.device, dtype);
    let pass = PassOptions { dtype, attention, recompute: false, loss_chunk: 1024 };
    let mut losses = Vec::new();
    for objective in [Objective::BlockDiffusion(Layout::Saving), Objective::Sft] {
        let plan = BatchPlan {
            seed: args.seed,
            batch_rows: args.micro_rows,
            micro_batch_rows: args.micro_rows.max(1),
            objective,
            spec: ObjectiveSpec {
                bd_size: m.bd_size,
                mask_token_id: m.mask_token_id,
                complementary: true,
                document_mask: DocumentMask::Document,
            },
            noise_eps: 1e-3,
            shape: if attention == Attention::Tiles {
                StreamShape::Flat
            } else {
                StreamShape::Rectangular { multiple: 32 }
            },
            vocab_size: decoder.cfg.vocab_size,
        };
        losses.push(evaluate(&decoder, &w, &data, split, &plan, &pass, &chosen, rows)?);
    }
    if args.json {
        println!(
            "{}",
            json!({"split": split.name(), "rows": rows, "block_diffusion_loss": losses[0], "causal_loss": losses[1]})
        );
    } else {
        let show =
            |l: Option<f64>| l.map_or("no counted tokens".into(), |l| format!("{l:.4} nats"));
        println!(
            "{} rows of {}: block diffusion {}, causal {}",
            rows,
            split.name(),
            show(losses[0]),
            show(losses[1])
        );
    }
    Ok(true)
}
