//! The objective: which loss is taken, and its gradient. **This is the file that makes the model a
//! diffusion model.**
//!
//! In: packed rows with masks, weights. Out: the *sum* of cross-entropies over counted targets and,
//! where asked, its gradient; the caller divides by the number of counted targets of the whole
//! optimizer step (both views, all micro-batches), as Fast-dLLM v2 does (no 1/t weight).
//!
//! Masking happens here, in the training forward pass, not in the data: see `docs/objective.md`.
//! Formal definition: DESIGN section 5; layouts in [`super::layout`]; noise in
//! [`dlm_datasets::mask`].

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::activation::log_softmax;

use super::batch::Batch;
use super::layout::{self, ObjectiveSpec, PackedRow};
use crate::attention::ranges;
use crate::attention::tiles::TilePlan;
use crate::error::{Error, Result};
use crate::kernels::ops;
use crate::kernels::{self, RowIndex};
use crate::model::{AttentionPlan, Context, Decoder, Weights};

/// Which objective is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Noised copies next to clean ones, complementary views (the default).
    BlockDiffusion(Layout),
    /// Plain causal next-token loss on responses.
    Sft,
}

/// How the block-diffusion streams are laid out; both give the same loss and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Per view `[x_t ; x_0]`: 4L tokens a row.
    Reference,
    /// Shared clean copy, nothing that is not needed.
    Saving,
}

/// How the streams of a micro-batch lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamShape {
    /// End to end in one row, no padding: for attention by tiles.
    Flat,
    /// One stream a row, lengths rounded up to a multiple: for dense masks and static shapes.
    Rectangular {
        /// Of the stream length.
        multiple: usize,
    },
}

/// Who computes attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Materialised scores under a dense mask, any device and dtype: the obvious form.
    Dense,
    /// Materialised scores, softmax over key ranges in one pass, any device and dtype.
    Ranges,
    /// By tiles, without a mask (CPU, fp32).
    Tiles,
}

impl Attention {
    /// The fastest that a device and dtype have.
    pub fn best(device: &Device, dtype: DType) -> Self {
        if *device == Device::flex() && dtype == DType::F32 {
            Attention::Tiles
        } else {
            Attention::Ranges
        }
    }
}

/// Build the decoder's batch for rows with their masks (`hidden[row][position]`, unused for
/// [`Objective::Sft`]).
pub fn build_batch(
    objective: Objective,
    rows: &[PackedRow],
    hidden: &[Vec<bool>],
    spec: &ObjectiveSpec,
    shape: StreamShape,
) -> Batch {
    let mut streams = Vec::with_capacity(rows.len() * 2);
    for (i, row) in rows.iter().enumerate() {
        match objective {
            Objective::BlockDiffusion(Layout::Reference) => {
                streams.extend(layout::reference(row, &hidden[i], spec))
            }
            Objective::BlockDiffusion(Layout::Saving) => {
                streams.push(layout::saving(row, &hidden[i], spec))
            }
            Objective::Sft => streams.push(layout::causal(row, spec)),
        }
    }
    let causal = objective == Objective::Sft;
    if objective == Objective::BlockDiffusion(Layout::Reference) {
        // view A rows first, then view B, as in the reference implementation
        let views = streams.len() / rows.len().max(1);
        let streams: Vec<_> = (0..views)
            .flat_map(|v| streams.iter().skip(v).step_by(views).cloned().collect::<Vec<_>>())
            .collect();
        return Batch::rectangular(&streams, 1, causal);
    }
    match shape {
        StreamShape::Flat => Batch::flat(&streams, 1, causal),
        StreamShape::Rectangular { multiple } => Batch::rectangular(&streams, multiple, causal),
    }
}

/// Number of targets a row contributes, without building its layout: every labelled token that is
/// not the first of its document, once over both views.
pub fn counted(
    row: &PackedRow,
    spec: &ObjectiveSpec,
    objective: Objective,
    hidden: Option<&[bool]>,
) -> usize {
    let one_view = matches!(objective, Objective::BlockDiffusion(_)) && !spec.complementary;
    let whole = [(0, row.input_ids.len())];
    let documents: &[(usize, usize)] = match spec.document_mask {
        layout::DocumentMask::Document => &row.documents,
        layout::DocumentMask::Hub => &whole,
    };
    documents
        .iter()
        .flat_map(|&(start, n)| start + 1..start + n)
        .filter(|&i| row.labels[i] != layout::IGNORE && (!one_view || hidden.is_some_and(|h| h[i])))
        .count()
}

/// How a forward and backward pass is run.
#[derive(Clone, Copy, Debug)]
pub struct PassOptions {
    /// Compute dtype; weights are fp32 masters.
    pub dtype: DType,
    /// Who computes attention.
    pub attention: Attention,
    /// Keep only layer inputs and run each layer again in the backward pass.
    pub recompute: bool,
    /// Rows of logits computed at a time; bounds the `[rows, vocab_size]` buffers.
    pub loss_chunk: usize,
}

