//! One comparison: the model computes a case, and logits, loss and gradients are compared with the
//! case's.
//!
//! In: a model folder, [`ParityOptions`]. Out: [`ParityReport`]. A case with `mask` checks the
//! block-diffusion objective, a case without it the causal one.

use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::case::{Case, batch_of, drawn, has_offsets, read_case};
use super::differences;
use super::tolerances::{RoundingEffect, ToleranceOptions, Tolerances};
use crate::compute::tensor_io::download;
use crate::compute::{AttentionChoice, ComputeDtype, ComputePlan, EngineChoice, device};
use crate::diffusion::{
    Batch, DeviceBatch, DocumentMask, Layout, Objective, ObjectiveSpec, PackedRow, PassOptions,
    count_targets, objective,
};
use crate::error::{Error, Result};
use crate::io::adapter::Adapter;
use crate::io::conversion_record::ConversionRecord;
use crate::io::load_model::{self, HostModel, LoadOptions, LoadedModel, load_model};
use crate::model::{Decoder, Gradients, ModelConfig};
use crate::native::{self, Native, NativeOptions};

/// Longest block of a case.
const MOST_BLOCK_SIZE: usize = 1 << 16;

/// What a comparison computes and how.
///
/// ```
/// use dlm_train::{Layout, ParityOptions};
///
/// let options = ParityOptions { bd_size: 8, ..ParityOptions::new("case.safetensors") };
/// assert_eq!(options.layout, Layout::Saving);
/// ```
#[derive(Clone, Debug)]
pub struct ParityOptions {
    /// Case file, safetensors: `input_ids` `[rows, len]`, and any of `labels`, `attention_mask`,
    /// `mask`, `doc_ids`, `position_ids` of the same shape, `logits` `[rows, len, vocab]` and
    /// `loss` `[1]`.
    pub case: PathBuf,
    /// Folder of a `peft` adapter (LoRA) beside the model: gradients are those of its tensors.
    /// Default: none.
    pub adapter: Option<PathBuf>,
    /// Expected gradients by parameter name, safetensors, of all parameters or of some. Default:
    /// gradients are not compared.
    pub grads: Option<PathBuf>,
    /// Tokens per block in cases with a mask. Default: 32.
    pub bd_size: usize,
    /// Id of the mask token. Default: that of `config.json`, else the last id of the vocabulary.
    pub mask_token_id: Option<i32>,
    /// Whether the logits at position i-1 predict token i, in cases with a mask; else those at
    /// position i. Default: as the model folder says, else true.
    pub token_shift: Option<bool>,
    /// Stream layout in cases with a mask. Default: [`Layout::Saving`].
    pub layout: Layout,
    /// Device: `auto`, `cpu`, `cuda[:N]` or `wgpu`. Default: `auto`.
    pub device: String,
    /// Dtype of activations and matrix products. Default: fp32.
    pub dtype: ComputeDtype,
    /// Attention implementation. Default: the fastest that device and dtype support.
    pub attention: AttentionChoice,
    /// What computes. Default: the native engine where it can be used.
    pub engine: EngineChoice,
    /// Quantise linear layers online (BitLinear) whatever `config.json` says. Default: false.
    pub bitlinear: bool,
    /// Run each layer again in the backward pass. Default: false.
    pub activation_checkpointing: bool,
    /// Positions whose logits exist at one time. Default: 1024.
    pub loss_chunk: usize,
    /// Allowed differences.
    pub tolerances: ToleranceOptions,
    /// Write the computed logits, `logits` `[rows, len, vocab]` in fp32, to this safetensors file.
    /// Default: they are not written.
    pub dump_logits: Option<PathBuf>,
}

impl ParityOptions {
    /// The default comparison with a case file.
    pub fn new(case: impl Into<PathBuf>) -> Self {
        ParityOptions {
            case: case.into(),
            adapter: None,
            grads: None,
            bd_size: 32,
            mask_token_id: None,
            token_shift: None,
            layout: Layout::Saving,
            device: "auto".into(),
            dtype: ComputeDtype::Fp32,
            attention: AttentionChoice::Auto,
            engine: EngineChoice::Auto,
            bitlinear: false,
            activation_checkpointing: false,
            loss_chunk: 1024,
            tolerances: ToleranceOptions::default(),
            dump_logits: None,
        }
    }
}

