//! The training loop: steps until the token budget is used up, with evaluations, checkpoints and a
//! clean stop on a signal.
//!
//! In: configuration, device, the dataset in `data.dir`. Out: checkpoints, metrics and, at the end,
//! the exported folder. One optimizer step is `train.batch_rows` rows in micro-batches; its loss is
//! the mean over all counted targets of the step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dlm_datasets::{Split, fs};

use crate::compute::ComputeDtype;
use crate::compute::device::Team;
use crate::config::{Config, ExportWhich};
use crate::diffusion::Objective;
use crate::error::{Error, Result};
use crate::io::checkpoint::{self, BestStep, RunState, Snapshot};
use crate::io::checkpoint_store::CheckpointStore;
use crate::io::source;
use crate::report::metrics::{Reporter, RunProgress};
use crate::report::step_record::StepRecord;
use crate::report::wandb;
use crate::train::data::{self, BatchPlan, Prefetch};
use crate::train::evaluate::{Scorer, evaluate, rows_to_decode};
use crate::train::export_run;
use crate::train::output_folder::{self, Purpose};
use crate::train::remote::{self, Remote};
use crate::train::stop_signal;
use crate::train::trainer::{Trainer, budget_used};

pub use crate::train::resume::Resume;
pub(crate) use crate::train::resume::RunOptions;

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The state after the last step.
    pub state: RunState,
    /// The exported folder.
    pub export: PathBuf,
}

/// Train by `cfg` on the dataset in `cfg.data.dir` and export the result to `cfg.output.dir`.
pub(crate) fn run(cfg: &Config, team: &Team, options: RunOptions) -> Result<Outcome> {
    let mut checked = cfg.clone();
    checked.output.dir = output_folder::expanded("output.dir", &cfg.output.dir)?;
    let mut remote = Remote::of(cfg)?;
    let data = Arc::new(data::open(&cfg.data.dir)?);
    let cfg = &checked;
    let out = &cfg.output.dir;
    let taken = [
        ("the source", cfg.source.path.as_deref().map(Path::new)),
        ("the dataset", Some(&*cfg.data.dir)),
    ];
    output_folder::check("output.dir", out, Purpose::Run, &taken)?;
    let _lock = fs::lock_dir(out)?;
    let data_dir = data.dir().to_path_buf();
    let mut store = CheckpointStore::new(out, cfg.train.keep_checkpoints);
    store.repair()?;
    if let Some(remote) = &mut remote {
        remote.fetch(cfg, &store, options)?;
    }
    let resumed = if options.resume == Resume::Never { None } else { store.latest()? };
    let recorded_source = match &resumed {
        Some(dir) => Some(checkpoint::identity(dir)?.remove("source").unwrap_or_default()),
        None => None,
    };
    let mut source = source::locate(cfg, recorded_source.as_deref())?;
    // (checkpoints of adapters have none)
    source.checkpoint = resumed.filter(|dir| checkpoint::has_config(dir));
    // the saved configuration names a hub's commit or a bucket's version, so that it always means
    // the same model
    let mut pinned = cfg.clone();
    if source.name.contains("://") {
        pinned.source.path = Some(source.name.clone());
    }
    let cfg = &pinned;
    let mut trainer = Trainer::new(cfg, team, data, source, recorded_source.is_none())?;
    trainer.start_or_resume(&store, options)?;
    store.tidy()?;
    if options.resume == Resume::Never && options.overwrite {
        output_folder::remove_export(out)?;
    }
    fs::create_dir(out)?;
    fs::write_atomic(&out.join("config.yaml"), cfg.to_yaml()?.as_bytes())?;
    if let Some(remote) = remote {
        let clear = options.resume == Resume::Never && options.overwrite;
        remote.start(cfg, &mut store, clear)?;
    }
    if !trainer.state.finished {
        trainer.start_native_engine()?;
        if let Err(error) = trainer.train(&store) {
            remote::settle(cfg, &store, trainer.save_began.unwrap_or_else(Instant::now));
            return Err(error);
        }
    }
    let stop = trainer.stop.clone();
    if let Some(best) = export_run::best_to_export(cfg, &trainer.state)? {
        let state = trainer.state.clone();
        drop(trainer);
        export_run::write_checkpoint(cfg, &data_dir, &store.best(best)?, out)?;
        remote::finish(cfg, &store, &stop)?;
        return Ok(Outcome { state, export: out.clone() });
    }
    let compute = &trainer.compute;
    let frozen_elsewhere =
        cfg.conversion.lora.is_some() && (compute.dtype == ComputeDtype::Bf16 || compute.native);
    if let Some(newest) = store.latest()?.filter(|_| frozen_elsewhere) {
        // the source's weights as they are on disk, not rounded for the passes or on a GPU
        let state = trainer.state.clone();
        drop(trainer);
        export_run::write_checkpoint(cfg, &data_dir, &newest, out)?;
        remote::finish(cfg, &store, &stop)?;
        return Ok(Outcome { state, export: out.clone() });
    }
    let fetched = trainer.fetch()?;
    let weights = fetched.as_ref().map_or(&trainer.weights, |(weights, _)| weights);
    export_run::export(&trainer.trained_model(weights), out)?;
    drop(fetched);
    remote::finish(cfg, &store, &stop)?;
    Ok(Outcome { state: trainer.state, export: out.clone() })
}