/// Prepared inputs of one micro-batch on the device.
pub struct DeviceBatch {
    ids: Tensor<1, Int>,
    cx: Context,
    at: Vec<i32>,
    targets: Vec<i32>,
    /// Which row of the embedding table each stream token came from.
    embedded: RowIndex,
    /// Which stream position each target is predicted at.
    predicted: RowIndex,
}

/// Move a batch to the device.
pub fn upload(
    decoder: &Decoder,
    batch: &Batch,
    dtype: DType,
    attention: Attention,
    device: &Device,
) -> DeviceBatch {
    let (cos, sin) = decoder.rope_tables(&batch.positions(), batch.rows, batch.len, dtype, device);
    let mask = match attention {
        Attention::Dense => AttentionPlan::Dense(Tensor::<4, Bool>::from_data(
            TensorData::new(batch.dense_mask(), [batch.rows, 1, batch.len, batch.len]),
            device,
        )),
        Attention::Ranges => AttentionPlan::Ranges(int_tensor(
            &ranges::table(&batch.tiles, batch.tokens.len(), batch.len),
            device,
        )),
        Attention::Tiles => {
            AttentionPlan::Tiles(Arc::new(TilePlan::new(&batch.tiles, batch.tokens.len())))
        }
    };
    let ids = batch.ids();
    let at: Vec<i32> = batch.targets.iter().map(|t| t.at as i32).collect();
    DeviceBatch {
        embedded: RowIndex::new(&ids, device),
        predicted: RowIndex::new(&at, device),
        ids: int_tensor(&ids, device),
        cx: Context { batch: batch.rows, len: batch.len, cos, sin, mask, dtype },
        at,
        targets: batch.targets.iter().map(|t| t.id).collect(),
    }
}

/// The obvious form of [`kernels::cross_entropy`], for losses alone: sum of cross-entropies of
/// logits `[N, V]` (fp32) against `targets` `[N]`.
fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [n, _] = logits.dims();
    log_softmax(logits, 1).gather(1, targets.reshape([n, 1])).sum().neg()
}

