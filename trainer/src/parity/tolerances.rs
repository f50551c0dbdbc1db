//! How much a result may differ from its reference.
//!
//! In fp32 the tolerances are constants. In bf16 they are measured: the same case is run in fp32
//! with its weights rounded to bf16, which every bf16 computation does at least, and logits and
//! gradients may differ by [`BF16_FACTOR`] times as much (docs/objective.md, "Precision").

/// A layer rounds its weights once and its activations about twice as often, independently, which
/// makes `sqrt(1 + 2) = 1.7` times the error of rounded weights alone, and a little more where the
/// largest of many errors is compared. Measured on tests/fixtures: 1.4 to 2.6.
const BF16_FACTOR: f64 = 3.0;
/// The same for models with BitLinear, where rounding the weights changes ternary values. A bf16
/// computation does not do that, because its master weights are fp32.
const BF16_FACTOR_TERNARY: f64 = 1.0;
/// Bound on the relative difference of a loss in bf16: [`BF16_FACTOR`] times the largest effect
/// that rounded weights have on the loss of any fixture (6.7e-4). A loss is a mean in which errors
/// cancel by chance, so the effect in a single case is no measure.
const BF16_LOSS: f64 = 2e-3;
/// The same with BitLinear: what tests/fixtures/README.md allows for any disturbance of a quantised
/// model.
const BF16_LOSS_TERNARY: f64 = 5e-3;

/// Tolerances that replace the defaults, and what exactly is compared.
///
/// ```
/// use dlm_train::ToleranceOptions;
///
/// // for a quantised model: the lower quartile of positions
/// let lax = ToleranceOptions { logits_quantile: 0.25, ..ToleranceOptions::default() };
/// assert_eq!(lax.logits_worst, 0.5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToleranceOptions {
    /// Largest absolute difference of logits. Default: 2e-4; in bf16, 3 times the effect of
    /// rounding the weights to bf16.
    pub logits: Option<f64>,
    /// Largest difference of the loss, relative to the expected loss or to one nat, whichever is
    /// larger. Default: 2e-5; in bf16 2e-3, with BitLinear 5e-3.
    pub loss: Option<f64>,
    /// Largest relative difference of a gradient. Default: 1e-4 of the tensor's largest entry; in
    /// bf16, in relative L2 norm, 3 times the effect of rounding the weights to bf16.
    pub grads: Option<f64>,
    /// Compare gradients by relative L2 norm per tensor instead of by the largest entry. Always so
    /// in bf16. Default: false.
    pub grads_l2: bool,
    /// Share of positions whose logits must be within tolerance, 0 to 1. Default: 1; for models
    /// with BitLinear in fp32, where rounding is chaotic, 0.25, with a loss within 5e-3 and
    /// gradients within 0.05 in L2 norm, unless tolerances of logits or loss are given.
    pub logits_quantile: f64,
    /// With `logits_quantile` below 1, the largest absolute difference of logits at any position.
    /// Default: 0.5.
    pub logits_worst: f64,
}

impl Default for ToleranceOptions {
    fn default() -> Self {
        ToleranceOptions {
            logits: None,
            loss: None,
            grads: None,
            grads_l2: false,
            logits_quantile: 1.0,
            logits_worst: 0.5,
        }
    }
}

impl ToleranceOptions {
    /// The options for a model with BitLinear in fp32, where a disturbance of 1e-6 changes how many
    /// activations are rounded to 8 bits: what tests/fixtures/README.md allows ("BitNet"), unless
    /// tolerances were given.
    pub(super) fn for_bitlinear(self) -> Self {
        if self.logits_quantile < 1.0 || self.logits.is_some() || self.loss.is_some() {
            return self;
        }
        ToleranceOptions {
            logits_quantile: 0.25,
            loss: Some(BF16_LOSS_TERNARY),
            grads: self.grads.or(Some(0.05)),
            grads_l2: true,
            ..self
        }
    }
}

/// The tolerances that a comparison used.
#[derive(Debug, Default, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Tolerances {
    /// Absolute difference of logits.
    pub logits: f64,
    /// Relative difference of the loss.
    pub loss: f64,
    /// Relative difference of gradients.
    pub grads: f64,
    /// Whether gradients are compared by relative L2 norm instead of by the largest entry.
    pub grads_l2: bool,
}

/// What rounding the weights to bf16 costs in fp32.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundingEffect {
    /// Absolute difference of logits at the quantile that is compared.
    pub logits: f64,
    /// Relative L2 difference of gradients, the largest over tensors.
    pub grads_l2: f64,
    /// Whether the model has BitLinear layers.
    pub ternary: bool,
}

impl Tolerances {
    /// Tolerances of a computation in fp32.
    pub(super) fn fp32(options: &ToleranceOptions) -> Self {
        let usual =
            Tolerances { logits: 2e-4, loss: 2e-5, grads: 1e-4, grads_l2: options.grads_l2 };
        usual.replaced_by(options)
    }

    /// Tolerances of a computation in bf16.
    pub(super) fn bf16(effect: RoundingEffect, options: &ToleranceOptions) -> Self {
        let (factor, loss) = match effect.ternary {
            true => (BF16_FACTOR_TERNARY, BF16_LOSS_TERNARY),
            false => (BF16_FACTOR, BF16_LOSS),
        };
        let usual = Tolerances {
            logits: factor * effect.logits,
            loss,
            grads: factor * effect.grads_l2,
            grads_l2: true,
        };
        usual.replaced_by(options)
    }

    fn replaced_by(self, options: &ToleranceOptions) -> Self {
        Tolerances {
            logits: options.logits.unwrap_or(self.logits),
            loss: options.loss.unwrap_or(self.loss),
            grads: options.grads.unwrap_or(self.grads),
            grads_l2: self.grads_l2,
        }
    }
}
