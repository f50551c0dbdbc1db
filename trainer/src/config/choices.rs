//! Values of the configuration that are one of a few names.

use super::kind::choice;

choice! {
    /// Initial weights.
    Init {
        /// Those of the source.
        Pretrained = "pretrained",
        /// Random ones.
        Random = "random",
    }
}

choice! {
    /// Training objective.
    Objective {
        /// Denoising of blocks (Fast-dLLM v2).
        BlockDiffusion = "block_diffusion",
        /// Causal next-token prediction on responses.
        Sft = "sft",
        /// Proposals of the next tokens by adapters at mask tokens.
        Lossless = "lossless",
    }
}

choice! {
    /// Layout of the noised views and the clean copy.
    Layout {
        /// One clean stream for both views, unneeded blocks dropped.
        Saving = "saving",
        /// For each row two sequences of a noised view and the clean copy.
        Reference = "reference",
    }
}

choice! {
    /// Whether the layers use BitLinear.
    BitLinear {
        /// As in the source's quantization_config.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// Attention between conversations packed into one row.
    DocumentMask {
        /// No attention between them.
        Document = "document",
        /// Each sees everything before it in the row.
        None = "none",
    }
}

choice! {
    /// The optimizer of the layers' matrices.
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
        /// Constant after warm-up.
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
    /// What computes the passes of training.
    Engine {
        /// The native engine where it can be used, else Burn.
        Auto = "auto",
        /// The native engine.
        Native = "native",
        /// Burn, on any device.
        Burn = "burn",
    }
}

choice! {
    /// Which activations are recomputed in the backward pass.
    ActivationCheckpointing {
        /// None: all are kept.
        None = "none",
        /// Those inside a layer, from the layer's input.
        Layer = "layer",
    }
}

choice! {
    /// Which weights of a run are exported.
    ExportWhich {
        /// Those after the last step.
        Last = "last",
        /// Those with the lowest evaluation loss.
        Best = "best",
    }
}

choice! {
    /// Whether steps are reported to Weights & Biases.
    WandbChoice {
        /// Where the environment has a key, or says offline.
        Auto = "auto",
        /// Always.
        Online = "online",
        /// To files.
        Offline = "offline",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// A matrix of each layer.
    LoraTarget {
        /// From the layer's input to queries.
        Query = "q_proj",
        /// From the layer's input to keys.
        Key = "k_proj",
        /// From the layer's input to values.
        Value = "v_proj",
        /// Output of attention.
        Output = "o_proj",
        /// The MLP's gate.
        Gate = "gate_proj",
        /// Into the MLP.
        Up = "up_proj",
        /// Out of the MLP.
        Down = "down_proj",
    }
}

choice! {
    /// What a run with adapters exports.
    LoraExport {
        /// The source's weights with the adapters added.
        Merged = "merged",
        /// The adapters alone.
        Adapter = "adapter",
    }
}

choice! {
    /// Format of the exported folder.
    ExportFormat {
        /// The source's architecture, with the block size and mask id added.
        Hf = "hf",
        /// The published Fast-dLLM v2 architecture.
        FastDllm = "fast-dllm",
        /// The published SDAR architecture.
        Sdar = "sdar",
        /// As `hf`, with BitLinear's ternary weights packed four to a byte.
        PackedTernary = "packed-ternary",
    }
}
