//! Rotary position embedding on the CPU: one pass over rows in parallel chunks.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::RopeOp;
use crate::kernels::flex::{Rows, rows_per_task, tensor};

impl RopeOp for Flex {
    fn rope(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, inverse: bool) -> FlexTensor {
        let (x, cos, sin) = (Rows::new(x), Rows::new(cos), Rows::new(sin));
        let d = x.width();
        let (half, row) = (d / 2, d * x.shape[1]);
        let sign = if inverse { -1.0 } else { 1.0 };
        let mut out = vec![0f32; x.values().len()];
        let tokens = rows_per_task(row);
        out.par_chunks_mut(tokens * row)
            .zip(x.values().par_chunks(tokens * row))
            .zip(cos.values().par_chunks(tokens * d).zip(sin.values().par_chunks(tokens * d)))
            .for_each(|((o, x), (cos, sin))| {
                for ((o, x), (c, s)) in o
                    .chunks_exact_mut(row)
                    .zip(x.chunks_exact(row))
                    .zip(cos.chunks_exact(d).zip(sin.chunks_exact(d)))
                {
                    for (o, x) in o.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let ((o1, o2), (x1, x2)) = (o.split_at_mut(half), x.split_at(half));
                        for i in 0..half {
                            o1[i] = x1[i] * c[i] - sign * x2[i] * s[i];
                            o2[i] = x2[i] * c[half + i] + sign * x1[i] * s[half + i];
                        }
                    }
                }
            });
        tensor(out, &x.shape)
    }
}
