//! `dlm-train parity`: this implementation against tensors made elsewhere.
//!
//! In: a model folder and a case file (safetensors) with `input_ids`, `labels`, optional
//! `attention_mask`, `mask`, `doc_ids`, `position_ids`, and expected `logits` and/or `loss`;
//! optionally a file of gradients by parameter name. Out: the largest differences, as text or JSON;
//! exit 1 when out of tolerance. With `mask` the block-diffusion objective is checked, without it
//! the causal one.
//!
//! In bf16 the tolerances are not constants: the same case is run in fp32 with its weights rounded
//! to bf16, which no bf16 computation can do without, and logits and gradients may be off by
//! [`BF16_FACTOR`] times what that costs (docs/objective.md, "Precision").

use std::path::{Path, PathBuf};

use clap::Args;
use safetensors::{Dtype, SafeTensors};

use crate::compute::tensor_io::{decode_floats, download};
use crate::compute::{AttentionChoice, ComputeDtype, ComputePlan, StreamShape, device};
use crate::diffusion::{
    DeviceBatch, DocumentMask, Layout, Objective, ObjectiveSpec, PassOptions, build_batch,
    count_targets, objective,
};
use crate::error::{Error, Result};
use crate::kernels::cast::to_f32;
use crate::model::config::Quantization;
use crate::model::{Decoder, Gradients, ModelConfig, ParamKind, load};
use crate::parity::case::read_case;

/// A layer rounds its weights once and its activations about twice as often, independently: `sqrt(1
/// + 2) = 1.7` times the error of rounding weights alone, a little more where the largest of many
/// errors is compared. Measured on the fixtures: 1.4 to 2.6.
const BF16_FACTOR: f64 = 3.0;
/// With BitLinear rounded weights change ternary values, which bf16 computation does not: its
/// masters are fp32.
const BF16_FACTOR_TERNARY: f64 = 1.0;
/// Relative bound on a loss in bf16: [`BF16_FACTOR`] times the largest effect that rounded weights
/// have on a fixture's loss (6.7e-4). A loss is a mean, in which errors cancel by chance; one
/// case's own effect says nothing.
const BF16_LOSS: f64 = 2e-3;
/// The same with BitLinear: what the fixtures' README allows any disturbance of a quantised model.
const BF16_LOSS_TERNARY: f64 = 5e-3;

