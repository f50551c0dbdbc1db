//! Differences between computed and expected tensors.
//!
//! In: values in the same order, fp32. Out: the largest differences. A NaN on either side counts as
//! an infinite difference.

use std::path::Path;

use safetensors::SafeTensors;

use crate::compute::tensor_io::{decode_floats, download};
use crate::error::{Error, Result};
use crate::kernels::cast::to_f32;
use crate::model::checkpoint_file::check_header;
use crate::model::{Decoder, Gradients};

/// Added to the tolerance of a gradient's largest entry: entries below this are noise.
const GRADIENT_NOISE: f64 = 1e-6;

/// Largest absolute differences of logits over the positions that are compared.
pub(super) struct LogitDifferences {
    /// At any position.
    pub worst: f64,
    /// At the position that the given share of positions does not exceed.
    pub at_quantile: f64,
}

/// Compares logits `[N, vocab]`; `compared` says for each of the N positions whether it counts.
pub(super) fn logits(
    computed: &[f32],
    expected: &[f32],
    vocab: usize,
    compared: impl Fn(usize) -> bool,
    quantile: f64,
) -> LogitDifferences {
    let mut by_position: Vec<f64> = computed
        .chunks(vocab)
        .zip(expected.chunks(vocab))
        .enumerate()
        .filter(|(position, _)| compared(*position))
        .map(|(_, (a, b))| largest_difference(a, b))
        .collect();
    by_position.sort_by(f64::total_cmp);
    let count = by_position.len();
    let rank = ((count as f64 * quantile.clamp(0.0, 1.0)).ceil() as usize).clamp(1, count.max(1));
    LogitDifferences {
        worst: by_position.last().copied().unwrap_or(0.0),
        at_quantile: by_position.get(rank - 1).copied().unwrap_or(0.0),
    }
}

/// Largest differences of gradients over all parameters.
#[derive(Default)]
pub(super) struct GradientDifferences {
    /// Largest difference of an entry, relative to the largest entry of the expected tensor.
    pub max_rel: f64,
    /// Largest L2 norm of a tensor's difference, relative to the norm of the expected tensor.
    pub max_l2: f64,
    /// The parameter with the largest `max_rel`.
    pub worst: Option<String>,
    /// Parameters whose gradient was compared.
    pub compared: usize,
}

/// Compares gradients with those of a safetensors file that holds one tensor per parameter name,
/// for all parameters or for some of them. A computed gradient that is absent counts as all zeros.
pub(super) fn gradients(
    file: &Path,
    decoder: &Decoder,
    gradients: &Gradients,
) -> Result<GradientDifferences> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, "reading the gradients", e))?;
    check_header(file, &bytes)?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|e| Error::format(file, e.to_string()))?;
    let (params, trained) = (&decoder.params, decoder.params.trained());
    let known: Vec<&str> = params.trained_specs().iter().map(|spec| spec.name.as_str()).collect();
    if let Some(name) = tensors.names().into_iter().find(|name| !known.contains(name)) {
        return Err(Error::format(
            file,
            format!(
                "holds {name}, which is no trained parameter of the model; expected names such as {}",
                known[0]
            ),
        ));
    }
    let mut differences = GradientDifferences::default();
    for (spec, gradient) in params.trained_specs().iter().zip(&gradients.0[trained]) {
        let Ok(view) = tensors.tensor(&spec.name) else { continue };
        differences.compared += 1;
        let expected = decode_floats(view.dtype(), view.data()).ok_or_else(|| {
            Error::format(file, format!("{} is {:?}; expected floats", spec.name, view.dtype()))
        })?;
        let computed = match gradient {
            Some(gradient) => download(&to_f32(gradient.clone()))?,
            None => vec![0.0; spec.numel()],
        };
        if computed.len() != expected.len() {
            return Err(Error::format(
                file,
                format!("{} has {} values, expected {}", spec.name, expected.len(), computed.len()),
            ));
        }
        let largest = expected.iter().fold(0f64, |max, v| max.max(f64::from(v.abs())));
        let excess = (largest_difference(&computed, &expected) - GRADIENT_NOISE).max(0.0);
        let relative = excess / largest.max(1e-30);
        let error = norm(computed.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
        let l2 = error / norm(expected.iter().map(|v| f64::from(*v))).max(1e-30);
        differences.max_l2 = max_or_infinite(differences.max_l2, l2);
        if relative >= differences.max_rel {
            differences.max_rel = relative;
            differences.worst = Some(spec.name.clone());
        }
    }
    match differences.compared {
        0 => Err(Error::format(file, "holds no gradients; expected one tensor per parameter")),
        _ => Ok(differences),
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from((x - y).abs())).fold(0.0, max_or_infinite)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn max_or_infinite(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_taken_over_compared_positions() {
        let expected = [0.0; 8];
        let computed = [0.1, 0.0, 0.4, 0.0, 0.2, 0.3, 9.0, 0.0];
        let all = logits(&computed, &expected, 2, |position| position < 3, 1.0);
        assert_eq!((all.worst as f32, all.at_quantile as f32), (0.4, 0.4));
        let half = logits(&computed, &expected, 2, |position| position < 3, 0.5);
        assert_eq!((half.worst as f32, half.at_quantile as f32), (0.4, 0.3));
        let none = logits(&computed, &expected, 2, |_| false, 1.0);
        assert_eq!((none.worst, none.at_quantile), (0.0, 0.0));
    }

    #[test]
    fn nan_is_an_infinite_difference() {
        let differences = logits(&[f32::NAN, 0.0], &[0.0, 0.0], 2, |_| true, 1.0);
        assert_eq!(differences.worst, f64::INFINITY);
    }
}
