//! Measuring optimizer steps.
//!
//! In: [`TrainBenchOptions`]. Out: [`TrainBenchReport`]: source tokens per second (tokens of packed
//! rows), processed tokens per second (tokens that went through the decoder), MFU over useful FLOPs
//! where the card's peak is known (`train/flops.rs`), memory, and milliseconds by phase. Warm-up
//! steps are not counted. Quote the median: a busy machine distorts the mean.

use std::time::Instant;

use serde::Serialize;

use super::options::{BenchLayout, TrainBenchOptions};
use super::presets;
use super::rows::synthetic_row;
use crate::compute::memory;
use crate::compute::{AttentionChoice, ComputePlan, device};
use crate::config::{Config, Optim};
use crate::diffusion::{
    Batch, DeviceBatch, DocumentMask, Layout, Objective, ObjectiveSpec, PackedRow, PassOptions,
    build_batch, count_targets, noise, objective,
};
use crate::error::{Error, Result};
use crate::io::load_model::{HostModel, LoadedModel};
use crate::kernels::AdamwStep;
use crate::model::lora::ALL_TARGETS;
use crate::model::params::LoraShape;
use crate::model::{Decoder, Gradients, ModelConfig, Params};
use crate::native::{self, KernelMs, Native, NativeOptions};
use crate::optim::{Optimizer, clip};
use crate::report::metrics::resident_mib;
use crate::train::flops;

/// Seed of the random weights.
const WEIGHT_SEED: u64 = 1;
/// Seed of the masks.
const MASK_SEED: u64 = 5;
/// Positions whose logits exist at one time where Burn computes.
const LOSS_CHUNK: usize = 1024;
/// Smallest share of a block that is hidden, as in training.
const NOISE_EPS: f64 = 1e-3;
/// Starting offsets of blocks in a row of the lossless objective.
const BLOCK_OFFSETS: usize = 2;

/// Share of the divergence from the source in the loss, there: as in training.
const DISTILL: f64 = 1.0;

/// Result of a measurement; times are of counted steps only.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TrainBenchReport {
    pub preset: String,
    /// Number of parameters.
    pub params: usize,
    /// Those that are trained.
    pub trained_params: usize,
    pub device: String,
    pub layout: BenchLayout,
    pub dtype: String,
    pub attention: String,
    /// Whether layers ran again in the backward pass.
    pub recompute: bool,
    pub batch: usize,
    pub micro: usize,
    pub seq: usize,
    pub bd_size: usize,
    pub steps: usize,
    /// Source tokens per second over all counted steps.
    pub tokens_per_s: f64,
    /// Source tokens per second of the median step.
    pub tokens_per_s_median: f64,
    pub processed_tokens_per_s: f64,
    /// Processed tokens over the 4 L of the reference layout.
    pub processed_share_of_4l: f64,
    /// At the median rate.
    pub hours_per_billion_tokens: f64,
    pub useful_tflops_per_s: f64,
    /// Share of the card's peak; `None` where the peak is not known.
    pub mfu: Option<f64>,
    pub ms_per_step_median: f64,
    pub ms: PhaseTimes,
    /// Seconds of the first step, which compiles and tunes kernels.
    pub first_step_s: f64,
    /// Loss of the first step, nats.
    pub loss_first: Option<f64>,
    /// Loss of the last step, nats.
    pub loss_last: f64,
    /// Largest resident memory after a step, MiB.
    pub peak_rss_mib: u64,
    /// Memory of the GPU that was taken at the end, GiB (native engine).
    pub gpu_gib: Option<f64>,
    /// Kernels and matrix products per step (native engine).
    pub launches: Option<u64>,
    /// Time of every kernel in one step, the longest first (native engine, where asked for).
    pub kernels: Vec<KernelMs>,
}

/// Median milliseconds by phase of a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PhaseTimes {
    /// Making rows, masks and batches.
    pub data: f64,
    pub forward_backward: f64,
    /// Gradient norm, clipping and update; with the native engine only until the update is queued,
    /// and its time counts with the passes of the next step.
    pub optimizer: f64,
}

/// One step as measured; times in milliseconds.
struct Step {
    data: f64,
    forward_backward: f64,
    optimizer: f64,
    total: f64,
    loss: f64,
    /// Tokens that went through the decoder.
    processed: usize,
    /// Useful floating-point operations.
    flops: f64,
}

