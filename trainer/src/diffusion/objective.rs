//! The loss and its gradient.
//!
//! In: a batch on the device, weights. Out: the *sum* of the losses (cross-entropies; with
//! distillation, mixtures of them and divergences) over counted targets
//! and, if wanted, its gradient. The caller divides by the number of counted targets of the whole
//! optimizer step (both views, all micro-batches), as Fast-dLLM v2 does (no 1/t weight).
//!
//! What makes the model a diffusion model is in the streams ([`super::layout`]): tokens are masked
//! in the training forward pass, not in the data. Formal definition: `docs/objective.md`; noise:
//! [`dlm_datasets::mask`].

use std::sync::atomic::{AtomicBool, Ordering};

use burn::prelude::*;
use burn::tensor::DType;

use super::device_batch::{DeviceBatch, int_tensor};
use super::distill::{self, Source};
use super::losses::{Losses, PassOptions, scalar, total};
use crate::error::{Error, Result};
use crate::kernels::cast::{cast_to, to_f32};
use crate::kernels::cross_entropy::cross_entropy_sum;
use crate::kernels::{self, linear};
use crate::model::{Decoder, Gradients, Weights};

/// Sum of the cross-entropies, without gradients.
pub(crate) fn loss_sum(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
) -> Result<f64> {
    if inputs.at.is_empty() {
        return Ok(0.0);
    }
    if !inputs.teachers.is_empty() {
        return Ok(distill::losses(decoder, w, inputs, opts)?.sum);
    }
    let device = inputs.ids.device();
    let h = decoder.hidden(w, inputs.ids.clone(), &inputs.cx);
    let h = h.select(0, int_tensor(&inputs.at, &device));
    let mut total = 0.0;
    for first in (0..inputs.at.len()).step_by(opts.loss_chunk.max(1)) {
        let end = first.saturating_add(opts.loss_chunk.max(1)).min(inputs.at.len());
        let logits = decoder.logits(w, h.clone().slice([first..end]));
        total +=
            scalar(cross_entropy_sum(logits, int_tensor(&inputs.targets[first..end], &device)))?;
    }
    Ok(total)
}

/// Sum of the cross-entropies; adds `scale ·` its gradient to `into` (`scale` = 1 / counted targets
/// of the optimizer step).
pub(crate) fn loss_and_gradients(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
    scale: f64,
    into: &mut Gradients,
) -> Result<f64> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Ok(interruptible(decoder, w, inputs, opts, scale, into, &NEVER)?.sum)
}