/// Options of `dlm-train parity`.
#[derive(Args, Debug)]
pub struct ParityArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Case file (safetensors).
    #[arg(long)]
    pub case: PathBuf,
    /// Expected gradients by parameter name (safetensors).
    #[arg(long)]
    pub grads: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Tokens per block, for cases with a mask.
    #[arg(long, default_value_t = 32)]
    pub bd_size: usize,
    /// Id of the mask token; default: what config.json says, else the last id of the vocabulary.
    #[arg(long)]
    pub mask_token_id: Option<i32>,
    /// Stream layout for cases with a mask.
    #[arg(long, default_value = "saving", value_parser = ["reference", "saving"])]
    pub layout: String,
    /// Compute dtype.
    #[arg(long, default_value = "fp32")]
    pub dtype: ComputeDtype,
    /// auto, cpu, cuda[:N], wgpu.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Attention: dense (materialised scores, a mask), ranges (materialised scores, key ranges),
    /// tiles (CPU, fp32) or auto.
    #[arg(long, default_value = "auto")]
    pub attention: AttentionChoice,
    /// Quantise linears online (BitNet) whatever config.json says.
    #[arg(long)]
    pub bitlinear: bool,
    /// Run each layer again in the backward pass.
    #[arg(long)]
    pub recompute: bool,
    /// Logits rows per chunk.
    #[arg(long, default_value_t = 1024)]
    pub loss_chunk: usize,
    /// Largest absolute difference of logits [default: 2e-4; in bf16 3 times what rounding the
    /// weights costs].
    #[arg(long)]
    pub tol_logits: Option<f64>,
    /// Largest relative difference of the loss [default: 2e-5; in bf16 2e-3, with BitLinear 5e-3].
    #[arg(long)]
    pub tol_loss: Option<f64>,
    /// Largest difference of a gradient over the tensor's own largest entry [default: 1e-4; in bf16
    /// relative L2, 3 times what rounding the weights costs].
    #[arg(long)]
    pub tol_grads: Option<f64>,
    /// Which share of positions must be within --tol-logits; 1 = all. Quantised models round
    /// chaotically: use 0.25.
    #[arg(long, default_value_t = 1.0)]
    pub logits_quantile: f64,
    /// With --logits-quantile below 1: no position may be off by more than this.
    #[arg(long, default_value_t = 0.5)]
    pub tol_logits_worst: f64,
    /// Compare gradients by relative L2 norm per tensor instead of by the largest entry.
    #[arg(long)]
    pub grads_l2: bool,
    /// Write the logits of every position to this file (safetensors, `logits` [rows, len, vocab]).
    #[arg(long)]
    pub dump_logits: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// Largest absolute difference of logits over counted positions.
    pub logits_max_abs: Option<f64>,
    /// Difference of the loss.
    pub loss_abs: Option<f64>,
    /// Over tensors: largest difference over the tensor's own largest entry.
    pub grads_max_rel: Option<f64>,
    /// Within tolerance.
    pub ok: bool,
    /// Our loss.
    pub loss: Option<f64>,
    /// The logits difference at the asked quantile of positions.
    pub logits_at_quantile: Option<f64>,
    /// Over tensors: largest relative L2 difference.
    pub grads_max_l2: Option<f64>,
    /// The tensor with the worst gradient.
    pub worst_grad: Option<String>,
    /// Tokens the decoder ran on.
    pub processed_tokens: usize,
    /// What was allowed.
    pub tolerances: Tolerances,
    /// Relative difference of the loss.
    pub loss_rel: Option<f64>,
    #[serde(skip)]
    ternary: bool,
}

/// What may differ by how much.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
pub struct Tolerances {
    /// Logits, absolute.
    pub logits: f64,
    /// Loss, relative.
    pub loss: f64,
    /// Gradients, relative.
    pub grads: f64,
    /// Gradients by relative L2 norm instead of by the largest entry.
    pub grads_l2: bool,
}

/// Run and print; `Ok(false)` means out of tolerance.
pub fn run(args: &ParityArgs) -> Result<bool> {
    let report = check(args)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|e| Error::Usage(e.to_string()))?);
    } else {
        let show = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.3e}"));
        let t = &report.tolerances;
        println!(
            "logits {} (tolerance {:.1e}) | loss {} (relative {:.1e}) | gradients {} ({} {:.1e}, worst {}) | {}",
            show(report.logits_at_quantile),
            t.logits,
            show(report.loss_rel),
            t.loss,
            show(if t.grads_l2 { report.grads_max_l2 } else { report.grads_max_rel }),
            if t.grads_l2 { "relative L2" } else { "relative" },
            t.grads,
            report.worst_grad.as_deref().unwrap_or("-"),
            if report.ok { "ok" } else { "OUT OF TOLERANCE" },
        );
    }
    Ok(report.ok)
}

/// Compute the differences and hold them against the tolerances.
pub fn check(args: &ParityArgs) -> Result<Report> {
    let mut report = measure(args, args.dtype, false)?;
    let usual = if args.dtype == ComputeDtype::Fp32 {
        Tolerances { logits: 2e-4, loss: 2e-5, grads: 1e-4, grads_l2: args.grads_l2 }
    } else {
        let rounded = measure(args, ComputeDtype::Fp32, true)?;
        let (factor, loss) = if rounded.ternary {
            (BF16_FACTOR_TERNARY, BF16_LOSS_TERNARY)
        } else {
            (BF16_FACTOR, BF16_LOSS)
        };
        let of = |v: Option<f64>| factor * v.unwrap_or(0.0);
        Tolerances {
            logits: of(rounded.logits_at_quantile),
            loss,
            grads: of(rounded.grads_max_l2),
            grads_l2: true,
        }
    };
    let t = Tolerances {
        logits: args.tol_logits.unwrap_or(usual.logits),
        loss: args.tol_loss.unwrap_or(usual.loss),
        grads: args.tol_grads.unwrap_or(usual.grads),
        grads_l2: usual.grads_l2,
    };
    let within = |found: Option<f64>, allowed: f64| found.is_none_or(|f| f <= allowed);
    report.ok = within(report.logits_at_quantile, t.logits)
        && (args.logits_quantile >= 1.0 || within(report.logits_max_abs, args.tol_logits_worst))
        && within(report.loss_rel, t.loss)
        && within(if t.grads_l2 { report.grads_max_l2 } else { report.grads_max_rel }, t.grads);
    report.tolerances = t;
    Ok(report)
}