fn int_tensor(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn scalar(t: Tensor<1>) -> Result<f64> {
    let v: f32 = t
        .try_into_scalar::<f32>()
        .map_err(|e| Error::Device(format!("reading the loss back failed: {e}")))?;
    Ok(f64::from(v))
}

/// Loss sum without gradients.
pub fn loss_sum(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
) -> Result<f64> {
    if inputs.at.is_empty() {
        return Ok(0.0);
    }
    let device = inputs.ids.device();
    let h = decoder.hidden(w, inputs.ids.clone(), &inputs.cx);
    let h = h.select(0, int_tensor(&inputs.at, &device));
    let mut total = 0.0;
    for first in (0..inputs.at.len()).step_by(opts.loss_chunk.max(1)) {
        let end = (first + opts.loss_chunk.max(1)).min(inputs.at.len());
        let logits = decoder.logits(w, h.clone().slice([first..end]));
        total +=
            scalar(cross_entropy_sum(logits, int_tensor(&inputs.targets[first..end], &device)))?;
    }
    Ok(total)
}

/// Gradients per parameter, `None` where a parameter took no part yet.
pub struct Gradients(pub Vec<Option<Tensor<2>>>);

impl Gradients {
    /// No gradients yet for `n` parameters.
    pub fn new(n: usize) -> Self {
        Gradients((0..n).map(|_| None).collect())
    }

    /// Add `source` `[N, D]` to rows of parameter `i`, which is like `weight`.
    fn add_rows(&mut self, i: usize, source: Tensor<2>, rows: &RowIndex, weight: &Tensor<2>) {
        let table = self.0[i].take().map_or_else(
            || Tensor::zeros(weight.dims(), (&weight.device(), DType::F32)),
            ops::to_f32,
        );
        self.0[i] = Some(kernels::add_rows(table, source, rows));
    }

    fn add(&mut self, i: usize, g: Tensor<2>) {
        self.0[i] = Some(match self.0[i].take() {
            Some(old) => old + g,
            None => g,
        });
    }

    fn take_from(
        &mut self,
        w: &Weights,
        grads: &mut burn::tensor::Gradients,
        which: impl Iterator<Item = usize>,
    ) {
        for i in which {
            if let Some(g) = w[i].grad_remove(grads) {
                self.add(i, g);
            }
        }
    }
}

/// Loss sum, with `scale ·` its gradient added to `into` (`scale` = 1 / counted targets of the
/// optimizer step).
pub fn loss_and_gradients(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
    scale: f64,
    into: &mut Gradients,
) -> Result<f64> {
    if inputs.at.is_empty() {
        return Ok(0.0);
    }
    let device = inputs.ids.device();
    let layers = decoder.params.layers.len();
    let cx = inputs.cx.tracked();
    let tracked = w.tracked();

    // Forward to the hidden states. With recomputation only the layer inputs are kept, else the
    // whole tape.
    let embedded = decoder.embed(w, inputs.ids.clone(), opts.dtype);
    let mut layer_inputs: Vec<Tensor<2>> = Vec::new();
    let mut tape: Option<(Tensor<2>, Tensor<2>)> = None;
    let hidden = if opts.recompute {
        let mut x = embedded;
        for i in 0..layers {
            let y = decoder.layer(w, i, x.clone(), &inputs.cx);
            layer_inputs.push(x);
            x = y;
        }
        x
    } else {
        let leaf = embedded.autodiff().require_grad();
        let h = decoder.layers(&tracked, leaf.clone(), &cx);
        let inner = h.clone().inner();
        tape = Some((leaf, h));
        inner
    };
    let [tokens, width] = hidden.dims();

    // Final norm and head where something is predicted; the gradient of the logits comes with the
    // loss.
    let picked = hidden.select(0, int_tensor(&inputs.at, &device)).autodiff().require_grad();
    let normed = decoder.final_norm(&tracked, picked.clone());
    let states = normed.clone().inner();
    let head = ops::cast_to(w[decoder.params.lm_head].clone(), opts.dtype);
    let mut losses: Vec<Tensor<1>> = Vec::new();
    let mut d_states: Vec<Tensor<2>> = Vec::new();
    for first in (0..inputs.at.len()).step_by(opts.loss_chunk.max(1)) {
        let end = (first + opts.loss_chunk.max(1)).min(inputs.at.len());
        let x = states.clone().slice([first..end]);
        let logits = ops::linear(x.clone(), &head, None);
        let (loss, d_logits) =
            kernels::cross_entropy(logits, int_tensor(&inputs.targets[first..end], &device), scale);
        losses.push(loss);
        d_states.push(d_logits.clone().matmul(head.clone()));
        into.add(decoder.params.lm_head, ops::to_f32(d_logits.transpose().matmul(x)));
    }
    let mut g = (normed * Tensor::cat(d_states, 0).autodiff()).sum().backward();
    let d_picked = picked
        .grad_remove(&mut g)
        .ok_or_else(|| Error::Numeric("no gradient reached the hidden states".into()))?;
    into.take_from(&tracked, &mut g, std::iter::once(decoder.params.norm));

    // A stream position can predict for both views, so gradients of equal positions add up.
    let nothing = Tensor::<2>::zeros([tokens, width], (&device, DType::F32));
    let mut upstream =
        ops::cast_to(kernels::add_rows(nothing, d_picked, &inputs.predicted), opts.dtype);
    if let Some((leaf, h)) = tape {
        let mut g = (h * upstream.autodiff()).sum().backward();
        upstream = leaf
            .grad_remove(&mut g)
            .ok_or_else(|| Error::Numeric("no gradient reached the embeddings".into()))?;
        into.take_from(&tracked, &mut g, 0..w.0.len());
    } else {
        for i in (0..layers).rev() {
            let Some(x) = layer_inputs.pop() else { break };
            let x = x.autodiff().require_grad();
            let y = decoder.layer(&tracked, i, x.clone(), &cx);
            let mut g = (y * upstream.autodiff()).sum().backward();
            upstream = x.grad_remove(&mut g).ok_or_else(|| {
                Error::Numeric(format!("no gradient reached the input of layer {i}"))
            })?;
            into.take_from(&tracked, &mut g, decoder.params.layers[i].range.clone());
        }
    }
    let table = decoder.params.embed_tokens;
    into.add_rows(table, upstream, &inputs.embedded, &w[table]);
    // The only thing waited for: everything above is under way by now.
    total(losses)
}

/// The sum of losses, in double precision.
fn total(losses: Vec<Tensor<1>>) -> Result<f64> {
    let failed = |e: String| Error::Device(format!("reading the losses back failed: {e}"));
    let data = Tensor::cat(losses, 0).try_into_data().map_err(|e| failed(format!("{e:?}")))?;
    let values = data.try_to_vec::<f32>().map_err(|e| failed(format!("{e:?}")))?;
    Ok(values.into_iter().map(f64::from).sum())
}

/// fp32 logits of every stream position, `[rows · len, vocab_size]`; for parity checks, not for
/// training.
pub fn all_logits(decoder: &Decoder, w: &Weights, inputs: &DeviceBatch) -> Tensor<2> {
    let h = decoder.hidden(w, inputs.ids.clone(), &inputs.cx);
    ops::to_f32(decoder.logits(w, h))
}
