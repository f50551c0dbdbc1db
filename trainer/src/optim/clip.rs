//! Clipping by the global gradient norm: a fixed bound, and z-score clipping by the run's own
//! statistics.
//!
//! ZClip (arXiv:2504.02507), "adaptive scaling": a norm whose z-score is above `z` is reduced to
//! the mean plus `z² / score` standard deviations, so larger outliers are reduced more; the reduced
//! norm enters the statistics. The first 25 norms only initialise the statistics. The fixed bound
//! `optim.clip_norm` applies as well, without effect on the statistics. `tests/optim_reference.rs`
//! compares this with the published formulas.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::Optim;
use crate::error::{Error, Result};
use crate::kernels::cast::to_f32;
use crate::model::Gradients;

/// Steps whose norms initialise the statistics before z-score clipping starts.
const ZCLIP_WARMUP: u64 = 25;

/// Running mean and variance of the gradient norm; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ZState {
    /// Number of norms in the statistics.
    pub seen: u64,
    pub mean: f64,
    pub var: f64,
}

/// Global L2 norm over all gradients, computed in fp32 on the device and read back once.
pub(crate) fn global_norm(grads: &Gradients) -> Result<f64> {
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

/// The factor on all gradients that keeps their norm within the bounds; updates the statistics.
pub(crate) fn factor(optim: &Optim, norm: f64, z: &mut ZState) -> f64 {
    let fixed = optim.clip_norm.unwrap_or(f64::INFINITY);
    let adaptive = if optim.zclip.enabled {
        zclip(optim.zclip.z, optim.zclip.alpha, norm, z)
    } else {
        f64::INFINITY
    };
    let bound = fixed.min(adaptive);
    if norm > bound { bound / (norm + 1e-6) } else { 1.0 }
}

/// The bound on `norm`; infinite unless it is an outlier.
fn zclip(threshold: f64, alpha: f64, norm: f64, z: &mut ZState) -> f64 {
    if z.seen < ZCLIP_WARMUP {
        // running mean and variance (Welford)
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
