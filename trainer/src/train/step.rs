//! One optimizer step: forward and backward passes over its micro-batches, guards, clipping, the
//! update.
//!
//! In: the rows of a step. Out: new weights and a [`StepRecord`]. A step whose micro-batches do not
//! fit into the device's memory is taken again in halves; a loss that is no number names its rows;
//! neither touches the weights before.

use std::time::Instant;

use crate::diffusion::{DeviceBatch, objective};
use crate::error::{Error, Result};
use crate::model::Gradients;
use crate::optim::{clip, schedule};
use crate::report::metrics::{StepRecord, resident_mib};
use crate::train::data::{self, StepBatch};
use crate::train::flops;
use crate::train::out_of_memory;
use crate::train::run::Trainer;

/// What the passes of a step gave.
struct Passed {
    grads: Gradients,
    /// Their norm. Reading it waits for the backward passes, so that what they ran out of is met
    /// here.
    norm: f64,
    /// Sum of cross-entropies over counted targets.
    sum: f64,
    /// Useful floating-point operations.
    flops: f64,
    /// Tokens the decoder ran on.
    processed: usize,
}

impl Trainer<'_> {
    /// Take the step of `batch`. `say` is told when its micro-batches had to become smaller; the
    /// plan holds the new size.
    pub(super) fn step(
        &mut self,
        mut batch: StepBatch,
        data_wait: f64,
        say: &dyn Fn(&str),
    ) -> Result<StepRecord> {
        let t = Instant::now();
        self.decoder.quant_lambda = match self.cfg.conversion.lambda_warmup {
            0 => 1.0,
            n => ((self.state.step + 1) as f64 / n as f64).min(1.0),
        };
        let passed = loop {
            if let Some(passed) =
                out_of_memory::within(self.plan.micro_batch_rows, || self.passes(&batch))?
            {
                break passed;
            }
            let (before, after) = (
                self.plan.micro_batch_rows,
                out_of_memory::fewer(self.plan.micro_batch_rows, self.plan.batch_rows)?,
            );
            self.compute.device.device.memory_cleanup();
            self.plan.micro_batch_rows = after;
            self.state.micro_batch_rows = after;
            say(&format!(
                "step {}: no memory for {before} rows at a time; going on with micro-batches of {after}, still {} rows a step",
                self.state.step + 1,
                self.plan.batch_rows
            ));
            batch = data::build_step(
                &self.data,
                &self.plan,
                self.state.cursor,
                self.data.manifest().pad_token_id,
            )?;
        };
        let Passed { grads, norm, sum, flops, processed } = passed;
        let loss = if batch.counted > 0 { sum / batch.counted as f64 } else { 0.0 };
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.not_a_number(&batch, loss, norm));
        }
        let spike = match (self.cfg.train.spike_factor, self.state.loss_mean) {
            (Some(f), Some(mean)) => loss > f * mean,
            _ => false,
        };
        self.state.step += 1;
        self.state.cursor = batch.cursor;
        self.state.tokens += batch.tokens;
        self.state.loss_tokens += batch.counted as u64;
        self.state.processed += processed as u64;
        self.state.slots += batch.slots;
        let progress = (self.state.tokens as f64 / self.cfg.conversion.total_tokens.max(1) as f64)
            .max(
                self.cfg.train.max_steps.map_or(0.0, |m| self.state.step as f64 / m.max(1) as f64),
            );
        let lr_factor = schedule::factor(&self.cfg.optim, progress);
        let mut clip = 1.0;
        if spike {
            self.state.skipped += 1;
        } else {
            clip = clip::factor(&self.cfg.optim, norm, &mut self.state.zclip);
            self.optimizer.step(
                &self.cfg.optim,
                &self.decoder.params,
                &mut self.weights,
                grads,
                lr_factor,
                clip,
            );
            self.state.updates = self.optimizer.updates;
            self.state.loss_mean =
                Some(self.state.loss_mean.map_or(loss, |m| 0.95 * m + 0.05 * loss));
        }
        self.state.last_loss = Some(loss);
        let seconds = t.elapsed().as_secs_f64() + data_wait;
        self.state.seconds += seconds;
        Ok(StepRecord {
            step: self.state.step,
            tokens: self.state.tokens,
            loss,
            lr: self.cfg.optim.lr * lr_factor,
            grad_norm: norm,
            clip,
            counted: batch.counted,
            processed,
            tok_s: batch.tokens as f64 / seconds,
            seconds,
            data_wait,
            mfu: self.compute.peak_flops.map(|p| flops / seconds / p),
            rss_mib: resident_mib(),
            skipped: spike,
            eval_loss: None,
        })
    }

    /// Forward and backward over every micro-batch.
    fn passes(&self, batch: &StepBatch) -> Result<Passed> {
        let mut out = Passed {
            grads: Gradients::new(self.weights.0.len()),
            norm: 0.0,
            sum: 0.0,
            flops: 0.0,
            processed: 0,
        };
        if batch.counted == 0 {
            return Ok(out);
        }
        let scale = 1.0 / batch.counted as f64;
        for micro in &batch.micro {
            let inputs = DeviceBatch::upload(&self.decoder, micro, &self.compute)?;
            out.sum += objective::loss_and_gradients(
                &self.decoder,
                &self.weights,
                &inputs,
                &self.pass,
                scale,
                &mut out.grads,
            )?;
            out.flops += flops::useful(&self.decoder, micro);
            out.processed += micro.processed;
        }
        out.norm = clip::global_norm(&out.grads)?;
        Ok(out)
    }

    /// The error of a step that left the numbers: the rows whose own loss is none, or all of the
    /// step where each alone has one.
    fn not_a_number(&self, batch: &StepBatch, loss: f64, norm: f64) -> Error {
        let named = |rows: &[(u64, usize)]| {
            rows.iter().map(|(e, r)| format!("{r} (epoch {e})")).collect::<Vec<_>>().join(", ")
        };
        let mut alone = self.plan;
        (alone.batch_rows, alone.micro_batch_rows) = (1, 1);
        let bad = |at: usize| -> Result<bool> {
            let row = data::build_step(
                &self.data,
                &alone,
                self.state.cursor + at as u64,
                self.data.manifest().pad_token_id,
            )?;
            let loss = row.micro.iter().filter(|m| !m.targets.is_empty()).try_fold(
                0.0,
                |sum, m| -> Result<f64> {
                    let inputs = DeviceBatch::upload(&self.decoder, m, &self.compute)?;
                    Ok(sum
                        + objective::loss_sum(&self.decoder, &self.weights, &inputs, &self.pass)?)
                },
            )?;
            Ok(!loss.is_finite())
        };
        let culprits: Vec<(u64, usize)> = batch
            .rows
            .iter()
            .enumerate()
            .filter(|(at, _)| bad(*at).unwrap_or(true))
            .map(|(_, row)| *row)
            .collect();
        let which = match culprits.len() {
            0 => {
                format!("Each of its rows alone has a finite loss; they are {}", named(&batch.rows))
            }
            n if n == batch.rows.len() => {
                format!(
                    "So has each of its rows alone ({}): the weights are the cause, not the data",
                    named(&batch.rows)
                )
            }
            _ => format!("The cause is in its training rows {}", named(&culprits)),
        };
        Error::Numeric(format!(
            "step {}: loss {loss}, gradient norm {norm}; the weights were not touched, the last checkpoint is whole. {which}. Look at them with `dlm-prep inspect {} --row N`; or lower optim.lr, or take train.dtype=fp32",
            self.state.step + 1,
            self.data.dir().display()
        ))
    }
}
