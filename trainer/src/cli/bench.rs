//! `dlm-train bench train`: training throughput at true shapes with random weights and synthetic
//! packed rows.
//!
//! Out: source tokens/s (packed-row tokens consumed), processed tokens/s, MFU over useful FLOPs
//! where the device's peak is known (`train/flops.rs`), memory, and milliseconds by phase. Warm-up
//! steps are not counted; the median is what to quote.

use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::bench::presets;
use crate::compute::{AttentionChoice, ComputeDtype, ComputePlan, device};
use crate::config::Config;
use crate::diffusion::{
    DeviceBatch, DocumentMask, IGNORE, Layout, Objective, ObjectiveSpec, PackedRow, PassOptions,
    build_batch, count_targets, objective,
};
use crate::error::{Error, Result};
use crate::model::{Decoder, Gradients, ModelConfig, Params, load};
use crate::optim::{Optimizer, clip};
use crate::report::metrics::resident_mib;
use crate::train::flops;
use dlm_datasets::mask;
use dlm_datasets::rng;

/// What to measure.
#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// Training steps.
    Train(TrainBench),
}

/// Options of `bench train`.
#[derive(Args, Debug)]
pub struct TrainBench {
    /// Shapes: tiny_llama, tiny_qwen3, demo_5m, smollm2_135m, qwen2.5_0.5b, qwen3_0.6b, qwen3_4b,
    /// bitnet_2b.
    #[arg(long)]
    pub preset: String,
    /// Rows a step.
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Rows a forward pass; default: all of the step.
    #[arg(long)]
    pub micro: Option<usize>,
    /// Tokens a row.
    #[arg(long, default_value_t = 512)]
    pub seq: usize,
    /// Tokens a block.
    #[arg(long, default_value_t = 32)]
    pub bd_size: usize,
    /// Counted steps.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Steps before counting.
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// saving, reference, or sft (plain causal).
    #[arg(long, default_value = "saving", value_parser = ["saving", "reference", "sft"])]
    pub layout: String,
    /// fp32 or bf16 compute; masters are fp32.
    #[arg(long, default_value = "fp32")]
    pub dtype: ComputeDtype,
    /// auto, dense, ranges or tiles.
    #[arg(long, default_value = "auto")]
    pub attention: AttentionChoice,
    /// auto, cpu, cuda[:N], wgpu.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Documents a row, each isolated.
    #[arg(long, default_value_t = 1)]
    pub docs_per_row: usize,
    /// Leading share of each document without labels.
    #[arg(long, default_value_t = 0.3)]
    pub prompt_fraction: f64,
    /// Run layers again in the backward pass.
    #[arg(long)]
    pub recompute: bool,
    /// Logits rows at a time.
    #[arg(long, default_value_t = 1024)]
    pub loss_chunk: usize,
    /// Round stream lengths up to this (dense and ranges).
    #[arg(long, default_value_t = 32)]
    pub multiple: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A synthetic packed row: equal documents, leading prompt without labels.
fn synthetic_row(args: &TrainBench, vocab: usize, index: u64) -> PackedRow {
    let per = (args.seq.div_ceil(args.docs_per_row.max(1))).next_multiple_of(args.bd_size);
    let key = rng::key(&[77, index]);
    let input_ids: Vec<i32> =
        (0..args.seq).map(|i| (rng::bits(key, i as u64) % (vocab as u64 - 2)) as i32).collect();
    let mut labels = input_ids.clone();
    let mut documents = Vec::new();
    for start in (0..args.seq).step_by(per) {
        let len = per.min(args.seq - start);
        documents.push((start, len));
        let prompt = (per as f64 * args.prompt_fraction) as usize;
        labels[start..start + prompt.min(len)].fill(IGNORE);
    }
    PackedRow { input_ids, labels, documents }
}

/// Run.
pub fn run(command: &BenchCommand) -> Result<bool> {
    let BenchCommand::Train(args) = command;
    let compute = ComputePlan::new(device::choose(&args.device)?, Some(args.dtype))
        .with_attention(args.attention)?
        .with_multiple(args.multiple);
    let device = &compute.device.device;
    if args.seq == 0 || args.seq % args.bd_size.max(1) != 0 || args.batch == 0 || args.steps == 0 {
        return Err(Error::Usage(
            "--seq must be a multiple of --bd-size, --batch and --steps at least 1".into(),
        ));
    }
    let cfg = ModelConfig::from_json(presets::config(&args.preset)?)?;
    let params = Params::new(&cfg);
    let host = load::random_host(&cfg, &params, 1);
    let decoder = Decoder::new(cfg);
    let mut w = load::upload(host, &decoder.params, device);
    let optim = Config::load(None, &[])?.optim;
    let mut optimizer = Optimizer::new(&optim, &decoder.params, device);
    let pass =
        PassOptions { activation_checkpointing: args.recompute, loss_chunk: args.loss_chunk };
    let objective = match args.layout.as_str() {
        "sft" => Objective::Sft,
        "reference" => Objective::BlockDiffusion(Layout::Reference),
        _ => Objective::BlockDiffusion(Layout::Saving),
    };
    let spec = ObjectiveSpec {
        bd_size: args.bd_size,
        mask_token_id: decoder.cfg.vocab_size as i32 - 1,
        complementary: true,
        document_mask: DocumentMask::Document,
    };
    let micro = args.micro.unwrap_or(args.batch).clamp(1, args.batch);
    let sync =
        || device.sync().map_err(|e| Error::Device(format!("waiting for the device failed: {e}")));
    let (mut totals, mut data_ms, mut pass_ms, mut opt_ms) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut processed, mut useful, mut peak_rss) = (0usize, 0.0, 0u64);
    let (mut first_loss, mut last_loss, mut first_step) = (None, 0.0, 0.0);
    for s in 0..args.warmup + args.steps {
        let counted_step = s >= args.warmup;
        let t0 = Instant::now();
        let rows: Vec<PackedRow> = (0..args.batch)
            .map(|r| synthetic_row(args, decoder.cfg.vocab_size, (s * args.batch + r) as u64))
            .collect();
        let masks: Vec<Vec<bool>> = (0..args.batch)
            .map(|r| {
                mask::row_mask(5, 0, (s * args.batch + r) as u64, args.seq, args.bd_size, 1e-3)
            })
            .collect();
        let counted: usize = rows.iter().map(|r| count_targets(r, &spec, objective, None)).sum();
        let batches: Vec<_> = rows
            .chunks(micro)
            .zip(masks.chunks(micro))
            .map(|(r, m)| build_batch(objective, r, m, &spec, compute.stream_shape))
            .collect();
        let t1 = Instant::now();
        let mut grads = Gradients::new(w.0.len());
        let mut sum = 0.0;
        for b in &batches {
            let inputs = DeviceBatch::upload(&decoder, b, &compute)?;
            sum += objective::loss_and_gradients(
                &decoder,
                &w,
                &inputs,
                &pass,
                1.0 / counted as f64,
                &mut grads,
            )?;
            if counted_step {
                processed += b.processed;
                useful += flops::useful(&decoder, b);
            }
        }
        sync()?;
        let t2 = Instant::now();
        let norm = clip::global_norm(&grads)?;
        optimizer.step(&optim, &decoder.params, &mut w, grads, 1.0, (1.0 / norm).min(1.0));
        sync()?;
        let t3 = Instant::now();
        let ms = |a: Instant, b: Instant| (b - a).as_secs_f64() * 1e3;
        last_loss = sum / counted as f64;
        if first_loss.is_none() {
            first_loss = Some(last_loss);
            first_step = (t3 - t0).as_secs_f64();
        }
        if counted_step {
            totals.push(ms(t0, t3));
            data_ms.push(ms(t0, t1));
            pass_ms.push(ms(t1, t2));
            opt_ms.push(ms(t2, t3));
        }
        peak_rss = peak_rss.max(resident_mib());
    }
    let median = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let total_s: f64 = totals.iter().sum::<f64>() / 1e3;
    let step = median(&mut totals);
    let source = (args.batch * args.seq) as f64;
    let tokens_per_s = source / step * 1e3;
    let useful_step = useful / args.steps as f64;
    let record = json!({
        "preset": args.preset, "params": decoder.params.numel(), "device": compute.device.name, "layout": args.layout, "dtype": args.dtype.to_string(),
        "attention": format!("{:?}", compute.attention).to_lowercase(), "recompute": args.recompute,
        "batch": args.batch, "micro": micro, "seq": args.seq, "bd_size": args.bd_size, "steps": args.steps,
        "tokens_per_s": source * args.steps as f64 / total_s, "tokens_per_s_median": tokens_per_s,
        "processed_tokens_per_s": processed as f64 / total_s,
        "processed_share_of_4l": processed as f64 / (4.0 * source * args.steps as f64),
        "hours_per_billion_tokens": 1e9 / tokens_per_s / 3600.0,
        "useful_tflops_per_s": useful_step / (step / 1e3) / 1e12,
        "mfu": compute.peak_flops.map(|p| useful_step / (step / 1e3) / p),
        "ms_per_step_median": step,
        "ms": {"data": median(&mut data_ms), "forward_backward": median(&mut pass_ms), "optimizer": median(&mut opt_ms)},
        "first_step_s": first_step, "loss_first": first_loss, "loss_last": last_loss, "peak_rss_mib": peak_rss,
    });
    if args.json {
        println!("{record}");
    } else {
        println!(
            "{} {} {} on {}: {:.0} source tok/s (median step {:.1} ms: data {:.1}, passes {:.1}, optimizer {:.1}), {:.0} % of 4L processed, {:.3} useful TFLOP/s, loss {:.4} → {:.4}, {} MiB",
            args.preset,
            args.layout,
            args.dtype,
            compute.device.name,
            tokens_per_s,
            step,
            median(&mut data_ms),
            median(&mut pass_ms),
            median(&mut opt_ms),
            100.0 * processed as f64 / (4.0 * source * args.steps as f64),
            useful_step / (step / 1e3) / 1e12,
            first_loss.unwrap_or(0.0),
            last_loss,
            peak_rss,
        );
    }
    Ok(true)
}
