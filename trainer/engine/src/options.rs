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
    /// The part of the optimizer's state that this engine holds, where several train one model.
    pub share: Share,
}

/// One of several engines that train one model, each on its GPU: it holds the moments of a part of
/// the weights, and updates that part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of them, from 0.
    pub rank: usize,
    /// How many there are.
    pub of: usize,
}

/// Gradients that arrive at a time, bytes; a multiple of 256.
const STAGING: usize = 64 << 20;

impl Share {
    /// All of it, for an engine that trains alone.
    pub const WHOLE: Share = Share { rank: 0, of: 1 };

    /// Bytes that an engine takes for gradients of others that arrive.
    pub(crate) fn staging_bytes(self, total: usize) -> usize {
        if self.of > 1 { STAGING.min(4 * self.range(total).len()) } else { 0 }
    }

    /// The weights of this share, of `total` in the order of the engine's memory. Shares follow one
    /// another and begin at multiples of 64, which suits vector loads.
    pub fn range(self, total: usize) -> std::ops::Range<usize> {
        let each = total.div_ceil(self.of.max(1)).next_multiple_of(64);
        let start = (each * self.rank).min(total);
        start..(start + each).min(total)
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            precision: Precision::Bf16,
            activation_checkpointing: false,
            logits_bytes: 2 << 30,
            training: true,
            share: Share::WHOLE,
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

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn shares_cover_everything_once() {
        for total in [1, 63, 64, 65, 1000, 4096, 100_001] {
            assert_eq!(Share::WHOLE.range(total), 0..total);
            for of in 1..9 {
                let mut end = 0;
                for rank in 0..of {
                    let range = Share { rank, of }.range(total);
                    assert_eq!(range.start, end);
                    assert!(range.start % 64 == 0 || range.is_empty());
                    end = range.end;
                }
                assert_eq!(end, total);
            }
        }
    }
}