/// Differences of one comparison; `None` where the case has no expected value.
///
/// ```no_run
/// use dlm_train::{ParityOptions, ValidationReport, validate};
///
/// let report = validate("models/qwen2", ParityOptions::new("case.safetensors"))?;
/// if let ValidationReport::Parity(report) = report {
///     println!("worst gradient: {:?}", report.worst_grad);
/// }
/// # Ok::<(), dlm_train::Error>(())
/// ```
#[derive(Debug, Default, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct ParityReport {
    /// Largest absolute difference of logits over compared positions.
    pub logits_max_abs: Option<f64>,
    /// Absolute difference of the loss, nats.
    pub loss_abs: Option<f64>,
    /// Largest difference of a gradient's entry, relative to the tensor's largest entry.
    pub grads_max_rel: Option<f64>,
    /// Whether every difference is within tolerance.
    pub ok: bool,
    /// The computed loss, nats per counted token.
    pub loss: Option<f64>,
    /// Absolute difference of logits at the requested quantile of positions.
    pub logits_at_quantile: Option<f64>,
    /// Largest relative L2 difference of a gradient.
    pub grads_max_l2: Option<f64>,
    /// The parameter whose gradient differs most.
    pub worst_grad: Option<String>,
    /// Parameters whose gradient was compared: those that the file of gradients holds.
    pub grads_compared: Option<usize>,
    /// Trained parameters of the model: all, or those of its adapter.
    pub parameters: usize,
    /// Tokens that went through the decoder.
    pub processed_tokens: usize,
    /// The tolerances that were used.
    pub tolerances: Tolerances,
    /// Difference of the loss, relative to the expected loss or to one nat, whichever is larger.
    pub loss_rel: Option<f64>,
}

/// Compares a model (folder, `hf://ORG/NAME[@REVISION]` or `ORG/NAME`) with a case.
pub(crate) fn compare(model: &Path, options: &ParityOptions) -> Result<ParityReport> {
    if !(1..=MOST_BLOCK_SIZE).contains(&options.bd_size) {
        return Err(Error::Usage(format!(
            "blocks of {} tokens (--bd-size): expected 1 to {MOST_BLOCK_SIZE}",
            options.bd_size
        )));
    }
    let folder = load_model::resolve(model)?;
    let mut limits = options.tolerances;
    let (mut report, ternary) = measure(&folder, options, options.dtype, false)?;
    if ternary && options.dtype == ComputeDtype::Fp32 {
        limits = limits.for_bitlinear();
    }
    report.tolerances = match options.dtype {
        ComputeDtype::Fp32 => Tolerances::fp32(&limits),
        ComputeDtype::Bf16 => {
            let (rounded, ternary) = measure(&folder, options, ComputeDtype::Fp32, true)?;
            let effect = RoundingEffect {
                logits: rounded.logits_at_quantile.unwrap_or(0.0),
                grads_l2: rounded.grads_max_l2.unwrap_or(0.0),
                ternary,
            };
            Tolerances::bf16(effect, &limits)
        }
    };
    report.ok = within_tolerance(&report, &limits);
    Ok(report)
}

fn within_tolerance(report: &ParityReport, limits: &ToleranceOptions) -> bool {
    let allowed = &report.tolerances;
    let grads = if allowed.grads_l2 { report.grads_max_l2 } else { report.grads_max_rel };
    let within = |difference: Option<f64>, limit: f64| difference.is_none_or(|d| d <= limit);
    within(report.logits_at_quantile, allowed.logits)
        && (limits.logits_quantile >= 1.0 || within(report.logits_max_abs, limits.logits_worst))
        && within(report.loss_rel, allowed.loss)
        && within(grads, allowed.grads)
}

