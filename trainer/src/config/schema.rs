//! Every key of the training configuration, with its type and unit.
//!
//! In: the composed YAML tree (`compose.rs`). Out: [`Config`], read by the trainer as
//! `cfg.section.key`. Defaults live in `configs/`, not here: a key without a value there is an
//! error, except where the type is optional. Model shapes are not configuration; they come from the
//! source's own `config.json`. Paper numbers: arXiv:2509.26328, section 4.1.

use std::path::PathBuf;

use super::kind::{choice, section};

/// Keys that were renamed, old name first: the old name is refused with the new one.
pub(super) const RENAMED_KEYS: &[(&str, &str)] = &[
    ("train.micro_rows", "train.micro_batch_rows"),
    ("train.recompute", "train.activation_checkpointing"),
];

/// Values that were renamed: key, old value, new value.
pub(super) const RENAMED_VALUES: &[(&str, &str, &str)] =
    &[("conversion.document_mask", "hub", "none")];

section! {
    /// The whole configuration of one training run.
    Config {
        /// What is converted.
        model: Model,
        /// Where its weights, shapes and tokenizer come from.
        source: Source,
        /// What it is trained on.
        data: Data,
        /// The objective and its budget.
        conversion: Conversion,
        /// Optimizer, clipping and learning-rate schedule.
        optim: Optim,
        /// Batches, precision, intervals and guards.
        train: Train,
        /// Where the run writes.
        output: Output,
        /// The form of the exported folder.
        export: Export,
        /// Where else the run tells how it goes.
        report: Report,
    }
}

section! {
    /// What is converted.
    Model {
        /// Short name of the run's model; names the output folder.
        name: String,
    }
}

section! {
    /// Where weights, shapes and tokenizer come from.
    Source {
        /// Folder with config.json and safetensors, or `hf://org/name[@revision]`, or `org/name`.
        /// Needed unless `init: random`.
        path: Option<String>,
        /// `pretrained` reads the weights; `random` draws them anew for the shapes of `config`.
        init: Init,
        /// config.json with the shapes for `init: random`; a path below `configs/` is also found
        /// among the built-in files.
        config: Option<PathBuf>,
    }
}

section! {
    /// What the model is trained on.
    Data {
        /// Folder written by dlm-prep (manifest.json and Arrow files); `--data` wins over it.
        dir: PathBuf,
    }
}

section! {
    /// The objective and its budget.
    Conversion {
        /// `block_diffusion` (denoise blocks, Fast-dLLM v2) or `sft` (causal next token on
        /// responses).
        objective: Objective,
        /// `saving` shares one clean stream and drops blocks that nothing needs; `reference` is the
        /// plain form of the paper. Equal in loss and gradient.
        layout: Layout,
        /// Tokens to consume, padding not counted; the run ends with the step that reaches it.
        total_tokens: u64,
        /// Tokens a diffusion block; null takes the dataset's, any other value must agree with it.
        bd_size: Option<usize>,
        /// `document` keeps packed conversations apart and restarts positions; `none` treats a
        /// row as one text, as the published code does.
        document_mask: DocumentMask,
        /// Smallest share of a block that is hidden: p = (1 - noise_eps) t + noise_eps, t ~ U(0,
        /// 1).
        noise_eps: f64,
        /// Train on both views of each row: the drawn mask and its complement.
        complementary: bool,
        /// BitLinear (ternary weights, int8 activations) in the layers: `auto` as the source's
        /// quantization_config says, `on`, `off`.
        bitlinear: BitLinear,
        /// Steps over which BitLinear's quantisation is blended in, from none to full; 0: full from
        /// the first step.
        lambda_warmup: u64,
    }
}

section! {
    /// Optimizer, clipping and learning-rate schedule.
    Optim {
        /// `adamw`, or `muon` for the matrices of the layers with AdamW for the rest.
        name: OptimName,
        /// Peak learning rate of AdamW, per step.
        lr: f64,
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Decoupled weight decay, times the learning rate; norms and biases have none.
        weight_decay: f64,
        /// Largest global gradient norm; null does not clip.
        clip_norm: Option<f64>,
        /// Adaptive clipping by z-score of the gradient norm.
        zclip: Zclip,
        /// Form of the learning rate over the run.
        schedule: Schedule,
        /// Share of the run in which the rate rises from 0 to `lr`.
        warmup_ratio: f64,
        /// Rate at the end of `cosine` and `wsd`, as a share of `lr`.
        min_lr_ratio: f64,
        /// Share of the run in which `wsd` falls to its end.
        decay_ratio: f64,
        /// Peak learning rate of Muon.
        muon_lr: f64,
        /// Momentum of Muon.
        muon_momentum: f64,
    }
}

