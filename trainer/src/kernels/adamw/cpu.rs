//! AdamW on the CPU: fixed chunks in parallel, each in one vectorised pass.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::{AdamwOp, AdamwStep};
use crate::kernels::flex::{CHUNK, plain};
use crate::kernels::simd::widest;

impl AdamwOp for Flex {
    fn adamw(
        w: FlexTensor,
        m: FlexTensor,
        v: FlexTensor,
        g: FlexTensor,
        s: AdamwStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (mut w, mut m, mut v, g) =
            (plain::<f32>(w), plain::<f32>(m), plain::<f32>(v), plain::<f32>(g));
        {
            let (w, m, v) =
                (w.storage_mut::<f32>(), m.storage_mut::<f32>(), v.storage_mut::<f32>());
            let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
            let each =
                w.par_chunks_mut(CHUNK).zip(moments).zip(g.storage::<f32>().par_chunks(CHUNK));
            each.for_each(|((w, (m, v)), g)| update(w, m, v, g, s));
        }
        (w, m, v)
    }
}

widest! {
    /// One AdamW update of a slice of weights and moments, in place.
    fn update(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: AdamwStep) {
        let keep = 1.0 - s.lr * s.decay;
        for ((w, g), (m, v)) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            let g = g * s.clip;
            *m = *m * s.beta1 + g * (1.0 - s.beta1);
            *v = *v * s.beta2 + g * g * (1.0 - s.beta2);
            let denominator = (*v / s.correction2).sqrt() + s.eps;
            *w = *w * keep - *m / s.correction1 / denominator * s.lr;
        }
    }
}
