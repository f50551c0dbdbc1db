//! Gradient norms: global-norm clipping, and z-score clipping that follows the run's own statistics.
//!
//! Z-score clipping after ZClip (arXiv:2504.02507): a norm more than `z` standard deviations above the running mean is
//! brought down to that bound before it enters the statistics.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::Optim;
use crate::diffusion::objective::Gradients;
use crate::error::{Error, Result};
use crate::model::ops;

/// Steps whose norms start the statistics before z-score clipping acts.
const ZCLIP_WARMUP: u64 = 25;

/// Running mean and variance of the gradient norm; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ZState {
    /// Norms seen.
    pub seen: u64,
    /// Running mean.
    pub mean: f64,
    /// Running variance.
    pub var: f64,
}

/// Global L2 norm over all gradients, fp32 on the device, one readback.
pub fn global_norm(grads: &Gradients) -> Result<f64> {
    let squares: Vec<Tensor<1>> = grads.0.iter().flatten().map(|g| ops::to_f32(g.clone()).square().sum()).collect();
    if squares.is_empty() {
        return Ok(0.0);
    }
    let total: f32 = Tensor::cat(squares, 0)
        .sum()
        .try_into_scalar::<f32>()
        .map_err(|e| Error::Device(format!("reading the gradient norm back failed: {e}")))?;
    Ok(f64::from(total).sqrt())
}

/// The factor to put on all gradients so that their norm keeps the bounds; updates the statistics.
pub fn factor(optim: &Optim, norm: f64, z: &mut ZState) -> f64 {
    let mut bound = optim.clip_norm.unwrap_or(f64::INFINITY);
    if optim.zclip.enabled {
        if z.seen >= ZCLIP_WARMUP {
            bound = bound.min(z.mean + optim.zclip.z * z.var.sqrt());
        }
        let entered = norm.min(bound);
        let a = if z.seen < ZCLIP_WARMUP { z.seen as f64 / (z.seen + 1) as f64 } else { optim.zclip.alpha };
        let old = z.mean;
        z.mean = a * z.mean + (1.0 - a) * entered;
        z.var = a * z.var + (1.0 - a) * (entered - old) * (entered - z.mean);
        z.seen += 1;
    }
    if norm > bound { bound / (norm + 1e-6) } else { 1.0 }
}