/// The differences, computed in `dtype`; with `rounded` from weights that went through bf16.
fn measure(args: &ParityArgs, dtype: ComputeDtype, rounded: bool) -> Result<Report> {
    let compute = ComputePlan::new(device::choose(&args.device)?, Some(dtype))
        .with_attention(args.attention)?
        .with_multiple(1);
    let device = &compute.device.device;
    let folder = crate::io::source::folder_of(&args.model)?;
    let mut cfg = ModelConfig::read(&folder)?;
    let params = crate::model::Params::new(&cfg);
    let mut host = load::read_host(&folder, &mut cfg, &params)?;
    if rounded {
        let products = params
            .specs
            .iter()
            .zip(&mut host)
            .filter(|(s, _)| matches!(s.kind, ParamKind::Matrix | ParamKind::Embedding));
        products
            .flat_map(|(_, values)| values)
            .for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    }
    if args.bitlinear {
        cfg.quantization = Some(Quantization::Online);
    }
    let mask_token_id = args
        .mask_token_id
        .or(cfg.mask_token_id.map(|m| m as i32))
        .unwrap_or(cfg.vocab_size as i32 - 1);
    let decoder = Decoder::new(cfg);
    let w = load::upload(host, &decoder.params, device);
    let case = read_case(&args.case, decoder.cfg.vocab_size)?;

    let layout = if args.layout == "reference" { Layout::Reference } else { Layout::Saving };
    let objective =
        if case.mask.is_some() { Objective::BlockDiffusion(layout) } else { Objective::Sft };
    let spec = ObjectiveSpec {
        bd_size: args.bd_size.max(1),
        mask_token_id,
        complementary: true,
        document_mask: DocumentMask::Document,
    };
    let hidden: Vec<Vec<bool>> = match &case.mask {
        Some(m) => m.chunks(case.len).map(<[bool]>::to_vec).collect(),
        None => vec![Vec::new(); case.rows],
    };
    let opts =
        PassOptions { activation_checkpointing: args.recompute, loss_chunk: args.loss_chunk };
    let shape = match case.mask {
        Some(_) => compute.stream_shape,
        None => StreamShape::Rectangular { multiple: 1 },
    };
    let batch = build_batch(objective, &case.packed, &hidden, &spec, shape);
    let inputs = DeviceBatch::upload(&decoder, &batch, &compute)?;
    let count: usize = case.packed.iter().map(|r| count_targets(r, &spec, objective, None)).sum();
    let ternary = decoder.cfg.quantization.is_some();
    let mut report = Report { processed_tokens: batch.processed, ternary, ..Report::default() };

    // Logits: every position of the causal case; the noised half of both views in the reference
    // layout.
    let comparable = case.mask.is_none() || layout == Layout::Reference;
    if (case.logits.is_some() || args.dump_logits.is_some()) && comparable {
        let v = decoder.cfg.vocab_size;
        let ours = download(&objective::all_logits(&decoder, &w, &inputs))?;
        // stream rows are `batch.len` long; the first `case.len` entries are the ones to compare
        let ours: Vec<f32> =
            ours.chunks(batch.len * v).flat_map(|r| r[..case.len * v].iter().copied()).collect();
        if let Some(path) = args.dump_logits.as_ref().filter(|_| !rounded) {
            dump(path, &ours, [batch.rows, case.len, v])?;
        }
        if let Some(expected) = &case.logits {
            if expected.len() != ours.len() {
                return Err(Error::format(
                    &args.case,
                    format!("logits have {} values, expected {}", expected.len(), ours.len()),
                ));
            }
            let mut per_position: Vec<f64> = ours
                .chunks(v)
                .zip(expected.chunks(v))
                .enumerate()
                .filter(|(t, _)| case.valid[t % (case.rows * case.len)])
                .map(|(_, (a, b))| {
                    a.iter().zip(b).map(|(x, y)| f64::from((x - y).abs())).fold(0.0, nan_max)
                })
                .collect();
            per_position.sort_by(f64::total_cmp);
            let worst = per_position.last().copied().unwrap_or(0.0);
            let rank = ((per_position.len() as f64 * args.logits_quantile.clamp(0.0, 1.0)).ceil()
                as usize)
                .clamp(1, per_position.len().max(1));
            let at = per_position.get(rank - 1).copied().unwrap_or(0.0);
            report.logits_max_abs = Some(worst);
            report.logits_at_quantile = Some(at);
        }
    }
    if case.labelled && count > 0 {
        let mut grads = Gradients::new(w.0.len());
        let sum = if args.grads.is_some() {
            objective::loss_and_gradients(
                &decoder,
                &w,
                &inputs,
                &opts,
                1.0 / count as f64,
                &mut grads,
            )?
        } else {
            objective::loss_sum(&decoder, &w, &inputs, &opts)?
        };
        let loss = sum / count as f64;
        report.loss = Some(loss);
        if let Some(expected) = case.loss {
            let diff = (loss - expected).abs();
            report.loss_abs = Some(diff);
            report.loss_rel = Some(diff / expected.abs().max(1e-12));
        }
        if let Some(path) = &args.grads {
            compare_gradients(path, &decoder, &grads, &mut report)?;
        }
    }
    Ok(report)
}

