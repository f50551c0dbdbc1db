//! One optimizer step: forward and backward passes over its micro-batches, guards, clipping, the
//! update.
//!
//! In: the rows of a step. Out: new weights and a [`StepRecord`]. When micro-batches do not fit
//! into the device's memory the step is repeated with smaller ones. A NaN or infinite loss or
//! gradient is an error that names its rows. A signal ends the step before its next micro-batch. In
//! all three cases weights, optimizer and state are unchanged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::compute::ComputePlan;
use crate::diffusion::{Batch, DeviceBatch, Losses, PassOptions, objective};
use crate::error::{Error, Result};
use crate::kernels::AdamwStep;
use crate::model::{Decoder, Gradients, Weights};
use crate::optim::{UpdateFactors, clip, schedule};
use crate::report::metrics::resident_mib;
use crate::report::step_record::StepRecord;
use crate::train::data::{self, StepBatch};
use crate::train::evaluate::Scorer;
use crate::train::trainer::Trainer;
use crate::train::{flops, out_of_memory, spike_guard};

/// What the forward and backward passes of a step computed.
struct PassResult {
    gradients: Gradients,
    /// Global gradient norm. Reading it waits for the backward passes, so that a lack of memory in
    /// them is noticed here.
    norm: f64,
    /// Over counted targets.
    losses: Losses,
    /// Useful floating-point operations.
    flops: f64,
    /// Tokens the decoder ran on.
    processed: usize,
}

impl PassResult {
    /// Of no pass so far, over `parameters` parameters.
    fn new(parameters: usize) -> Self {
        PassResult {
            gradients: Gradients::new(parameters),
            norm: 0.0,
            losses: Losses::default(),
            flops: 0.0,
            processed: 0,
        }
    }
}

/// Passes by Burn; every worker has the same.
struct BurnPasses<'a> {
    decoder: &'a Decoder,
    weights: &'a Weights,
    compute: &'a ComputePlan,
    options: &'a PassOptions,
    /// One over the counted targets of the step.
    scale: f64,
    stop: &'a AtomicBool,
}

impl BurnPasses<'_> {
    /// Forward and backward pass over one micro-batch.
    fn pass(&self, micro_batch: &Batch, gradients: &mut Gradients) -> Result<Losses> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted("between two micro-batches".into()));
        }
        let inputs = DeviceBatch::upload(self.decoder, micro_batch, self.compute)?;
        objective::interruptible(
            self.decoder,
            self.weights,
            &inputs,
            self.options,
            self.scale,
            gradients,
            self.stop,
        )
    }
}