/// [`loss_and_gradients`], given up between two layers with [`Error::Interrupted`] once `stop` is
/// set; `into` is of no use then.
pub(crate) fn interruptible(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
    scale: f64,
    into: &mut Gradients,
    stop: &AtomicBool,
) -> Result<Losses> {
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted("within a micro-batch".into())),
        false => Ok(()),
    };
    if inputs.at.is_empty() {
        return Ok(Losses::default());
    }
    let device = inputs.ids.device();
    let layers = decoder.params.layers.len();
    let cx = inputs.cx.tracked();
    let params = &decoder.params;
    let tracked = w.tracked(params.trained());

    // Forward to the hidden states. With activation checkpointing only the inputs of the layers
    // are kept, otherwise the whole tape.
    let embedded = decoder.embed(w, inputs.ids.clone(), &inputs.cx);
    let mut layer_inputs: Vec<Tensor<2>> = Vec::new();
    // embeddings and hidden states on the tape
    let mut tape: Option<(Tensor<2>, Tensor<2>)> = None;
    let hidden = if opts.activation_checkpointing {
        let mut x = embedded;
        for i in 0..layers {
            go_on()?;
            let y = decoder.layer(w, i, x.clone(), &inputs.cx);
            layer_inputs.push(x);
            x = y;
        }
        x
    } else {
        let leaf = embedded.autodiff().require_grad();
        let mut h = leaf.clone();
        for i in 0..layers {
            go_on()?;
            h = decoder.layer(&tracked, i, h, &cx);
        }
        let inner = h.clone().inner();
        tape = Some((leaf, h));
        inner
    };
    let [tokens, width] = hidden.dims();

    // Final norm and head at the positions that predict a target; the gradient of the logits is
    // computed together with the loss.
    let picked =
        hidden.clone().select(0, int_tensor(&inputs.at, &device)).autodiff().require_grad();
    let normed = decoder.final_norm(&tracked, picked.clone());
    let states = normed.clone().inner();
    let head = cast_to(w[decoder.params.lm_head].clone(), cx.dtype);
    let mut losses: Vec<Tensor<1>> = Vec::new();
    let mut d_states: Vec<Tensor<2>> = Vec::new();
    for first in (0..inputs.at.len()).step_by(opts.loss_chunk.max(1)) {
        go_on()?;
        let end = first.saturating_add(opts.loss_chunk.max(1)).min(inputs.at.len());
        let x = states.clone().slice([first..end]);
        let logits = linear::linear(x.clone(), &head, None);
        let (loss, d_logits) = match inputs.teachers.is_empty() {
            true => {
                let targets = int_tensor(&inputs.targets[first..end], &device);
                kernels::cross_entropy(logits, targets, scale)
            }
            false => {
                let source = Source { decoder, w, hidden: &hidden, head: &head };
                source.judge(logits, inputs, first..end, (opts.distill, scale))
            }
        };
        losses.push(loss);
        d_states.push(d_logits.clone().matmul(head.clone()));
        match &params.lora {
            None => into.add(params.lm_head, to_f32(d_logits.transpose().matmul(x))),
            // of a tied head the mask token's row is trained, of others nothing
            Some(lora) if params.lm_head == params.embed_tokens && !lora.shape.gated => {
                let of_mask = d_logits.narrow(1, lora.shape.mask_token_id, 1);
                into.add(lora.mask_row, to_f32(of_mask).transpose().matmul(to_f32(x)));
            }
            Some(_) => {}
        }
    }
    let mut g = (normed * Tensor::cat(d_states, 0).autodiff()).sum().backward();
    let d_picked = picked
        .grad_remove(&mut g)
        .ok_or_else(|| Error::Numeric("no gradient reached the hidden states".into()))?;
    if params.lora.is_none() {
        into.take_from(&tracked, &mut g, std::iter::once(params.norm));
    }

    // A stream position can predict a target of both views; its gradients are summed.
    let zeros = Tensor::<2>::zeros([tokens, width], (&device, DType::F32));
    let mut upstream = cast_to(kernels::add_rows(zeros, d_picked, &inputs.predicted), cx.dtype);
    if let Some((leaf, h)) = tape {
        let mut g = (h * upstream.autodiff()).sum().backward();
        upstream = leaf
            .grad_remove(&mut g)
            .ok_or_else(|| Error::Numeric("no gradient reached the embeddings".into()))?;
        into.take_from(&tracked, &mut g, params.trained());
    } else {
        for i in (0..layers).rev() {
            let Some(x) = layer_inputs.pop() else { break };
            go_on()?;
            let x = x.autodiff().require_grad();
            let y = decoder.layer(&tracked, i, x.clone(), &cx);
            let mut g = (y * upstream.autodiff()).sum().backward();
            upstream = x.grad_remove(&mut g).ok_or_else(|| {
                Error::Numeric(format!("no gradient reached the input of layer {i}"))
            })?;
            into.take_from(&tracked, &mut g, params.trained_of_layer(i));
        }
    }
    match &params.lora {
        None => {
            let table = params.embed_tokens;
            into.add_rows(table, upstream, &inputs.embedded, &w[table]);
        }
        Some(lora) => {
            let id = lora.shape.mask_token_id as i32;
            let masked = match &inputs.cx.gate {
                Some(gate) => to_f32(gate.clone()),
                None => {
                    inputs.ids.clone().equal_elem(id).float().cast(DType::F32).reshape([tokens, 1])
                }
            };
            let of_mask = masked.transpose().matmul(to_f32(upstream));
            into.add(lora.mask_row, of_mask);
        }
    }
    // Reading the losses is the only wait: all work above is queued by now.
    total(losses, inputs, opts)
}

/// fp32 logits of every stream position, `[rows · len, vocab_size]`; for parity checks.
pub(crate) fn all_logits(decoder: &Decoder, w: &Weights, inputs: &DeviceBatch) -> Tensor<2> {
    let h = decoder.hidden(w, inputs.ids.clone(), &inputs.cx);
    to_f32(decoder.logits(w, h))
}