fn nan_max(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

fn compare_gradients(
    path: &Path,
    decoder: &Decoder,
    grads: &Gradients,
    report: &mut Report,
) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the gradients", e))?;
    let st = SafeTensors::deserialize(&bytes).map_err(|e| Error::format(path, e.to_string()))?;
    let (mut worst, mut worst_l2) = (0f64, 0f64);
    for (spec, g) in decoder.params.specs.iter().zip(&grads.0) {
        let view = st
            .tensor(&spec.name)
            .map_err(|_| Error::format(path, format!("no gradient named {}", spec.name)))?;
        let expected = decode_floats(view.dtype(), view.data()).ok_or_else(|| {
            Error::format(path, format!("{} is {:?}; expected floats", spec.name, view.dtype()))
        })?;
        let ours = match g {
            Some(g) => download(&to_f32(g.clone()))?,
            None => vec![0.0; spec.numel()],
        };
        if ours.len() != expected.len() {
            return Err(Error::format(
                path,
                format!("{} has {} values, expected {}", spec.name, expected.len(), ours.len()),
            ));
        }
        let largest = expected.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
        let diff =
            ours.iter().zip(&expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, nan_max);
        // "within 1e-4 of its own largest entry (plus 1e-6)"
        let rel = (diff - 1e-6).max(0.0) / largest.max(1e-30);
        let sq = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
        let l2 = sq(&mut ours.iter().zip(&expected).map(|(a, b)| f64::from(a - b)))
            / sq(&mut expected.iter().map(|v| f64::from(*v))).max(1e-30);
        worst_l2 = nan_max(worst_l2, l2);
        if rel >= worst {
            worst = rel;
            report.worst_grad = Some(spec.name.clone());
        }
    }
    report.grads_max_rel = Some(worst);
    report.grads_max_l2 = Some(worst_l2);
    Ok(())
}

fn dump(path: &Path, values: &[f32], shape: [usize; 3]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), &bytes)
        .map_err(|e| Error::format(path, e.to_string()))?;
    safetensors::serialize_to_file([("logits", view)], None, path)
        .map_err(|e| Error::format(path, format!("writing logits failed: {e}")))
}
