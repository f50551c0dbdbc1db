//! Gradient norms: global-norm clipping, and z-score clipping that follows the run's own
//! statistics.
//!
//! ZClip (arXiv:2504.02507), "adaptive scaling": a norm whose z-score is above `z` is brought down
//! to `mean + z² / score` standard deviations, so that the larger the outlier, the less of it is
//! left; what enters the statistics is that bound. The first 25 norms only start the statistics.
//! The fixed bound `optim.clip_norm` holds besides, and the statistics do not see it. Held against
//! the published formulas in `tests/optim_reference.rs`.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::Optim;
use crate::error::{Error, Result};
use crate::kernels::cast::to_f32;
use crate::model::Gradients;

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
    let squares: Vec<Tensor<1>> =
        grads.0.iter().flatten().map(|g| to_f32(g.clone()).square().sum()).collect();
    if squares.is_empty() {
        return Ok(0.0);
    }
    let total: f32 = Tensor::cat(squares, 0)
        .sum()
        .try_into_scalar::<f32>()
        .map_err(|e| Error::Device(format!("reading the gradient norm back failed: {e}")))?;
    Ok(f64::from(total).sqrt())
}

/// Added to the standard deviation, as published.
const ZCLIP_EPS: f64 = 1e-6;

/// The factor to put on all gradients so that their norm keeps the bounds; updates the statistics.
pub fn factor(optim: &Optim, norm: f64, z: &mut ZState) -> f64 {
    let fixed = optim.clip_norm.unwrap_or(f64::INFINITY);
    let adaptive = if optim.zclip.enabled {
        zclip(optim.zclip.z, optim.zclip.alpha, norm, z)
    } else {
        f64::INFINITY
    };
    let bound = fixed.min(adaptive);
    if norm > bound { bound / (norm + 1e-6) } else { 1.0 }
}

/// The bound on `norm`, infinite where it is no outlier.
fn zclip(threshold: f64, alpha: f64, norm: f64, z: &mut ZState) -> f64 {
    if z.seen < ZCLIP_WARMUP {
        // mean and variance of what was seen (Welford)
        let (kept, old) = (z.seen as f64 / (z.seen + 1) as f64, z.mean);
        z.mean = kept * z.mean + (1.0 - kept) * norm;
        z.var = kept * z.var + (1.0 - kept) * (norm - old) * (norm - z.mean);
        z.seen += 1;
        return f64::INFINITY;
    }
    let std = z.var.sqrt();
    let score = (norm - z.mean) / (std + ZCLIP_EPS);
    let bound = if score > threshold {
        z.mean + threshold * std * threshold / score
    } else {
        f64::INFINITY
    };
    let entered = norm.min(bound);
    z.mean = alpha * z.mean + (1.0 - alpha) * entered;
    z.var = alpha * z.var + (1.0 - alpha) * (entered - z.mean).powi(2);
    z.seen += 1;
    bound
}
