//! The mixture of losses on the CPU: rows in parallel.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::{DistillOp, Mixture};
use crate::kernels::flex::{Rows, ids, plain, tensor};
use crate::kernels::simd::{self, widest};

/// What is computed of a teacher's row once for all rows that are compared with it.
#[derive(Clone, Copy, Default)]
struct Teacher {
    /// Logarithm of the sum of the exponentials.
    log_sum: f32,
    best: usize,
}

impl DistillOp for Flex {
    fn distill(
        logits: FlexTensor,
        teacher: FlexTensor,
        rows: FlexTensor,
        targets: FlexTensor,
        mixture: Mixture,
    ) -> (FlexTensor, FlexTensor) {
        let (rows, targets) = (ids(rows), ids(targets));
        let mut logits = plain::<f32>(logits);
        let width = logits.layout().shape()[1].max(1);
        let teacher = Rows::new(teacher);
        let mut probable = teacher.values().to_vec();
        let of_teacher: Vec<Teacher> = probable
            .par_chunks_exact_mut(width)
            .map(|row| {
                let mut of_row = Teacher { best: first_of_most(row, mixture.never), log_sum: 0.0 };
                simd::scaled_softmax(row, 1.0, &mut of_row.log_sum);
                of_row
            })
            .collect();
        let mut judged = vec![0f32; targets.len() * 3];
        logits
            .storage_mut::<f32>()
            .par_chunks_exact_mut(width)
            .zip(judged.par_chunks_exact_mut(3))
            .zip(rows.par_iter().zip(&targets))
            .for_each(|((row, judged), (at, target))| {
                let span = at * width..(at + 1) * width;
                let (of_row, probable) = (of_teacher[*at], &probable[span.clone()]);
                let (best, logit) = (first_of_most(row, mixture.never), row[*target]);
                let (mut difference, mut log_sum) = (0.0, 0.0);
                mean_difference(probable, &teacher.values()[span], row, &mut difference);
                simd::scaled_softmax(row, mixture.scale as f32, &mut log_sum);
                judged[0] = log_sum - logit;
                judged[1] = difference - of_row.log_sum + log_sum;
                judged[2] = f32::from(u8::from(best == of_row.best));
                if mixture.teacher > 0.0 {
                    subtract(row, probable, (mixture.teacher * mixture.scale) as f32);
                }
                row[*target] -= ((1.0 - mixture.teacher) * mixture.scale) as f32;
            });
        (tensor(judged, &[targets.len(), 3]), logits)
    }
}

/// Where the largest number is, the first of equal ones; `never` is left out.
fn first_of_most(row: &[f32], never: usize) -> usize {
    let (mut most, mut at) = (f32::NEG_INFINITY, usize::MAX);
    for (i, v) in row.iter().enumerate() {
        if *v > most && i != never {
            (most, at) = (*v, i);
        }
    }
    at
}

widest! {
    /// `sum = Σ weights · (a - b)`, in sixteen lanes.
    fn mean_difference(weights: &[f32], a: &[f32], b: &[f32], sum: &mut f32) {
        const LANES: usize = 16;
        let mut lanes = [0f32; LANES];
        let whole = weights.len() / LANES * LANES;
        let parts = weights.chunks_exact(LANES).zip(a.chunks_exact(LANES)).zip(b.chunks_exact(LANES));
        for ((w, a), b) in parts {
            for (lane, ((w, a), b)) in lanes.iter_mut().zip(w.iter().zip(a).zip(b)) {
                *lane += w * (a - b);
            }
        }
        let rest = weights[whole..].iter().zip(&a[whole..]).zip(&b[whole..]);
        *sum = rest.map(|((w, a), b)| w * (a - b)).sum::<f32>() + lanes.iter().sum::<f32>();
    }
}

widest! {
    /// `row -= factor · other`.
    fn subtract(row: &mut [f32], other: &[f32], factor: f32) {
        row.iter_mut().zip(other).for_each(|(v, other)| *v -= factor * other);
    }
}
