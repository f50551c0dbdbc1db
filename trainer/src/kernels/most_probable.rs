//! The most probable token of each row of logits; composed, not part of a gradient tape.

use burn::prelude::*;

use crate::error::{Error, Result};

/// The most probable token after a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MostProbable {
    pub token: i64,
    /// Under softmax over the vocabulary, 0 to 1; NaN where a logit is.
    pub probability: f32,
}

/// The most probable token of each row of fp32 `logits` `[N, V]`, the first of equal ones; the
/// token `never` is left out. Two numbers a row are copied to the host.
///
/// # Errors
/// [`Error::Device`] when they cannot be.
pub(crate) fn most_probable(
    mut logits: Tensor<2>,
    never: Option<i64>,
) -> Result<Vec<MostProbable>> {
    let [count, vocab] = logits.dims();
    if let Some(id) = never.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab) {
        let floor = Tensor::full([count, 1], -1e30, (&logits.device(), logits.dtype()));
        logits = logits.slice_assign([0..count, id..id + 1], floor);
    }
    let (best, token) = logits.clone().max_dim_with_indices(1);
    let probability = (logits - best).exp().sum_dim(1).recip();
    let read =
        |error: String| Error::Device(format!("reading predicted tokens back failed: {error}"));
    let tokens = token.try_into_data().map_err(|error| read(error.to_string()))?;
    let probabilities = probability.try_into_data().map_err(|error| read(error.to_string()))?;
    Ok(tokens
        .iter::<i64>()
        .zip(probabilities.iter::<f32>())
        .map(|(token, probability)| MostProbable { token, probability })
        .collect())
}
