//! How an engine computes, and what an update is told.

/// Numbers of activations and matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// bf16 with fp32 accumulation, on tensor cores.
    #[default]
    Bf16,
    /// fp32 throughout, without tf32: slow, and exact enough to compare with other programs.
    Fp32,
}

impl Precision {
    /// Bytes of one element of activations.
    pub(crate) fn element(self) -> usize {
        match self {
            Precision::Bf16 => 2,
            Precision::Fp32 => 4,
        }
    }
}

/// Choices that trade memory for time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Numbers of activations and matrix products.
    pub precision: Precision,
    /// Keep only the input of each layer and run the layer again in the backward pass.
    pub activation_checkpointing: bool,
    /// Most bytes of logits that exist at one time.
    pub logits_bytes: usize,
    /// Gradients and optimizer state; an engine without them only evaluates.
    pub training: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            precision: Precision::Bf16,
            activation_checkpointing: false,
            logits_bytes: 2 << 30,
            training: true,
        }
    }
}

/// One AdamW update: everything but the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay of matrices and tables, decoupled; norms and biases have none.
    pub decay: f32,
    /// Factor on the gradients, applied first.
    pub clip: f32,
    /// `1 - beta1^t`.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
}
