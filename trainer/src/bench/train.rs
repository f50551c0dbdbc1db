//! Measuring optimizer steps.
//!
//! In: [`TrainBenchOptions`]. Out: [`TrainBenchReport`]: source tokens per second (tokens of packed
//! rows), processed tokens per second (tokens that went through the decoder), MFU over useful FLOPs
//! where the card's peak is known (`train/flops.rs`), memory, and milliseconds by phase. Warm-up
//! steps are not counted. Quote the median: a busy machine distorts the mean.

use std::time::Instant;

use dlm_datasets::mask;
use serde::Serialize;

use super::options::{BenchLayout, TrainBenchOptions};
use super::presets;
use super::rows::synthetic_row;
use crate::compute::memory;
use crate::compute::{ComputePlan, device};
use crate::config::{Config, Optim};
use crate::diffusion::{
    Batch, DeviceBatch, DocumentMask, Layout, Objective, ObjectiveSpec, PackedRow, PassOptions,
    build_batch, count_targets, objective,
};
use crate::error::{Error, Result};
use crate::io::load_model::{HostModel, LoadedModel};
use crate::model::{Gradients, ModelConfig};
use crate::optim::{Optimizer, clip};
use crate::report::metrics::resident_mib;
use crate::train::flops;

/// Seed of the random weights.
const WEIGHT_SEED: u64 = 1;
/// Seed of the masks.
const MASK_SEED: u64 = 5;
/// Smallest share of a block that is hidden, as in training.
const NOISE_EPS: f64 = 1e-3;

/// Result of a measurement; times are of counted steps only.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TrainBenchReport {
    pub preset: String,
    /// Number of parameters.
    pub params: usize,
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
}

/// Median milliseconds by phase of a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PhaseTimes {
    /// Making rows, masks and batches.
    pub data: f64,
    pub forward_backward: f64,
    /// Gradient norm, clipping and update.
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
    model: LoadedModel,
    optim: Optim,
    optimizer: Optimizer,
    objective: Objective,
    spec: ObjectiveSpec,
    pass: PassOptions,
    micro: usize,
}

/// Runs the steps and reports.
pub(crate) fn measure(options: &TrainBenchOptions) -> Result<TrainBenchReport> {
    let mut bench = Bench::new(options)?;
    let mut steps = Vec::with_capacity(options.steps);
    let (mut first, mut peak_rss_mib) = (None, 0);
    for number in 0..options.warmup + options.steps {
        let step = bench.step(number)?;
        peak_rss_mib = peak_rss_mib.max(resident_mib());
        first.get_or_insert((step.loss, step.total / 1e3));
        if number >= options.warmup {
            steps.push(step);
        }
    }
    Ok(bench.report(&steps, first, peak_rss_mib))
}

impl<'a> Bench<'a> {
    fn new(options: &'a TrainBenchOptions) -> Result<Self> {
        let &TrainBenchOptions { batch, seq, bd_size, steps, .. } = options;
        let compute = ComputePlan::new(device::choose(&options.device)?, Some(options.dtype))
            .with_attention(options.attention)?
            .with_multiple(options.multiple);
        if seq == 0 || bd_size == 0 || seq % bd_size != 0 || batch == 0 || steps == 0 {
            return Err(Error::Usage(
                "--seq must be a multiple of --bd-size; --bd-size, --batch and --steps at least 1"
                    .into(),
            ));
        }
        // ids, labels and masks of a step are in memory before its first pass
        let bytes = batch.checked_mul(seq).and_then(|tokens| tokens.checked_mul(16));
        if bytes.is_none_or(|bytes| bytes > memory::available_bytes()) {
            return Err(Error::Usage(format!(
                "--batch {batch} rows of --seq {seq} tokens do not fit into memory; expected fewer"
            )));
        }
        let mut host = HostModel::new(ModelConfig::from_json(presets::config(&options.preset)?)?);
        host.draw_weights(WEIGHT_SEED);
        let model = host.upload(&compute.device.device);
        let optim = Config::load(None, &[])?.optim;
        let optimizer = Optimizer::new(&optim, &model.decoder.params, &compute.device.device);
        let objective = match options.layout {
            BenchLayout::Saving => Objective::BlockDiffusion(Layout::Saving),
            BenchLayout::Reference => Objective::BlockDiffusion(Layout::Reference),
            BenchLayout::Sft => Objective::Sft,
        };
        let spec = ObjectiveSpec {
            bd_size,
            mask_token_id: model.decoder.cfg.vocab_size as i32 - 1,
            complementary: true,
            document_mask: DocumentMask::Document,
        };
        let pass = PassOptions {
            activation_checkpointing: options.activation_checkpointing,
            loss_chunk: options.loss_chunk,
        };
        let micro = options.micro.unwrap_or(batch).clamp(1, batch);
        Ok(Bench { options, compute, model, optim, optimizer, objective, spec, pass, micro })
    }

    /// Runs step `number`, from 0.
    fn step(&mut self, number: usize) -> Result<Step> {
        let start = Instant::now();
        let (batches, targets) = self.batches(number);
        let data_done = Instant::now();
        let mut gradients = Gradients::new(self.model.weights.0.len());
        let (mut sum, mut processed, mut useful) = (0.0, 0, 0.0);
        for batch in &batches {
            let inputs = DeviceBatch::upload(&self.model.decoder, batch, &self.compute)?;
            sum += objective::loss_and_gradients(
                &self.model.decoder,
                &self.model.weights,
                &inputs,
                &self.pass,
                1.0 / targets as f64,
                &mut gradients,
            )?;
            processed += batch.processed;
            useful += flops::useful(&self.model.decoder, batch);
        }
        self.wait()?;
        let passes_done = Instant::now();
        let norm = clip::global_norm(&gradients)?;
        self.optimizer.step(
            &self.optim,
            &self.model.decoder.params,
            &mut self.model.weights,
            gradients,
            1.0,
            (1.0 / norm).min(1.0),
        );
        self.wait()?;
        let end = Instant::now();
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
        let TrainBenchOptions { batch, seq, bd_size, .. } = *self.options;
        let vocab = self.model.decoder.cfg.vocab_size;
        let indices = (0..batch).map(|row| (number * batch + row) as u64);
        let rows: Vec<PackedRow> =
            indices.clone().map(|index| synthetic_row(self.options, vocab, index)).collect();
        let masks: Vec<Vec<bool>> = indices
            .map(|index| mask::row_mask(MASK_SEED, 0, index, seq, bd_size, NOISE_EPS))
            .collect();
        let targets =
            rows.iter().map(|row| count_targets(row, &self.spec, self.objective, None)).sum();
        let shape = self.compute.stream_shape;
        let batches = rows
            .chunks(self.micro)
            .zip(masks.chunks(self.micro))
            .map(|(rows, masks)| build_batch(self.objective, rows, masks, &self.spec, shape))
            .collect();
        (batches, targets)
    }

    fn wait(&self) -> Result<()> {
        let failed = |e| Error::Device(format!("waiting for the device failed: {e}"));
        self.compute.device.device.sync().map_err(failed)
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
            params: self.model.decoder.params.numel(),
            device: self.compute.device.name.clone(),
            layout: options.layout,
            dtype: options.dtype.to_string(),
            attention: format!("{:?}", self.compute.attention).to_lowercase(),
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
        }
    }
}

fn median(steps: &[Step], value: impl Fn(&Step) -> f64) -> f64 {
    let mut values: Vec<f64> = steps.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
