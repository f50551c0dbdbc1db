//! The range softmax and its gradient on the CPU: rows of scores in parallel.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::{COLUMNS, RangeSoftmaxOp};
use crate::kernels::flex::{as_f32, cast_back, ids};
use crate::kernels::simd;

impl RangeSoftmaxOp for Flex {
    fn range_softmax(scores: FlexTensor, ranges: FlexTensor, scale: f64) -> FlexTensor {
        let shape = scores.layout().shape().to_vec();
        let (heads, keys) = (shape[1] * shape[2] / shape[3].max(1), shape[3].max(1));
        let ranges = ids(ranges);
        let (scale, dtype) = (scale as f32, scores.dtype());
        let mut scores = as_f32(scores);
        scores.storage_mut::<f32>().par_chunks_exact_mut(keys).enumerate().for_each(|(row, p)| {
            let query = row / (heads * keys) * keys + row % keys;
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| ranges[query * COLUMNS + i]);
            // both ranges in one slice, so that one softmax covers them
            let mut seen: Vec<f32> = p[a..b].iter().chain(&p[c..d]).map(|s| s * scale).collect();
            simd::softmax(&mut seen);
            p.fill(0.0);
            p[a..b].copy_from_slice(&seen[..b - a]);
            p[c..d].copy_from_slice(&seen[b - a..]);
        });
        cast_back(scores, dtype)
    }

    fn range_softmax_backward(p: FlexTensor, dp: FlexTensor, scale: f64) -> FlexTensor {
        let keys = dp.layout().shape()[3].max(1);
        let (scale, dtype) = (scale as f32, dp.dtype());
        let (p, mut dp) = (as_f32(p), as_f32(dp));
        let rows = dp.storage_mut::<f32>().par_chunks_exact_mut(keys);
        rows.zip(p.storage::<f32>().par_chunks_exact(keys)).for_each(|(dp, p)| {
            let dot: f32 = p.iter().zip(dp.iter()).map(|(a, b)| a * b).sum();
            dp.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * scale);
        });
        cast_back(dp, dtype)
    }
}
