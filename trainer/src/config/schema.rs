//! Every key of the training configuration, with its type and unit.
//!
//! In: the composed YAML tree (`compose.rs`). Out: [`Config`], read by the trainer as
//! `cfg.section.key`. Defaults are in `configs/`, not here: a key without a value there is an
//! error, except where the type is optional. Model shapes are not configuration: they come from the
//! source's `config.json`. The paper is arXiv:2509.26328; its settings are in section 4.1.

use std::path::PathBuf;

use super::choices::*;
use super::kind::section;

/// Keys that were renamed, old name first: the old name is refused with the new one.
pub(super) const RENAMED_KEYS: &[(&str, &str)] = &[
    ("train.micro_rows", "train.micro_batch_rows"),
    ("train.recompute", "train.activation_checkpointing"),
];

/// Keys that configurations saved by earlier versions do not have: section, key, and the value that
/// those versions had in effect.
pub(super) const ADDED_KEYS: &[(&str, &str, &str)] = &[
    ("train", "engine", "auto"),
    ("export", "which", "last"),
    ("export", "lora", "merged"),
    ("report", "wandb", "off"),
    ("conversion", "token_shift", "null"),
    ("conversion", "mask_token_id", "null"),
];

/// Values that were renamed: key, old value, new value.
pub(super) const RENAMED_VALUES: &[(&str, &str, &str)] =
    &[("conversion.document_mask", "hub", "none")];

section! {
    /// The whole configuration of one training run.
    Config {
        /// The model that is converted.
        model: Model,
        /// Source of weights, shapes and tokenizer.
        source: Source,
        /// The training data.
        data: Data,
        /// Objective and token budget.
        conversion: Conversion,
        /// Optimizer, clipping and learning-rate schedule.
        optim: Optim,
        /// Batches, precision, intervals and guards.
        train: Train,
        /// The run's folder.
        output: Output,
        /// Format of the exported folder.
        export: Export,
        /// Additional reports.
        report: Report,
    }
}

section! {
    /// The model that is converted.
    Model {
        /// Short name of the model; also the name of the output folder.
        name: String,
    }
}

section! {
    /// Source of weights, shapes and tokenizer.
    Source {
        /// Folder with config.json and safetensors, or `hf://org/name[@revision]`, or `org/name`.
        /// Required unless `init: random`.
        path: Option<String>,
        /// `pretrained` reads the source's weights; `random` draws weights for the shapes in
        /// `config`.
        init: Init,
        /// config.json with the shapes for `init: random`; for a path below `configs/` the built-in
        /// file is used where there is none on disk.
        config: Option<PathBuf>,
    }
}

section! {
    /// The training data.
    Data {
        /// Folder written by dlm-prep (manifest.json and Arrow files); `--data` overrides it.
        dir: PathBuf,
        /// `true` trains on documents that are longer than the model's max_position_embeddings.
        /// null: they are refused.
        allow_long_documents: Option<bool>,
    }
}

