//! Learning rate as a function of progress: the share of the token budget (or of `max_steps`) that
//! is used up.
//!
//! In: progress in [0, 1] *after* the current step, so that the first step has a learning rate
//! above
//! 0. Out: a factor on the peak rate.

use crate::config::{Optim, Schedule};

/// Factor on the peak learning rate at `progress`.
pub(crate) fn factor(optim: &Optim, progress: f64) -> f64 {
    let p = progress.clamp(0.0, 1.0);
    let warm = optim.warmup_ratio;
    if warm > 0.0 && p < warm {
        return p / warm;
    }
    let low = optim.min_lr_ratio;
    match optim.schedule {
        Schedule::ConstantWithWarmup => 1.0,
        Schedule::Cosine => {
            let q = if warm < 1.0 { (p - warm) / (1.0 - warm) } else { 1.0 };
            low + (1.0 - low) * 0.5 * (1.0 + (std::f64::consts::PI * q).cos())
        }
        Schedule::Wsd => {
            let start = 1.0 - optim.decay_ratio;
            if p <= start || optim.decay_ratio <= 0.0 {
                1.0
            } else {
                1.0 - (1.0 - low) * (p - start) / optim.decay_ratio
            }
        }
    }
}
