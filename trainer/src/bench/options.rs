//! Settings of a measurement, with their defaults.

use serde::Serialize;

use crate::compute::{AttentionChoice, ComputeDtype, EngineChoice};

/// Objective and stream layout of the measured steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BenchLayout {
    /// Block diffusion, one clean copy for both views, blocks that nothing needs dropped.
    Saving,
    /// Block diffusion, both views with a clean copy each, as in the paper.
    Reference,
    /// Plain causal loss on responses.
    Sft,
    /// Proposals by adapters at mask tokens, two starting offsets of blocks, learnt from the source
    /// alone, as a run does unless it says otherwise (needs a LoRA rank).
    Lossless,
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct TrainBenchOptions {
    /// Name of the model shapes.
    pub preset: String,
    /// Rows per optimizer step. Default: 8.
    pub batch: usize,
    /// Rows per forward pass. Default: all rows of the step.
    pub micro: Option<usize>,
    /// Tokens per row. Default: 512.
    pub seq: usize,
    /// Tokens per block. Default: 32.
    pub bd_size: usize,
    /// Counted steps. Default: 10.
    pub steps: usize,
    /// Steps before counting starts. Default: 3.
    pub warmup: usize,
    /// Default: [`BenchLayout::Saving`].
    pub layout: BenchLayout,
    /// Dtype of activations and matrix products; master weights are fp32. Default: fp32.
    pub dtype: ComputeDtype,
    /// Default: the fastest that device and dtype support.
    pub attention: AttentionChoice,
    /// `auto`, `cpu`, `cuda[:N]` or `wgpu`. Default: `auto`.
    pub device: String,
    /// Documents per row, isolated from each other. Default: 1.
    pub docs_per_row: usize,
    /// Share of each document, from its start, without labels. Default: 0.3.
    pub prompt_fraction: f64,
    /// Run each layer again in the backward pass. Default: false.
    pub activation_checkpointing: bool,
    /// Positions whose logits exist at one time. Default: 1024, and as many as two GiB hold with
    /// the native engine.
    pub loss_chunk: Option<usize>,
    /// Rank of adapters beside all matrices of the layers, which alone are trained. Default: none,
    /// and everything is trained.
    pub lora_rank: Option<usize>,
    /// Default: the native engine where it can be used.
    pub engine: EngineChoice,
    /// Measure the time of every kernel of one more step (native engine). Default: false.
    pub profile: bool,
    /// Stream lengths are rounded up to a multiple of this (attention dense and ranges). Default:
    /// 32.
    pub multiple: usize,
}

impl TrainBenchOptions {
    /// The default measurement of a preset.
    pub(crate) fn new(preset: impl Into<String>) -> Self {
        TrainBenchOptions {
            preset: preset.into(),
            batch: 8,
            micro: None,
            seq: 512,
            bd_size: 32,
            steps: 10,
            warmup: 3,
            layout: BenchLayout::Saving,
            dtype: ComputeDtype::Fp32,
            attention: AttentionChoice::Auto,
            device: "auto".into(),
            docs_per_row: 1,
            prompt_fraction: 0.3,
            activation_checkpointing: false,
            loss_chunk: None,
            lora_rank: None,
            engine: EngineChoice::Auto,
            profile: false,
            multiple: 32,
        }
    }
}