impl Trainer<'_> {
    /// Take the step of `batch`. `message` gets a line when its micro-batches had to become
    /// smaller; the plan then holds the new size.
    pub(super) fn step(
        &mut self,
        batch: StepBatch,
        data_wait: f64,
        message: &dyn Fn(&str),
    ) -> Result<StepRecord> {
        let started = Instant::now();
        self.decoder.quant_lambda = match self.cfg.conversion.lambda_warmup {
            0 => 1.0,
            n => ((self.state.step + 1) as f64 / n as f64).min(1.0),
        };
        let (batch, result) = self.passes_that_fit(batch, message)?;
        let PassResult { gradients, norm, losses, flops, processed } = result;
        let loss = if batch.counted > 0 { losses.sum / batch.counted as f64 } else { 0.0 };
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.non_finite(&batch, loss, norm));
        }
        self.state.step += 1;
        self.state.cursor = batch.cursor;
        self.state.tokens += batch.tokens;
        self.state.loss_tokens += batch.counted as u64;
        self.state.processed += processed as u64;
        self.state.slots += batch.slots;
        let lr_factor = schedule::factor(&self.cfg.optim, self.progress());
        let factor = self.cfg.train.spike_factor;
        let empty = batch.counted == 0;
        let skipped = !empty && spike_guard::is_spike(factor, self.state.loss_mean, loss);
        let mut clip = 1.0;
        if empty {
            message(&format!(
                "step {}: none of its {} rows has a token that is predicted; nothing is learnt from it",
                self.state.step,
                batch.rows.len()
            ));
        } else if skipped {
            self.state.skipped += 1;
        } else {
            clip = clip::factor(&self.cfg.optim, norm, &mut self.state.zclip);
            self.update(gradients, lr_factor, clip)?;
            self.state.updates = self.optimizer.updates;
        }
        if !empty {
            let mean = spike_guard::updated_mean(factor, self.state.loss_mean, loss);
            self.state.loss_mean = Some(mean);
            self.state.last_loss = Some(loss);
        }
        let seconds = started.elapsed().as_secs_f64() + data_wait;
        self.state.seconds += seconds;
        let taught = losses.taught.as_ref();
        let mean = |sum: f64| sum / batch.counted.max(1) as f64;
        Ok(StepRecord {
            step: self.state.step,
            tokens: self.state.tokens,
            loss: if empty { self.state.last_loss.unwrap_or(0.0) } else { loss },
            cross_entropy: taught.map(|taught| mean(taught.cross_entropy)),
            divergence: taught.map(|taught| mean(taught.divergence)),
            proposals: taught.and_then(|taught| taught.proposals.finish()),
            lr: self.cfg.optim.lr * lr_factor,
            grad_norm: norm,
            clip,
            counted: batch.counted,
            sure: losses.sure,
            processed,
            tok_s: batch.tokens as f64 / seconds,
            seconds,
            data_wait,
            mfu: self.compute.peak_flops.map(|peak| flops / seconds / peak),
            rss_mib: resident_mib(),
            skipped,
            ..StepRecord::default()
        })
    }

    /// Share of the run that is done: of the token budget or of `train.max_steps`, whichever is
    /// larger.
    fn progress(&self) -> f64 {
        let by_tokens = self.state.tokens as f64 / self.cfg.conversion.total_tokens.max(1) as f64;
        let by_steps =
            self.cfg.train.max_steps.map_or(0.0, |max| self.state.step as f64 / max.max(1) as f64);
        by_tokens.max(by_steps)
    }

    /// The passes of a step, repeated with smaller micro-batches until they fit into memory.
    /// Returns the batch as it was cut in the end.
    fn passes_that_fit(
        &mut self,
        mut batch: StepBatch,
        message: &dyn Fn(&str),
    ) -> Result<(StepBatch, PassResult)> {
        loop {
            let before = self.plan.micro_batch_rows;
            if let Some(result) = out_of_memory::within(before, || self.passes(&batch))? {
                return Ok((batch, result));
            }
            let after = out_of_memory::fewer(before, self.plan.batch_rows)?;
            self.compute.device.device.memory_cleanup();
            self.plan.micro_batch_rows = after;
            self.state.micro_batch_rows = after;
            message(&format!(
                "step {}: no memory for {before} rows at a time; going on with micro-batches of {after}, still {} rows a step",
                self.state.step + 1,
                self.plan.batch_rows
            ));
            batch = data::build_step(&self.data, &self.plan, self.state.cursor)?;
        }
    }

    /// The update by the gradients of the passes.
    fn update(&mut self, gradients: Gradients, lr_factor: f64, clip: f64) -> Result<()> {
        let optim = &self.cfg.optim;
        match &mut self.native {
            Some(native) => {
                self.optimizer.updates += 1;
                let t = self.optimizer.updates;
                native.update(AdamwStep::new(optim, optim.weight_decay, lr_factor, clip, t))
            }
            None => {
                self.workers.update(
                    &mut self.optimizer,
                    optim,
                    &self.decoder.params,
                    &mut self.weights,
                    gradients,
                    UpdateFactors { lr: lr_factor, clip },
                );
                Ok(())
            }
        }
    }

    /// Forward and backward passes over every micro-batch, by the native engine.
    fn native_passes(&mut self, batch: &StepBatch) -> Result<PassResult> {
        let mut result = PassResult::new(0);
        let Some(native) = &mut self.native else { return Ok(result) };
        native.clear_gradients()?;
        native.set_quantization(self.decoder.quant_lambda);
        let scale = 1.0 / batch.counted as f64;
        for micro_batch in &batch.micro_batches {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted("between two micro-batches".into()));
            }
            native.pass(micro_batch, scale)?;
            result.flops += flops::useful(&self.decoder, micro_batch);
            result.processed += micro_batch.processed;
        }
        (result.losses, result.norm) = native.finish()?;
        Ok(result)
    }

    /// Forward and backward passes over every micro-batch.
    fn passes(&mut self, batch: &StepBatch) -> Result<PassResult> {
        if self.native.is_some() && batch.counted > 0 {
            return self.native_passes(batch);
        }
        let mut result = PassResult::new(self.weights.0.len());
        if batch.counted == 0 {
            return Ok(result);
        }
        let scale = 1.0 / batch.counted as f64;
        let workers = self.workers.count();
        let passes = BurnPasses {
            decoder: &self.decoder,
            weights: &self.weights,
            compute: &self.compute,
            options: &self.pass,
            scale,
            stop: &self.stop,
        };
        let of_worker = |rank: usize, gradients: &mut Gradients| -> Result<Vec<Losses>> {
            let own = batch.micro_batches.iter().skip(rank).step_by(workers);
            own.map(|micro_batch| passes.pass(micro_batch, gradients)).collect()
        };
        let losses = match workers {
            1 => vec![of_worker(0, &mut result.gradients)?],
            _ => {
                let (losses, gradients) = self.workers.run(of_worker)?;
                result.gradients = gradients;
                losses
            }
        };
        for (i, micro_batch) in batch.micro_batches.iter().enumerate() {
            result.losses.add(&losses[i % workers][i / workers]);
            result.flops += flops::useful(&self.decoder, micro_batch);
            result.processed += micro_batch.processed;
        }
        result.norm = clip::global_norm(&result.gradients)?;
        Ok(result)
    }

    /// The error of a step with a non-finite loss or gradient: it names the rows whose own loss is
    /// not finite, or all rows of the step where each alone has a finite loss.
    fn non_finite(&mut self, batch: &StepBatch, loss: f64, norm: f64) -> Error {
        let list = |rows: &[(u64, usize)]| {
            rows.iter()
                .map(|(epoch, row)| format!("{row} (epoch {epoch})"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        // a row whose loss cannot be computed is named too
        let bad: Vec<(u64, usize)> = batch
            .rows
            .iter()
            .enumerate()
            .filter(|(i, _)| !self.loss_of_row(*i as u64).is_ok_and(f64::is_finite))
            .map(|(_, row)| *row)
            .collect();
        let cause = match bad.len() {
            0 => {
                format!("Each of its rows alone has a finite loss; they are {}", list(&batch.rows))
            }
            n if n == batch.rows.len() => format!(
                "So has each of its rows alone ({}): the weights are the cause, not the data",
                list(&batch.rows)
            ),
            _ => format!("The cause is in its training rows {}", list(&bad)),
        };
        Error::Numeric(format!(
            "step {}: loss {loss}, gradient norm {norm}; the weights were not touched, the last checkpoint is whole. {cause}. Look at them with `dlm-prep inspect {} --row N`; or lower optim.lr, or take train.dtype=fp32",
            self.state.step + 1,
            self.data.dir().display()
        ))
    }

    /// Loss sum of row `i` of the step that comes next, computed alone.
    fn loss_of_row(&mut self, i: u64) -> Result<f64> {
        let mut plan = self.plan;
        (plan.batch_rows, plan.micro_batch_rows) = (1, 1);
        let step = data::build_step(&self.data, &plan, self.state.cursor + i)?;
        let batches = step.micro_batches.iter().filter(|batch| !batch.targets.is_empty());
        let mut scorer = match &mut self.native {
            Some(native) => Scorer::Native(native),
            None => Scorer::Burn {
                decoder: &self.decoder,
                weights: &self.weights,
                pass: &self.pass,
                compute: &self.compute,
            },
        };
        batches.map(|batch| scorer.loss_sum(batch)).sum()
    }
}