/// The differences of a computation in `dtype`, with `rounded` from weights rounded to bf16, and
/// whether the model has BitLinear layers.
fn measure(
    folder: &Path,
    options: &ParityOptions,
    dtype: ComputeDtype,
    rounded: bool,
) -> Result<(ParityReport, bool)> {
    let compute = compute_plan(folder, options, dtype, rounded)?;
    let load = LoadOptions { round_to_bf16: rounded, force_bitlinear: options.bitlinear };
    let device = &compute.device.device;
    let model = match &options.adapter {
        None => load_model(folder, load, device)?,
        Some(adapter) => {
            let host = HostModel::read_as(folder, load)?;
            let mask = options.mask_token_id.map(i64::from);
            let gated = has_offsets(&options.case)?;
            Adapter::read(adapter)?.attach(host, mask, gated, dtype.burn(), device)?
        }
    };
    let config = &model.decoder.cfg;
    let case = read_case(&options.case, config.vocab_size)?;
    let mask_token_id = options
        .mask_token_id
        .or(config.mask_token_id.map(|id| id as i32))
        .unwrap_or(config.vocab_size as i32 - 1);
    let spec = ObjectiveSpec {
        bd_size: options.bd_size.max(1),
        mask_token_id,
        complementary: true,
        document_mask: DocumentMask::Document,
        token_shift: match options.token_shift {
            Some(shift) => shift,
            None => ConversionRecord::read(folder, config)?.has_token_shift(),
        },
    };
    let objective = match (&case.offsets, &case.mask) {
        (Some(offsets), _) => Objective::Lossless {
            layout: options.layout,
            offsets: offsets.len(),
            taught: case.distill > 0.0,
        },
        (None, Some(_)) => Objective::BlockDiffusion(options.layout),
        (None, None) => Objective::Sft,
    };
    let drawn = drawn(&case, &spec);
    let batch = batch_of(&case, &drawn, objective, &spec, &compute);
    let mut model = Computed::new(model, &batch, &compute, (options, case.distill))?;
    let mut report = ParityReport {
        processed_tokens: batch.processed,
        parameters: model.decoder().params.trained_specs().len(),
        ..ParityReport::default()
    };
    // The streams of other layouts have no fixed place for a position's logits.
    let has_places = match objective {
        Objective::BlockDiffusion(layout) => layout == Layout::Reference,
        Objective::Sft => true,
        Objective::Lossless { .. } => false,
    };
    if has_places {
        let dump = options.dump_logits.as_deref().filter(|_| !rounded);
        compare_logits(&mut model, &batch, &case, options, dump, &mut report)?;
    }
    let of_row =
        |(row, drawn): (&PackedRow, &Vec<bool>)| count_targets(row, &spec, objective, Some(drawn));
    let targets: usize = case.packed.iter().zip(&drawn).map(of_row).sum();
    if case.labelled && targets > 0 {
        compare_loss(&mut model, &batch, targets, &case, options, &mut report)?;
    }
    let ternary = model.decoder().cfg.quantization.is_some();
    Ok((report, ternary))
}

/// Where a comparison computes; the effect of rounding, which only sets tolerances, is computed on
/// the CPU where the native engine computes the rest.
fn compute_plan(
    folder: &Path,
    options: &ParityOptions,
    dtype: ComputeDtype,
    rounded: bool,
) -> Result<ComputePlan> {
    let config = ModelConfig::read(folder)?;
    let other = match options.attention {
        AttentionChoice::Auto => None,
        _ => Some("it has an attention of its own"),
    };
    let plan = |device, dtype| -> Result<ComputePlan> {
        let plan = ComputePlan::new(device, Some(dtype)).with_attention(options.attention)?;
        Ok(plan.with_multiple(1))
    };
    let asked = plan(device::choose(&options.device)?, options.dtype)?;
    if !native::is_chosen(options.engine, &asked, &config, other)? {
        return plan(asked.device, dtype);
    }
    if rounded { plan(device::cpu(), dtype) } else { Ok(asked.on_native_engine()) }
}

/// A model with what computes it.
enum Computed {
    Burn { model: LoadedModel, inputs: DeviceBatch, pass: PassOptions },
    Native { model: LoadedModel, native: Native },
}

impl Computed {
    fn new(
        model: LoadedModel,
        batch: &Batch,
        compute: &ComputePlan,
        (options, distill): (&ParityOptions, f64),
    ) -> Result<Self> {
        let pass = PassOptions {
            activation_checkpointing: options.activation_checkpointing,
            loss_chunk: options.loss_chunk,
            distill,
        };
        if !compute.native {
            let inputs = DeviceBatch::upload(&model.decoder, batch, compute)?;
            return Ok(Computed::Burn { model, inputs, pass });
        }
        let native = NativeOptions {
            activation_checkpointing: options.activation_checkpointing,
            loss_chunk: Some(options.loss_chunk),
            training: true,
            dtype: compute.dtype,
            gpus: 1,
            distill,
        };
        let mut native = Native::open(compute.cuda_index(), &model.decoder, native)?;
        native.set_weights(&model.weights)?;
        Ok(Computed::Native { model, native })
    }

    fn decoder(&self) -> &Decoder {
        match self {
            Computed::Burn { model, .. } | Computed::Native { model, .. } => &model.decoder,
        }
    }

