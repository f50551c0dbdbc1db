//! Cross-entropy on the CPU: rows in parallel.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element};
use half::{bf16, f16};
use rayon::prelude::*;

use super::CrossEntropyOp;
use crate::kernels::flex::{ids, plain, tensor};
use crate::kernels::simd;

impl CrossEntropyOp for Flex {
    fn cross_entropy(
        logits: FlexTensor,
        targets: FlexTensor,
        scale: f64,
    ) -> (FlexTensor, FlexTensor) {
        let targets = ids(targets);
        match logits.dtype() {
            DType::BF16 => {
                halves::<bf16>(logits, &targets, scale as f32, bf16::to_f32, bf16::from_f32)
            }
            DType::F16 => halves::<f16>(logits, &targets, scale as f32, f16::to_f32, f16::from_f32),
            _ => {
                let mut logits = plain::<f32>(logits);
                let width = logits.layout().shape()[1].max(1);
                let mut losses = vec![0f32; targets.len()];
                let rows = logits.storage_mut::<f32>().par_chunks_exact_mut(width);
                rows.zip(&mut losses)
                    .zip(&targets)
                    .for_each(|((row, loss), target)| *loss = one_row(row, *target, scale as f32));
                (tensor(losses, &[targets.len()]), logits)
            }
        }
    }
}

/// The loss of a row of logits; the gradient is written over the logits.
fn one_row(row: &mut [f32], target: usize, scale: f32) -> f32 {
    let (logit, mut log_sum) = (row[target], 0.0);
    simd::scaled_softmax(row, scale, &mut log_sum);
    row[target] -= scale;
    log_sum - logit
}

/// Half-precision logits: each row is computed in fp32 and rounded back.
fn halves<E: Element + bytemuck::Pod + Send + Sync>(
    logits: FlexTensor,
    targets: &[usize],
    scale: f32,
    get: fn(E) -> f32,
    put: fn(f32) -> E,
) -> (FlexTensor, FlexTensor) {
    let mut logits = plain::<E>(logits);
    let width = logits.layout().shape()[1].max(1);
    let mut losses = vec![0f32; targets.len()];
    let rows = logits.storage_mut::<E>().par_chunks_exact_mut(width);
    rows.zip(&mut losses).zip(targets).for_each_init(
        Vec::new,
        |scratch: &mut Vec<f32>, ((row, loss), target)| {
            scratch.clear();
            scratch.extend(row.iter().map(|v| get(*v)));
            *loss = one_row(scratch, *target, scale);
            row.iter_mut().zip(scratch).for_each(|(v, s)| *v = put(*s));
        },
    );
    (tensor(losses, &[targets.len()]), logits)
}