struct Bench<'a> {
    options: &'a TrainBenchOptions,
    compute: ComputePlan,
    decoder: Decoder,
    state: TrainingState,
    optim: Optim,
    objective: Objective,
    spec: ObjectiveSpec,
    pass: PassOptions,
    micro: usize,
}

/// Weights and optimizer, with Burn or on the native engine.
enum TrainingState {
    Burn(LoadedModel, Optimizer),
    Native(Native, Decoder),
}

/// Runs the steps and reports.
pub(crate) fn measure(options: &TrainBenchOptions) -> Result<TrainBenchReport> {
    let mut bench = Bench::new(options)?;
    let mut steps = Vec::with_capacity(options.steps);
    let mut launches = None;
    let (mut first, mut peak_rss_mib) = (None, 0);
    for number in 0..options.warmup + options.steps {
        let step = bench.step(number)?;
        if let TrainingState::Native(native, _) = &bench.state {
            launches = Some(native.take_launches());
        }
        peak_rss_mib = peak_rss_mib.max(resident_mib());
        first.get_or_insert((step.loss, step.total / 1e3));
        if number >= options.warmup {
            steps.push(step);
        }
    }
    let mut report = bench.report(&steps, first, peak_rss_mib);
    report.launches = launches;
    if let TrainingState::Native(native, _) = &bench.state {
        report.gpu_gib = Some(native.memory_in_use()? as f64 / f64::from(1 << 30));
    }
    if options.profile {
        report.kernels = bench.profile(options.warmup + options.steps)?;
    }
    Ok(report)
}

impl<'a> Bench<'a> {
    fn new(options: &'a TrainBenchOptions) -> Result<Self> {
        let &TrainBenchOptions { batch, seq, bd_size, steps, .. } = options;
        let compute = ComputePlan::new(device::choose(&options.device)?, Some(options.dtype))
            .with_attention(options.attention)?
            .with_multiple(options.multiple);
        let host = HostModel::new(ModelConfig::from_json(presets::config(&options.preset)?)?);
        let other = match options.attention {
            AttentionChoice::Auto => None,
            _ => Some("it has an attention of its own"),
        };
        let compute = match native::is_chosen(options.engine, &compute, &host.config, other)? {
            true => compute.on_native_engine(),
            false => compute,
        };
        if seq == 0 || bd_size == 0 || seq % bd_size != 0 || batch == 0 || steps == 0 {
            return Err(Error::Usage(
                "--seq must be a multiple of --bd-size; --bd-size, --batch and --steps at least 1"
                    .into(),
            ));
        }
        if options.layout == BenchLayout::Lossless && options.lora_rank.is_none() {
            return Err(Error::Usage(
                "--layout lossless trains adapters alone; give their rank with --lora-rank".into(),
            ));
        }
        // ids, labels and masks of a step are in memory before its first pass
        let bytes = batch.checked_mul(seq).and_then(|tokens| tokens.checked_mul(16));
        if bytes.is_none_or(|bytes| bytes > memory::available_bytes()) {
            return Err(Error::Usage(format!(
                "--batch {batch} rows of --seq {seq} tokens do not fit into memory; expected fewer"
            )));
        }
        let optim = Config::load(None, &[])?.optim;
        let state = training_state(options, &compute, host.clone(), &optim)?;
        let decoder = match &state {
            TrainingState::Burn(model, _) => model.decoder.clone(),
            TrainingState::Native(_, decoder) => decoder.clone(),
        };
        let objective = match options.layout {
            BenchLayout::Saving => Objective::BlockDiffusion(Layout::Saving),
            BenchLayout::Reference => Objective::BlockDiffusion(Layout::Reference),
            BenchLayout::Sft => Objective::Sft,
            BenchLayout::Lossless => {
                Objective::Lossless { layout: Layout::Saving, offsets: BLOCK_OFFSETS, taught: true }
            }
        };
        let spec = ObjectiveSpec {
            bd_size,
            mask_token_id: decoder.cfg.vocab_size as i32 - 1,
            complementary: true,
            document_mask: DocumentMask::Document,
            token_shift: true,
        };
        let pass = PassOptions {
            activation_checkpointing: options.activation_checkpointing,
            loss_chunk: options.loss_chunk.unwrap_or(LOSS_CHUNK),
            distill: DISTILL,
        };
        let micro = options.micro.unwrap_or(batch).clamp(1, batch);
        Ok(Bench { options, compute, decoder, state, optim, objective, spec, pass, micro })
    }

