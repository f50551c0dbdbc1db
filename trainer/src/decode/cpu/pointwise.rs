//! What happens between the products: norms, rounding of BitLinear's inputs, rotary embedding,
//! softmax; all on activations in groups, `[n / PANEL, rows, PANEL]`.

use std::ops::Range;

use crate::kernels::panels::{PANEL, Row};
use crate::kernels::simd::{exp, widest};
use crate::model::ModelConfig;

widest! {
    /// RMSNorm of every row; `width` values of a row count. `weight` is padded with zeros.
    pub(super) fn rms_norm(x: &[f32], weight: &[f32], rows: usize, width: usize, eps: f32, out: &mut [f32]) {
        let (x, weight, out) = (x.as_chunks::<PANEL>().0, weight.as_chunks::<PANEL>().0, out.as_chunks_mut::<PANEL>().0);
        for row in 0..rows {
            let mut lanes = [0f32; PANEL];
            for x in x.iter().skip(row).step_by(rows) {
                lanes.iter_mut().zip(x).for_each(|(lane, v)| *lane += v * v);
            }
            let scale = 1.0 / (lanes.iter().sum::<f32>() / width as f32 + eps).sqrt();
            let each = x.iter().skip(row).step_by(rows).zip(out.iter_mut().skip(row).step_by(rows));
            for ((x, out), weight) in each.zip(weight) {
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * weight;
                }
            }
        }
    }
}

/// Rounds every row to int8 by its largest size, as BitLinear does with its input.
pub(super) fn round_to_int8(x: &mut [f32], rows: usize) {
    let (x, _) = x.as_chunks_mut::<PANEL>();
    for row in 0..rows {
        let largest = x.iter().skip(row).step_by(rows).flatten().fold(0f32, |m, v| m.max(v.abs()));
        let scale = 1.0 / largest.max(1e-5) * 127.0;
        for v in x.iter_mut().skip(row).step_by(rows).flatten() {
            *v = (*v * scale).round_ties_even().clamp(-128.0, 127.0) / scale;
        }
    }
}

/// RMSNorm of one head.
pub(super) fn norm_head(x: &mut [f32], weight: &[f32], eps: f32) {
    let squares: f32 = x.iter().map(|v| v * v).sum();
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
}

widest! {
    /// Exponentials of the first `seen` scores of a row, relative to the largest, in place; zeros
    /// behind them. `sum` becomes their sum.
    pub(super) fn exponentials(scores: &mut [Row], row: usize, rows: usize, seen: usize, sum: &mut f32) {
        let mut lanes = [f32::NEG_INFINITY; PANEL];
        for (group, scores) in scores.iter_mut().skip(row).step_by(rows).enumerate() {
            let seen = seen.saturating_sub(group * PANEL);
            if seen < PANEL {
                scores.iter_mut().skip(seen).for_each(|v| *v = f32::NEG_INFINITY);
            }
            for (lane, v) in lanes.iter_mut().zip(scores) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        let most = lanes.iter().fold(f32::NEG_INFINITY, |most, v| if *v > most { *v } else { most });
        let mut sums = [0f32; PANEL];
        for (group, scores) in scores.iter_mut().skip(row).step_by(rows).enumerate() {
            for v in scores.iter_mut() {
                *v = exp(*v - most);
            }
            let seen = seen.saturating_sub(group * PANEL);
            if seen < PANEL {
                scores.iter_mut().skip(seen).for_each(|v| *v = 0.0);
            }
            sums.iter_mut().zip(scores).for_each(|(sum, v)| *sum += *v);
        }
        *sum = sums.iter().sum();
    }
}

/// Sets some scores of a row.
pub(super) fn set(scores: &mut [Row], row: usize, rows: usize, at: Range<usize>, value: f32) {
    for i in at {
        scores[i / PANEL * rows + row][i % PANEL] = value;
    }
}

/// Cosines and sines by position.
pub(super) struct Rotary {
    frequencies: Vec<f32>,
    /// Of each position and frequency.
    table: Vec<(f32, f32)>,
}

impl Rotary {
    pub(super) fn new(c: &ModelConfig) -> Self {
        let frequencies = c.inv_freq().iter().map(|f| *f as f32).collect();
        Rotary { frequencies, table: Vec::new() }
    }

    /// Makes the table hold `positions` positions.
    pub(super) fn extend(&mut self, positions: usize) {
        let half = self.frequencies.len().max(1);
        for position in self.table.len() / half..positions {
            // an fp32 product as in transformers, so that large positions round the same way
            let angles = self.frequencies.iter().map(|f| f64::from(position as f32 * f));
            self.table.extend(angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)));
        }
    }

    /// Rotates one head at a position of the table.
    pub(super) fn rotate(&self, position: usize, head: &mut [f32]) {
        let half = self.frequencies.len();
        let (first, second) = head.split_at_mut(half);
        let turns = &self.table[position * half..(position + 1) * half];
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Copies the values `first..first + out.len()` of a row.
pub(super) fn gather(x: &[f32], rows: usize, row: usize, first: usize, out: &mut [f32]) {
    let mut at = first;
    let mut out = out;
    while !out.is_empty() {
        let lane = at % PANEL;
        let count = (PANEL - lane).min(out.len());
        let (now, rest) = out.split_at_mut(count);
        let from = (at / PANEL * rows + row) * PANEL + lane;
        now.copy_from_slice(&x[from..from + count]);
        at += count;
        out = rest;
    }
}

/// Sets the values `first..first + values.len()` of a row.
pub(super) fn scatter(x: &mut [f32], rows: usize, row: usize, first: usize, values: &[f32]) {
    let mut at = first;
    let mut values = values;
    while !values.is_empty() {
        let lane = at % PANEL;
        let (now, rest) = values.split_at((PANEL - lane).min(values.len()));
        let to = (at / PANEL * rows + row) * PANEL + lane;
        x[to..to + now.len()].copy_from_slice(now);
        at += now.len();
        values = rest;
    }
}
