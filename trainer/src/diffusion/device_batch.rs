//! A batch on the device, ready for the decoder.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::DType;

use super::batch::Batch;
use crate::attention::{TilePlan, ranges};
use crate::compute::{Attention, ComputePlan};
use crate::error::Result;
use crate::kernels::RowIndex;
use crate::kernels::cast::cast_to;
use crate::model::{AttentionPlan, Context, Decoder};

/// The inputs of one micro-batch.
pub(crate) struct DeviceBatch {
    pub(super) ids: Tensor<1, Int>,
    pub(super) cx: Context,
    pub(super) at: Vec<i32>,
    pub(super) targets: Vec<i32>,
    /// For each target the clean token that predicts the same one; empty where it is not asked
    /// what that says.
    pub(super) teachers: Vec<i32>,
    /// For each target the number of masks of its run before the one that predicts it, where there
    /// are teachers.
    pub(super) distances: Vec<usize>,
    /// The row of the embedding table of each stream token.
    pub(super) embedded: RowIndex,
    /// The stream position at which each target is predicted.
    pub(super) predicted: RowIndex,
}

impl DeviceBatch {
    /// Copies a batch to the device of `plan`, with the mask, ranges or tiles of its attention.
    pub(crate) fn upload(decoder: &Decoder, batch: &Batch, plan: &ComputePlan) -> Result<Self> {
        let (device, dtype) = (&plan.device.device, plan.dtype.burn());
        let (cos, sin) =
            decoder.rope_tables(&batch.positions(), batch.rows, batch.len, dtype, device);
        let mask = match plan.attention {
            Attention::Dense => AttentionPlan::Dense(Tensor::<4, Bool>::from_data(
                TensorData::new(batch.dense_mask(), [batch.rows, 1, batch.len, batch.len]),
                device,
            )),
            Attention::Ranges => AttentionPlan::Ranges(int_tensor(
                &ranges::table(&batch.tiles, batch.tokens.len(), batch.len),
                device,
            )),
            Attention::Tiles => {
                let tokens = batch.tokens.len();
                AttentionPlan::Tiles(Arc::new(TilePlan::new(&batch.tiles, tokens, tokens)?))
            }
        };
        let is_gated = decoder.params.lora.as_ref().is_some_and(|lora| lora.shape.gated);
        let gate = is_gated.then(|| {
            let data = TensorData::new(batch.noised(), [batch.tokens.len(), 1]);
            cast_to(Tensor::<2>::from_data(data, (device, DType::F32)), dtype)
        });
        let ids = batch.ids();
        let at: Vec<i32> = batch.targets.iter().map(|t| t.at as i32).collect();
        Ok(DeviceBatch {
            embedded: RowIndex::new(&ids, device),
            predicted: RowIndex::new(&at, device),
            ids: int_tensor(&ids, device),
            cx: Context { batch: batch.rows, len: batch.len, cos, sin, mask, dtype, gate },
            at,
            targets: batch.targets.iter().map(|t| t.id).collect(),
            teachers: batch.teachers.iter().map(|teacher| *teacher as i32).collect(),
            distances: if batch.teachers.is_empty() { Vec::new() } else { batch.distances() },
        })
    }
}

/// `[N]` on the device.
pub(super) fn int_tensor(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