    /// Runs step `number`, from 0.
    fn step(&mut self, number: usize) -> Result<Step> {
        let start = Instant::now();
        let (batches, targets) = self.batches(number);
        let data_done = Instant::now();
        let scale = 1.0 / targets as f64;
        let (passes_done, sum) = match &mut self.state {
            TrainingState::Native(native, _) => {
                native.clear_gradients()?;
                for batch in &batches {
                    native.pass(batch, scale)?;
                }
                let (losses, norm) = native.finish()?;
                let passes_done = Instant::now();
                let (decay, clip) = (self.optim.weight_decay, (1.0 / norm).min(1.0));
                let updates = number as u64 + 1;
                // as in training, the update runs while the next step is prepared; waiting for
                // that step's passes waits for it too
                native.update(AdamwStep::new(&self.optim, decay, 1.0, clip, updates))?;
                (passes_done, losses.sum)
            }
            TrainingState::Burn(model, optimizer) => {
                let wait = || {
                    let failed = |e| Error::Device(format!("waiting for the device failed: {e}"));
                    self.compute.device.device.sync().map_err(failed)
                };
                let mut gradients = Gradients::new(model.weights.0.len());
                let mut sum = 0.0;
                for batch in &batches {
                    let inputs = DeviceBatch::upload(&model.decoder, batch, &self.compute)?;
                    sum += objective::loss_and_gradients(
                        &model.decoder,
                        &model.weights,
                        &inputs,
                        &self.pass,
                        scale,
                        &mut gradients,
                    )?;
                }
                wait()?;
                let passes_done = Instant::now();
                let norm = clip::global_norm(&gradients)?;
                let clip = (1.0 / norm).min(1.0);
                let params = &model.decoder.params;
                optimizer.step(&self.optim, params, &mut model.weights, gradients, 1.0, clip);
                wait()?;
                (passes_done, sum)
            }
        };
        let end = Instant::now();
        let processed = batches.iter().map(|batch| batch.processed).sum();
        let useful = batches.iter().map(|batch| flops::useful(&self.decoder, batch)).sum();
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        Ok(Step {
            data: ms(start, data_done),
            forward_backward: ms(data_done, passes_done),
            optimizer: ms(passes_done, end),
            total: ms(start, end),
            loss: sum / targets as f64,
            processed,
            flops: useful,
        })
    }

    /// The micro-batches of step `number` and their counted targets.
    fn batches(&self, number: usize) -> (Vec<Batch>, usize) {
        let TrainBenchOptions { batch, seq, .. } = *self.options;
        let vocab = self.decoder.cfg.vocab_size;
        let indices = (0..batch).map(|row| (number * batch + row) as u64);
        let rows: Vec<PackedRow> =
            indices.clone().map(|index| synthetic_row(self.options, vocab, index)).collect();
        let masks: Vec<Vec<bool>> = indices
            .map(|row| noise::draw(self.objective, &self.spec, (MASK_SEED, 0, row), seq, NOISE_EPS))
            .collect();
        let of_row = |(row, mask): (&PackedRow, &Vec<bool>)| {
            count_targets(row, &self.spec, self.objective, Some(mask))
        };
        let targets = rows.iter().zip(&masks).map(of_row).sum();
        let shape = self.compute.stream_shape;
        let batches = rows
            .chunks(self.micro)
            .zip(masks.chunks(self.micro))
            .map(|(rows, masks)| build_batch(self.objective, rows, masks, &self.spec, shape))
            .collect();
        (batches, targets)
    }

    /// Times of all kernels in step `number`, which is not counted.
    fn profile(&mut self, number: usize) -> Result<Vec<KernelMs>> {
        if let TrainingState::Native(native, _) = &self.state {
            native.time_kernels(true);
        }
        self.step(number)?;
        let TrainingState::Native(native, _) = &self.state else { return Ok(Vec::new()) };
        native.time_kernels(false);
        let mut kernels = native.take_times()?;
        kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Ok(kernels)
    }