    /// Logits of every stream position.
    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        match self {
            Computed::Burn { model, inputs, .. } => {
                download(&objective::all_logits(&model.decoder, &model.weights, inputs))
            }
            Computed::Native { native, .. } => native.logits(batch),
        }
    }

    fn loss_sum(&mut self, batch: &Batch) -> Result<f64> {
        match self {
            Computed::Burn { model, inputs, pass } => {
                objective::loss_sum(&model.decoder, &model.weights, inputs, pass)
            }
            Computed::Native { native, .. } => native.loss_sum(batch),
        }
    }

    /// The sum of the losses, and `scale` times its gradients.
    fn loss_and_gradients(&mut self, batch: &Batch, scale: f64) -> Result<(f64, Gradients)> {
        match self {
            Computed::Burn { model, inputs, pass } => {
                let LoadedModel { decoder, weights } = model;
                let mut gradients = Gradients::new(weights.0.len());
                let sum = objective::loss_and_gradients(
                    decoder,
                    weights,
                    inputs,
                    pass,
                    scale,
                    &mut gradients,
                )?;
                Ok((sum, gradients))
            }
            Computed::Native { native, .. } => {
                native.clear_gradients()?;
                native.pass(batch, scale)?;
                let (losses, _) = native.finish()?;
                Ok((losses.sum, native.gradients()?))
            }
        }
    }
}

/// Compares logits at every position of a causal case, or of the noised half of both views in the
/// reference layout.
fn compare_logits(
    model: &mut Computed,
    batch: &Batch,
    case: &Case,
    options: &ParityOptions,
    dump: Option<&Path>,
    report: &mut ParityReport,
) -> Result<()> {
    if case.logits.is_none() && options.dump_logits.is_none() {
        return Ok(());
    }
    let vocab = model.decoder().cfg.vocab_size;
    let streams = model.logits(batch)?;
    // each stream has `batch.len` positions, of which the first `case.len` are compared
    let logits: Vec<f32> = streams
        .chunks(batch.len * vocab)
        .flat_map(|stream| stream[..case.len * vocab].iter().copied())
        .collect();
    if let Some(path) = dump {
        write_logits(path, &logits, [batch.rows, case.len, vocab])?;
    }
    let Some(expected) = &case.logits else { return Ok(()) };
    if expected.len() != logits.len() {
        return Err(Error::format(
            &options.case,
            format!("logits have {} values, expected {}", expected.len(), logits.len()),
        ));
    }
    let compared = |position: usize| case.valid[position % (case.rows * case.len)];
    let ternary = model.decoder().cfg.quantization.is_some();
    let quantile = match options.dtype {
        ComputeDtype::Fp32 if ternary => options.tolerances.for_bitlinear().logits_quantile,
        _ => options.tolerances.logits_quantile,
    };
    let differences = differences::logits(&logits, expected, vocab, compared, quantile);
    report.logits_max_abs = Some(differences.worst);
    report.logits_at_quantile = Some(differences.at_quantile);
    Ok(())
}

/// Compares the mean loss over `targets` tokens and, where they are expected, the gradients.
fn compare_loss(
    model: &mut Computed,
    batch: &Batch,
    targets: usize,
    case: &Case,
    options: &ParityOptions,
    report: &mut ParityReport,
) -> Result<()> {
    let sum = match &options.grads {
        None => model.loss_sum(batch)?,
        Some(file) => {
            let (sum, gradients) = model.loss_and_gradients(batch, 1.0 / targets as f64)?;
            let differences = differences::gradients(file, model.decoder(), &gradients)?;
            report.grads_max_rel = Some(differences.max_rel);
            report.grads_max_l2 = Some(differences.max_l2);
            report.worst_grad = differences.worst;
            report.grads_compared = Some(differences.compared);
            sum
        }
    };
    let loss = sum / targets as f64;
    report.loss = Some(loss);
    if let Some(expected) = case.loss {
        let difference = (loss - expected).abs();
        report.loss_abs = Some(difference);
        // below one nat the absolute difference counts: that is how log-probabilities are rounded
        report.loss_rel = Some(difference / expected.abs().max(1.0));
    }
    Ok(())
}

fn write_logits(path: &Path, values: &[f32], shape: [usize; 3]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), &bytes)
        .map_err(|e| Error::format(path, e.to_string()))?;
    safetensors::serialize_to_file([("logits", view)], None, path)
        .map_err(|e| Error::format(path, format!("writing logits failed: {e}")))
}