section! {
    /// Adaptive clipping (ZClip): a gradient norm whose z-score is above `z` is brought down to z²
    /// / score standard deviations above the running mean.
    Zclip {
        /// Off by default.
        enabled: bool,
        /// Standard deviations above the running mean from which a norm is an outlier.
        z: f64,
        /// Weight of the past in the running mean and variance.
        alpha: f64,
    }
}

section! {
    /// Batches, precision, intervals and guards.
    Train {
        /// Dataset rows an optimizer step.
        batch_rows: usize,
        /// Rows a forward pass; must divide `batch_rows`; null takes what fits.
        micro_batch_rows: Option<usize>,
        /// Steps after which to end even when tokens are left; null: the token budget alone
        /// decides.
        max_steps: Option<u64>,
        /// Seed of row order, masks and random initialisation.
        seed: u64,
        /// Precision of the matrix products; master weights stay fp32. Null: bf16 on CUDA, fp32 on
        /// the CPU.
        dtype: Option<Dtype>,
        /// `layer` keeps only each layer's input and computes the rest again in the backward pass.
        activation_checkpointing: ActivationCheckpointing,
        /// Positions whose logits exist at one time.
        loss_chunk: usize,
        /// Steps between log lines.
        log_every: u64,
        /// Steps between evaluations on the eval split; 0: never.
        eval_every: u64,
        /// Rows of the eval split used each time.
        eval_rows: usize,
        /// Steps between checkpoints; 0: only at the end and on a signal.
        save_every: u64,
        /// Newest checkpoints kept.
        keep_checkpoints: usize,
        /// A step whose loss is above this many times the running mean is skipped and counted;
        /// null: off.
        spike_factor: Option<f64>,
        /// Evaluations without improvement after which to end early; null: never.
        early_stop_patience: Option<u64>,
        /// What counts as improvement of the evaluation loss, nats.
        early_stop_min_delta: f64,
        /// Batches read ahead.
        prefetch: usize,
    }
}

section! {
    /// Where the run writes.
    Output {
        /// Folder of the run: the export, checkpoints and metrics.
        dir: PathBuf,
    }
}

section! {
    /// The form of the exported folder.
    Export {
        /// `hf` keeps the source's architecture; `fast-dllm` writes the published Fast_dLLM_Qwen
        /// config (qwen2 sources); `packed-ternary` is `hf` with BitLinear's weights stored in two
        /// bits each (models with BitLinear).
        format: ExportFormat,
        /// Type of the stored weights.
        dtype: Dtype,
    }
}

section! {
    /// Where else the run tells how it goes; metrics.jsonl is always written.
    Report {
        /// TensorBoard event files in `tensorboard/` of the run's folder.
        tensorboard: bool,
    }
}

choice! {
    /// How a model starts.
    Init {
        /// From the source's weights.
        Pretrained = "pretrained",
        /// From random weights.
        Random = "random",
    }
}

choice! {
    /// What is learned.
    Objective {
        /// Denoising of blocks.
        BlockDiffusion = "block_diffusion",
        /// Causal next-token prediction on responses.
        Sft = "sft",
    }
}

choice! {
    /// How views and clean copy are laid out.
    Layout {
        /// One clean stream, unneeded blocks dropped.
        Saving = "saving",
        /// Two rows of noised and clean copy for each row.
        Reference = "reference",
    }
}

choice! {
    /// Ternary linears.
    BitLinear {
        /// As the source says.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// What packed conversations see of each other.
    DocumentMask {
        /// Nothing.
        Document = "document",
        /// Everything before them in the row.
        None = "none",
    }
}

choice! {
    /// Which optimizer.
    OptimName {
        /// AdamW on everything.
        Adamw = "adamw",
        /// Muon on the layers' matrices, AdamW on the rest.
        Muon = "muon",
    }
}

choice! {
    /// Learning rate over the run, after warm-up.
    Schedule {
        /// Constant.
        ConstantWithWarmup = "constant_with_warmup",
        /// Half a cosine down to `min_lr_ratio`.
        Cosine = "cosine",
        /// Constant, then linear down to `min_lr_ratio` in the last `decay_ratio` of the run.
        Wsd = "wsd",
    }
}

choice! {
    /// Floating-point type.
    Dtype {
        /// 32 bits.
        Fp32 = "fp32",
        /// 16 bits, 8 of them exponent.
        Bf16 = "bf16",
    }
}

choice! {
    /// What the backward pass computes again.
    ActivationCheckpointing {
        /// Nothing.
        None = "none",
        /// Each layer from its input.
        Layer = "layer",
    }
}

choice! {
    /// Dialect of the exported config.json.
    ExportFormat {
        /// The source's architecture, with the block size and mask id added.
        Hf = "hf",
        /// The published Fast-dLLM v2 architecture.
        FastDllm = "fast-dllm",
        /// As `hf`, with BitLinear's weights ternary and packed four to a byte.
        PackedTernary = "packed-ternary",
    }
}