    fn report(
        &self,
        steps: &[Step],
        first: Option<(f64, f64)>,
        peak_rss_mib: u64,
    ) -> TrainBenchReport {
        let options = self.options;
        let count = steps.len() as f64;
        let source = (options.batch * options.seq) as f64;
        let seconds = steps.iter().map(|step| step.total).sum::<f64>() / 1e3;
        let processed = steps.iter().map(|step| step.processed).sum::<usize>() as f64;
        let step_ms = median(steps, |step| step.total);
        let tokens_per_s = source / step_ms * 1e3;
        let flops_per_s =
            steps.iter().map(|step| step.flops).sum::<f64>() / count / (step_ms / 1e3);
        TrainBenchReport {
            preset: options.preset.clone(),
            params: self.decoder.params.numel(),
            trained_params: self.decoder.params.trained_numel(),
            device: self.compute.device.name.clone(),
            layout: options.layout,
            dtype: options.dtype.to_string(),
            attention: self.compute.attention_name(),
            recompute: options.activation_checkpointing,
            batch: options.batch,
            micro: self.micro,
            seq: options.seq,
            bd_size: options.bd_size,
            steps: options.steps,
            tokens_per_s: source * count / seconds,
            tokens_per_s_median: tokens_per_s,
            processed_tokens_per_s: processed / seconds,
            processed_share_of_4l: processed / (4.0 * source * count),
            hours_per_billion_tokens: 1e9 / tokens_per_s / 3600.0,
            useful_tflops_per_s: flops_per_s / 1e12,
            mfu: self.compute.peak_flops.map(|peak| flops_per_s / peak),
            ms_per_step_median: step_ms,
            ms: PhaseTimes {
                data: median(steps, |step| step.data),
                forward_backward: median(steps, |step| step.forward_backward),
                optimizer: median(steps, |step| step.optimizer),
            },
            first_step_s: first.map_or(0.0, |(_, seconds)| seconds),
            loss_first: first.map(|(loss, _)| loss),
            loss_last: steps.last().map_or(0.0, |step| step.loss),
            peak_rss_mib,
            gpu_gib: None,
            launches: None,
            kernels: Vec::new(),
        }
    }
}

/// Random weights and an empty optimizer state where the plan computes.
fn training_state(
    options: &TrainBenchOptions,
    compute: &ComputePlan,
    mut host: HostModel,
    optim: &Optim,
) -> Result<TrainingState> {
    let lora = lora_shape(options, &host.config);
    if !compute.native {
        host.draw_weights(WEIGHT_SEED);
        let device = &compute.device.device;
        let model = match lora {
            None => host.upload(device),
            Some(shape) => {
                let first =
                    |params: &Params, table: &[f32]| Ok(params.first_adapters(table, WEIGHT_SEED));
                host.adapted(shape, first, compute.dtype.burn(), device)?
            }
        };
        let optimizer = Optimizer::new(optim, &model.decoder.params, &compute.device.device);
        return Ok(TrainingState::Burn(model, optimizer));
    }
    let std = host.config.initializer_range as f32;
    let native = NativeOptions {
        activation_checkpointing: options.activation_checkpointing,
        loss_chunk: options.loss_chunk,
        training: true,
        dtype: compute.dtype,
        gpus: 1,
        distill: DISTILL,
    };
    let mut decoder = Decoder::new(host.config);
    if let Some(shape) = lora {
        decoder.params = decoder.params.with_lora(shape)?;
    }
    let mut native = Native::open(compute.cuda_index(), &decoder, native)?;
    native.draw_weights(std, WEIGHT_SEED)?;
    Ok(TrainingState::Native(native, decoder))
}

/// Adapters beside all matrices, where some are asked for.
fn lora_shape(options: &TrainBenchOptions, config: &ModelConfig) -> Option<LoraShape> {
    options.lora_rank.map(|rank| LoraShape {
        rank,
        alpha: 2.0 * rank as f64,
        targets: ALL_TARGETS.to_vec(),
        mask_token_id: config.vocab_size - 1,
        gated: options.layout == BenchLayout::Lossless,
    })
}

fn median(steps: &[Step], value: impl Fn(&Step) -> f64) -> f64 {
    let mut values: Vec<f64> = steps.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