section! {
    /// Objective and token budget.
    Conversion {
        /// `block_diffusion` (denoise blocks, Fast-dLLM v2), `sft` (causal next token on responses)
        /// or `lossless` (adapters at mask tokens propose what the untouched source would say).
        objective: Objective,
        /// `saving` shares one clean stream between both views and drops blocks that no counted
        /// target depends on; `reference` is the layout of the paper. Loss and gradient are equal.
        layout: Layout,
        /// Tokens to consume, padding not counted; the run ends with the step that reaches this.
        total_tokens: u64,
        /// Tokens per diffusion block. null: the dataset's; any other value must equal it.
        bd_size: Option<usize>,
        /// Id of the mask token. null: the dataset's; any other value must equal it.
        mask_token_id: Option<u64>,
        /// `true`: the logits at position i-1 predict token i (Fast-dLLM v2). `false`: those at
        /// position i (SDAR). null: as the source was converted, else `true`.
        token_shift: Option<bool>,
        /// `document` isolates packed conversations from each other and restarts positions in each;
        /// `none` treats a row as one text, as the published code does.
        document_mask: DocumentMask,
        /// Smallest share of a block that is hidden: p = (1 - noise_eps) t + noise_eps, t ~ U(0,
        /// 1).
        noise_eps: f64,
        /// Train on two views of each row: the drawn mask and its complement.
        complementary: bool,
        /// BitLinear (ternary weights, int8 activations) in the layers: `auto` (as in the source's
        /// quantization_config), `on` or `off`.
        bitlinear: BitLinear,
        /// Steps over which BitLinear's quantisation is blended in, from none to full. 0: full from
        /// the first step.
        lambda_warmup: u64,
        /// Low-rank adapters (LoRA): only they and the mask token's row of the embedding table are
        /// trained, the source's weights stay as they are. null: everything is trained.
        lora: Option<Lora>,
        /// Starting offsets of blocks taken in each row, with `objective: lossless`; evenly spaced
        /// from one that is drawn. null: 2.
        block_offsets: Option<usize>,
        /// Share w of the divergence from the source in the loss, 0 to 1, with `objective:
        /// lossless`: (1 - w) · cross-entropy + w · KL(source ‖ proposal). null: 1.
        distill: Option<f64>,
    }
}

section! {
    /// Low-rank adapters (LoRA, arXiv:2106.09685) beside matrices of the layers: W x + alpha / rank
    /// · B A x, where A is `[rank, in]`, B `[out, rank]` and W is not trained.
    Lora {
        /// Rank of each adapter; at most the smaller side of its matrix.
        rank: usize,
        /// alpha / rank is the factor on every adapter's output. null: 2 · rank.
        alpha: Option<f64>,
        /// The matrices of each layer that get an adapter. null: all seven.
        targets: Option<Vec<LoraTarget>>,
    }
}

section! {
    /// Optimizer, clipping and learning-rate schedule.
    Optim {
        /// `adamw`, or `muon` for the matrices of the layers with AdamW for the rest.
        name: OptimName,
        /// Peak learning rate of AdamW.
        lr: f64,
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the square root of the second moment.
        eps: f64,
        /// Decoupled weight decay, multiplied by the learning rate; not applied to norms and
        /// biases.
        weight_decay: f64,
        /// Largest global gradient norm. null: no clipping.
        clip_norm: Option<f64>,
        /// Adaptive clipping by z-score of the gradient norm.
        zclip: Zclip,
        /// Learning rate over the run: `constant_with_warmup`, `cosine` or `wsd` (warm-up, stable,
        /// decay).
        schedule: Schedule,
        /// Share of the run over which the rate rises from 0 to `lr`.
        warmup_ratio: f64,
        /// Rate at the end of `cosine` and `wsd`, as a share of `lr`.
        min_lr_ratio: f64,
        /// Share of the run over which `wsd` falls to `min_lr_ratio`, at its end.
        decay_ratio: f64,
        /// Peak learning rate of Muon.
        muon_lr: f64,
        /// Momentum of Muon, from 0 to 1.
        muon_momentum: f64,
    }
}

section! {
    /// Adaptive clipping (ZClip, arXiv:2504.02507): a gradient norm whose z-score is above `z` is
    /// reduced to z² / score standard deviations above the running mean.
    Zclip {
        /// Whether to clip by z-score.
        enabled: bool,
        /// A norm more than this many standard deviations above the running mean is an outlier.
        z: f64,
        /// Weight of the past in the running mean and variance.
        alpha: f64,
    }
}