impl Trainer<'_> {
    /// Take steps until the run is finished or interrupted.
    fn train(&mut self, store: &CheckpointStore) -> Result<()> {
        self.stop = stop_signal::flag()?;
        let mut batches = self.prefetch(self.plan);
        let progress = RunProgress {
            step: self.state.step,
            tokens: self.state.tokens,
            total_tokens: self.cfg.conversion.total_tokens,
            max_steps: self.cfg.train.max_steps,
        };
        let mut reporter =
            Reporter::open(&self.cfg.output.dir, progress, self.cfg.report.tensorboard)?
                .with_wandb(wandb::start(self.cfg, progress.step));
        reporter.message(&self.description());
        let rows = self.data.rows(Split::Train);
        if self.plan.batch_rows > rows {
            reporter.message(&format!(
                "warning: train.batch_rows={} is more than the {rows} training rows: every step takes rows more than once; expected at most {rows}",
                self.plan.batch_rows
            ));
        }
        while !self.budget_used() {
            let (batch, wait) = match batches.next() {
                Ok(next) => next,
                Err(error) => return Err(self.save_before_ending(error, store, &reporter)),
            };
            let micro_batch_rows = self.plan.micro_batch_rows;
            let stepped = self.step(batch, wait.as_secs_f64(), &|line| reporter.message(line));
            if matches!(stepped, Err(Error::Interrupted(_))) {
                // the step under way left no trace; a resume takes it from its beginning
                reporter.sync()?;
                let saved = self.save(store)?;
                return Err(self.interrupted(&saved));
            }
            let mut record = stepped?;
            if self.plan.micro_batch_rows != micro_batch_rows && !self.budget_used() {
                batches = self.prefetch(self.plan);
            }
            let best = match self.evaluate_if_due(&mut record) {
                Ok(best) => best,
                Err(error) => {
                    reporter.step(&record, true)?;
                    return Err(self.save_before_ending(error, store, &reporter));
                }
            };
            let stalled = self.is_stalled();
            let last = self.budget_used() || stalled;
            reporter.step(&record, last || self.is_logged(&record))?;
            let interrupted = self.stop.load(Ordering::Relaxed);
            if is_due(self.cfg.train.save_every, self.state.step) || last || interrupted || best {
                self.state.finished = last;
                reporter.sync()?;
                let saved = self.save(store)?;
                if stalled {
                    reporter.message(&format!(
                        "no gain of the evaluation loss in {} evaluations (best {:.4}): stopping early",
                        self.state.evals_without_gain,
                        self.state.best_eval.unwrap_or(f64::NAN)
                    ));
                    break;
                }
                if interrupted && !last {
                    return Err(self.interrupted(&saved));
                }
            }
        }
        if self.state.step == 1 && self.state.tokens >= self.cfg.conversion.total_tokens {
            reporter.message(&format!(
                "warning: conversion.total_tokens={} is no more than one step: the {} rows of train.batch_rows hold {} tokens; raise the budget or lower train.batch_rows",
                self.cfg.conversion.total_tokens, self.plan.batch_rows, self.state.tokens
            ));
        }
        reporter.message(&self.summary());
        reporter.end();
        Ok(())
    }

    /// Saves the steps done before an error of the dataset ends the session; returns the error.
    fn save_before_ending(
        &mut self,
        error: Error,
        store: &CheckpointStore,
        reporter: &Reporter,
    ) -> Error {
        if self.state.step == 0 {
            return error;
        }
        match reporter.sync().and_then(|()| self.save(store)) {
            Ok(saved) => reporter.message(&format!(
                "ending at step {} ({} tokens) because of an error in the dataset; state saved in {}",
                self.state.step,
                self.state.tokens,
                saved.display()
            )),
            Err(other) => reporter.message(&format!("the state could not be saved: {other}")),
        }
        error
    }

    /// The end of a session that a signal stopped.
    fn interrupted(&self, saved: &Path) -> Error {
        Error::Interrupted(format!(
            "interrupted at step {} ({} tokens); state saved in {}; the same command goes on from there",
            self.state.step,
            self.state.tokens,
            saved.display()
        ))
    }

    /// Start reading batches ahead from the data cursor.
    fn prefetch(&self, plan: BatchPlan) -> Prefetch {
        Prefetch::start(self.data.clone(), plan, self.state.cursor, self.cfg.train.prefetch)
    }

    fn budget_used(&self) -> bool {
        budget_used(self.cfg, &self.state)
    }

    /// Whether the evaluation loss has not improved for `train.early_stop_patience` evaluations.
    fn is_stalled(&self) -> bool {
        let patience = self.cfg.train.early_stop_patience;
        patience.is_some_and(|n| self.state.evals_without_gain >= n.max(1))
    }

    /// Whether a step gets a line on the console: the first, every `train.log_every`th, and those
    /// with an evaluation.
    fn is_logged(&self, record: &StepRecord) -> bool {
        is_due(self.cfg.train.log_every.max(1), record.step)
            || record.eval_loss.is_some()
            || record.step == 1
    }

    /// Evaluate every `train.eval_every` steps and after the last step. Returns whether the loss is
    /// the lowest so far.
    fn evaluate_if_due(&mut self, record: &mut StepRecord) -> Result<bool> {
        let every = self.cfg.train.eval_every;
        if every == 0 || !(is_due(every, self.state.step) || self.budget_used()) {
            return Ok(false);
        }
        let rows = self.data.rows(Split::Eval).min(self.cfg.train.eval_rows);
        let scorer = match &mut self.native {
            Some(native) => Scorer::Native(native),
            None => Scorer::Burn {
                decoder: &self.decoder,
                weights: &self.weights,
                pass: &self.pass,
                compute: &self.compute,
            },
        };
        let rows_taken = (rows, rows_to_decode(rows));
        let found = evaluate(&self.data, Split::Eval, &self.plan, rows_taken, scorer)?;
        (record.eval_loss, record.eval_acceptance, record.eval_decode) =
            (found.loss, found.acceptance, found.decode);
        (record.eval_cross_entropy, record.eval_divergence, record.eval_proposals) =
            (found.cross_entropy, found.divergence, found.proposals);
        let Some(loss) = record.eval_loss else {
            return match self.cfg.train.early_stop_patience.is_some()
                || self.cfg.export.which == ExportWhich::Best
            {
                true => Err(Error::Usage(format!(
                    "none of the {rows} eval rows has a token that is predicted, so there is no evaluation loss for train.early_stop_patience or export.which=best; prepare the data again, or leave the setting out"
                ))),
                false => Ok(false),
            };
        };
        self.state.eval_loss = Some(loss);
        let min_delta = self.cfg.train.early_stop_min_delta;
        if self.state.best_eval.is_none_or(|best| loss < best - min_delta) {
            self.state.best_eval = Some(loss);
            self.state.evals_without_gain = 0;
        } else {
            self.state.evals_without_gain += 1;
        }
        let lowest = self.state.best.is_none_or(|best| loss < best.eval_loss);
        if lowest {
            self.state.best = Some(BestStep { step: self.state.step, eval_loss: loss });
        }
        Ok(lowest)
    }

    /// Write a checkpoint, unless this step has one already; returns its folder.
    fn save(&mut self, store: &CheckpointStore) -> Result<PathBuf> {
        if self.saved_step == Some(self.state.step)
            && !self.state.finished
            && let Some(dir) = store.latest()?
        {
            return Ok(dir);
        }
        self.save_began = Some(Instant::now());
        let fetched = self.fetch()?;
        let (weights, optimizer) = match &fetched {
            Some((weights, state)) => (weights, state),
            None => (&self.weights, &self.optimizer.state),
        };
        let info = export_run::info(&self.trained_model(weights));
        let dir = store.save(&Snapshot {
            decoder: &self.decoder,
            info: &info,
            weights,
            optimizer,
            state: &self.state,
            identity: &self.identity,
        })?;
        self.saved_step = Some(self.state.step);
        Ok(dir)
    }

    /// The last line of a session.
    fn summary(&self) -> String {
        let skipped = if self.state.skipped > 0 {
            format!(" ({} skipped by the spike guard)", self.state.skipped)
        } else {
            String::new()
        };
        let processed = match self.plan.objective {
            Objective::Sft | Objective::Lossless { .. } => String::new(),
            Objective::BlockDiffusion(_) => format!(
                "; {:.0} % of the 4L form's tokens were processed",
                25.0 * self.state.processed as f64 / self.state.slots.max(1) as f64
            ),
        };
        format!(
            "done: {} of {} tokens in {} steps{skipped}, {:.0} s{processed}",
            self.state.tokens,
            self.cfg.conversion.total_tokens,
            self.state.step,
            self.state.seconds
        )
    }
}

/// Whether `step` is a multiple of `every`; 0 is never.
fn is_due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
