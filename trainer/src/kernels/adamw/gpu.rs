//! AdamW as a CubeCL kernel.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{AdamwOp, AdamwStep};
use crate::kernels::cube::owned;

/// One unit per element.
#[cube(launch)]
fn adamw_kernel(
    w: &mut Tensor<f32>,
    m: &mut Tensor<f32>,
    v: &mut Tensor<f32>,
    g: &Tensor<f32>,
    keep: f32,
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    clip: f32,
    correction1: f32,
    correction2: f32,
) {
    if ABSOLUTE_POS >= w.len() {
        terminate!();
    }
    let g = g[ABSOLUTE_POS] * clip;
    let first = m[ABSOLUTE_POS] * beta1 + g * (1.0 - beta1);
    let second = v[ABSOLUTE_POS] * beta2 + g * g * (1.0 - beta2);
    m[ABSOLUTE_POS] = first;
    v[ABSOLUTE_POS] = second;
    w[ABSOLUTE_POS] =
        w[ABSOLUTE_POS] * keep - first / correction1 / ((second / correction2).sqrt() + eps) * lr;
}

impl AdamwOp for CubeBackend {
    fn adamw(
        w: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        s: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (w, m, v, g) = (owned(w), owned(m), owned(v), into_contiguous(g));
        let (client, n) = (w.client.clone(), w.meta.num_elements());
        let dim = CubeDim::new(&client, n);
        adamw_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, n, dim),
            dim,
            w.clone().into_tensor_arg(),
            m.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            g.into_tensor_arg(),
            1.0 - s.lr * s.decay,
            s.lr,
            s.beta1,
            s.beta2,
            s.eps,
            s.clip,
            s.correction1,
            s.correction2,
        );
        (w, m, v)
    }
}