section! {
    /// Batches, precision, intervals and guards.
    Train {
        /// Dataset rows per optimizer step.
        batch_rows: usize,
        /// Rows per forward pass; must divide `batch_rows`. null: as many as memory holds.
        micro_batch_rows: Option<usize>,
        /// Steps after which to end even when tokens are left. null: the token budget alone
        /// decides.
        max_steps: Option<u64>,
        /// Seed of row order, masks and random weights.
        seed: u64,
        /// Dtype of activations and matrix products; weights and optimizer state are fp32. null:
        /// bf16 on CUDA, fp32 elsewhere.
        dtype: Option<Dtype>,
        /// `native` computes the passes with own kernels and cuBLAS (CUDA, AdamW), `burn` with Burn
        /// on any device, `auto` natively where that is possible.
        engine: Engine,
        /// `layer` keeps only each layer's input and recomputes the layer in the backward pass:
        /// less memory, more time. `none` keeps all activations.
        activation_checkpointing: ActivationCheckpointing,
        /// Positions whose logits are in memory at a time. null: 1024, and as many as 2 GiB hold
        /// with the native engine.
        loss_chunk: Option<usize>,
        /// Steps between log lines.
        log_every: u64,
        /// Steps between evaluations on the eval split. 0: never.
        eval_every: u64,
        /// Rows of the eval split per evaluation.
        eval_rows: usize,
        /// Steps between checkpoints. 0: only at the end and on a signal. A checkpoint is also
        /// written after every evaluation with the lowest loss so far.
        save_every: u64,
        /// Number of newest checkpoints to keep, beside the one with the lowest evaluation loss.
        keep_checkpoints: usize,
        /// Spike guard: the update of a step whose loss is above this many times the running mean
        /// is skipped, and counted. A skipped step still moves the mean 5 % of the way to that
        /// threshold, so that a lasting rise is accepted after some steps (with a factor of 2, a
        /// loss of 3 times the mean after 9). null: off.
        spike_factor: Option<f64>,
        /// Evaluations without improvement after which to end early. null: never.
        early_stop_patience: Option<u64>,
        /// Smallest decrease of the evaluation loss that counts as an improvement, nats.
        early_stop_min_delta: f64,
        /// Steps whose rows are read ahead.
        prefetch: usize,
    }
}

section! {
    /// The run's folder.
    Output {
        /// Folder for the export, checkpoints and metrics.
        dir: PathBuf,
        /// ORG/NAME on a Hugging Face hub to which the export is pushed at the end, with a model
        /// card; made, and visible to its owner only, if it is missing. null: no push.
        push: Option<String>,
        /// Folder in a bucket to which checkpoints and the export are sent, and from which a run on
        /// an empty disk goes on: `gs://`, `s3://`, `az://` or `file://`. null: none.
        remote: Option<String>,
        /// Seconds that an interrupted run goes on sending its last checkpoint, from when it began
        /// to write it. null: 25.
        upload_grace: Option<u64>,
    }
}

section! {
    /// Format of the exported folder.
    Export {
        /// `hf` keeps the source's architecture; `fast-dllm` is a Fast_dLLM_Qwen folder (Qwen2, and
        /// Llama with biases of zero), `sdar` an SDAR folder (Qwen3, trained without the token
        /// shift, mask id 151669), both with a modeling file; `packed-ternary` is `hf` with
        /// BitLinear's weights in two bits each (models with BitLinear only).
        format: ExportFormat,
        /// Dtype of the stored weights.
        dtype: Dtype,
        /// `last` exports the weights after the last step, `best` those with the lowest evaluation
        /// loss. The checkpoint with the lowest loss is kept in either case.
        which: ExportWhich,
        /// What a run with `conversion.lora` exports: `merged` (an ordinary model folder) or
        /// `adapter` (the adapter alone, as a folder of the Python library `peft`).
        lora: LoraExport,
    }
}

section! {
    /// Reports besides metrics.jsonl, which is always written.
    Report {
        /// Write TensorBoard event files to `tensorboard/` in the run's folder.
        tensorboard: bool,
        /// Weights & Biases: `auto` where WANDB_API_KEY is set or WANDB_MODE is offline, `online`,
        /// `offline` (files for `wandb sync` in `wandb/` of the run's folder), or `off`.
        wandb: WandbChoice,
        /// Project there. null: that of WANDB_PROJECT, else dlm-train.
        wandb_project: Option<String>,
        /// User or team there. null: that of WANDB_ENTITY, else the key's own.
        wandb_entity: Option<String>,
        /// Name of the run there. null: that of WANDB_NAME, else the last part of output.dir.
        wandb_name: Option<String>,
    }
}
