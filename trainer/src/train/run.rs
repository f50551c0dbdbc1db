//! The loop: steps through the token budget, saves, evaluates, stops cleanly, resumes exactly.
//!
//! In: configuration and dataset. Out: checkpoints, metrics and, at the end, the exported folder.
//! One optimizer step = `train.batch_rows` rows in micro-batches; the loss is the mean over all
//! counted targets of the whole step.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dlm_datasets::{Dataset, Split};

use crate::compute::{ComputeDevice, ComputePlan};
use crate::config::{self, ActivationCheckpointing, Config};
use crate::diffusion::{DocumentMask, Layout, Objective, ObjectiveSpec, PassOptions};
use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Identity, RunState, Snapshot};
use crate::io::checkpoint_store::CheckpointStore;
use crate::io::source::{self, ModelSource, PreparedModel};
use crate::model::{Decoder, Weights};
use crate::optim::{Optimizer, adamw};
use crate::report::metrics::{Reporter, RunProgress};
use crate::train::data::{self, BatchPlan, Prefetch};
use crate::train::evaluate::evaluate;
use crate::train::finish;
use crate::train::micro_batch;
use dlm_datasets::fs;

/// What to do with a checkpoint that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Resume {
    /// Go on from it, or start anew where there is none.
    #[default]
    Auto,
    /// Start anew; refused while checkpoints are there, unless told to overwrite.
    Never,
    /// Go on from it; an error where there is none.
    Must,
}

/// How a run treats what it finds.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// See [`Resume`].
    pub resume: Resume,
    /// Remove an earlier run's checkpoints.
    pub overwrite: bool,
    /// Resume although config, data or model differ from the checkpoint's.
    pub allow_changes: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Final state.
    pub state: RunState,
    /// The exported folder.
    pub export: PathBuf,
}

/// A run under way.
pub(super) struct Trainer<'a> {
    pub(super) cfg: &'a Config,
    pub(super) compute: ComputePlan,
    pub(super) data: Arc<Dataset>,
    pub(super) decoder: Decoder,
    pub(super) weights: Weights,
    pub(super) optimizer: Optimizer,
    pub(super) state: RunState,
    pub(super) plan: BatchPlan,
    pub(super) pass: PassOptions,
    identity: Identity,
    located: ModelSource,
    saved_step: Option<u64>,
}

/// Train by `cfg` on the dataset in `cfg.data.dir` and export the result.
pub fn run(cfg: &Config, chosen: &ComputeDevice, options: RunOptions) -> Result<Outcome> {
    let data = Arc::new(data::open(&cfg.data.dir)?);
    let out = &cfg.output.dir;
    let store = CheckpointStore::new(out, cfg.train.keep_checkpoints);
    let recorded = match store.latest()? {
        Some(at) if options.resume != Resume::Never => {
            Some(checkpoint::identity(&at)?.remove("source").unwrap_or_default())
        }
        _ => None,
    };
    let located = source::locate(cfg, recorded.as_deref())?;
    // a repository's commit stands in the saved configuration: the run's settings always mean the
    // same model
    let mut pinned = cfg.clone();
    if located.name.starts_with("hf://") {
        pinned.source.path = Some(located.name.clone());
    }
    let cfg = &pinned;
    let mut trainer = Trainer::new(cfg, chosen, data, located, recorded.is_none())?;
    trainer.begin(&store, options)?;
    fs::create_dir(out)?;
    fs::write_atomic(&out.join("config.yaml"), cfg.to_yaml()?.as_bytes())?;
    if !trainer.state.finished {
        trainer.steps(&store)?;
    }
    let what = finish::TrainedModel {
        cfg,
        data: &trainer.data,
        decoder: &trainer.decoder,
        weights: &trainer.weights,
        state: &trainer.state,
        source: &trainer.located.name,
        source_folder: trainer.located.folder.as_deref(),
    };
    finish::export(&what, out)?;
    Ok(Outcome { state: trainer.state, export: out.clone() })
}

impl<'a> Trainer<'a> {
    /// `fresh`: with weights and optimizer state of its own; else a checkpoint gives them.
    fn new(
        cfg: &'a Config,
        chosen: &'a ComputeDevice,
        data: Arc<Dataset>,
        located: ModelSource,
        fresh: bool,
    ) -> Result<Self> {
        let manifest = data.manifest();
        if let Some(bd) = cfg.conversion.bd_size.filter(|bd| *bd != manifest.bd_size) {
            return Err(Error::Mismatch(format!(
                "conversion.bd_size is {bd}, the dataset {} was packed with bd_size {}; prepare it again with --bd-size {bd} or leave conversion.bd_size null",
                data.dir().display(),
                manifest.bd_size
            )));
        }
        let PreparedModel { decoder, weights } =
            source::prepare(cfg, &located, &data, &chosen.device, fresh)?;
        crate::io::export::check(&decoder, cfg.export.format)?;
        let objective = objective_of(cfg);
        let compute = ComputePlan::new(chosen.clone(), cfg.train.dtype.map(Into::into));
        let plan = BatchPlan {
            seed: cfg.train.seed,
            batch_rows: cfg.train.batch_rows,
            micro_batch_rows: micro_batch::rows(
                cfg,
                &compute,
                &decoder,
                objective,
                manifest.seq_len,
            ),
            objective,
            spec: ObjectiveSpec {
                bd_size: manifest.bd_size,
                mask_token_id: manifest.mask_token_id,
                complementary: cfg.conversion.complementary,
                document_mask: match cfg.conversion.document_mask {
                    config::DocumentMask::Document => DocumentMask::Document,
                    config::DocumentMask::None => DocumentMask::Hub,
                },
            },
            noise_eps: cfg.conversion.noise_eps,
            shape: compute.stream_shape,
            vocab_size: decoder.cfg.vocab_size,
        };
        let pass = PassOptions {
            activation_checkpointing: cfg.train.activation_checkpointing
                == ActivationCheckpointing::Layer,
            loss_chunk: cfg.train.loss_chunk,
        };
        let optimizer = if fresh {
            Optimizer::new(&cfg.optim, &decoder.params, &chosen.device)
        } else {
            Optimizer { state: Vec::new(), updates: 0 }
        };
        let identity = finish::identity(cfg, &data, &located.name, &decoder)?;
        Ok(Trainer {
            cfg,
            compute,
            data,
            decoder,
            weights: weights.unwrap_or(Weights(Vec::new())),
            optimizer,
            state: RunState::default(),
            plan,
            pass,
            identity,
            located,
            saved_step: None,
        })
    }

    /// Start anew or take up a checkpoint.
    fn begin(&mut self, store: &CheckpointStore, options: RunOptions) -> Result<()> {
        let latest = store.latest()?;
        let out = self.cfg.output.dir.display();
        match (latest, options.resume) {
            (None, Resume::Must) => Err(Error::Usage(format!(
                "--resume must: there is no checkpoint in {out}/checkpoints"
            ))),
            (None, _) => {
                self.state.micro_batch_rows = self.plan.micro_batch_rows;
                Ok(())
            }
            (Some(_), Resume::Never) if options.overwrite => {
                self.state.micro_batch_rows = self.plan.micro_batch_rows;
                store.clear()
            }
            (Some(at), Resume::Never) => Err(Error::Usage(format!(
                "--resume never: {} is there; add --overwrite to discard it, or choose another output.dir",
                at.display()
            ))),
            (Some(at), Resume::Auto | Resume::Must) => {
                let muon: Vec<bool> = self
                    .decoder
                    .params
                    .specs
                    .iter()
                    .map(|s| adamw::uses_muon(&self.cfg.optim, s.kind))
                    .collect();
                let restored = checkpoint::restore(
                    &at,
                    &self.decoder.params,
                    &muon,
                    &self.compute.device.device,
                )?;
                let changed: Vec<String> = self
                    .identity
                    .iter()
                    .filter(|(k, v)| restored.identity.get(*k) != Some(v))
                    .map(|(k, v)| {
                        format!(
                            "{k}: was {}, is {v}",
                            restored.identity.get(k).map_or("absent", String::as_str)
                        )
                    })
                    .collect();
                if !changed.is_empty() && !options.allow_changes {
                    return Err(Error::Mismatch(format!(
                        "{} belongs to a run that differs from this call; {}. Give the same settings, choose another output.dir, or add --allow-changes",
                        at.display(),
                        changed.join("; ")
                    )));
                }
                if !changed.is_empty() {
                    eprintln!(
                        "warning: resuming under other settings (--allow-changes); {}",
                        changed.join("; ")
                    );
                }
                self.weights = restored.weights;
                self.optimizer.state = restored.optimizer;
                self.optimizer.updates = restored.state.updates;
                self.saved_step = Some(restored.state.step);
                self.state = restored.state;
                self.plan.micro_batch_rows = self.state.micro_batch_rows.max(1);
                eprintln!(
                    "resumed {}: step {}, {} tokens{}",
                    at.display(),
                    self.state.step,
                    self.state.tokens,
                    if self.state.finished { "; the run is complete" } else { "" }
                );
                Ok(())
            }
        }
    }

    fn done(&self) -> bool {
        self.state.tokens >= self.cfg.conversion.total_tokens
            || self.cfg.train.max_steps.is_some_and(|m| self.state.step >= m)
    }

    fn steps(&mut self, store: &CheckpointStore) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            // the second signal ends the process at once, the first asks for a checkpoint
            let registered =
                signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
                    .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
            registered
                .map_err(|e| Error::Device(format!("installing a signal handler failed: {e}")))?;
        }
        let pad = self.data.manifest().pad_token_id;
        let (data, depth) = (self.data.clone(), self.cfg.train.prefetch);
        let feed_from = move |plan: BatchPlan, cursor: u64| {
            Prefetch::start(data.clone(), plan, cursor, pad, depth)
        };
        let mut feed = feed_from(self.plan, self.state.cursor);
        let extent = RunProgress {
            step: self.state.step,
            tokens: self.state.tokens,
            total_tokens: self.cfg.conversion.total_tokens,
            max_steps: self.cfg.train.max_steps,
        };
        let mut reporter =
            Reporter::open(&self.cfg.output.dir, extent, self.cfg.report.tensorboard)?;
        reporter.say(&self.headline());
        while !self.done() {
            let (batch, wait) = feed.next()?;
            let micro_batch_rows = self.plan.micro_batch_rows;
            let mut record = self.step(batch, wait.as_secs_f64(), &|line| reporter.say(line))?;
            if self.plan.micro_batch_rows != micro_batch_rows && !self.done() {
                feed = feed_from(self.plan, self.state.cursor);
            }
            let last = self.done();
            let step = self.state.step;
            let every = |n: u64| n > 0 && step % n == 0;
            if every(self.cfg.train.eval_every) || (last && self.cfg.train.eval_every > 0) {
                record.eval_loss = self.evaluate()?;
                self.note_eval(record.eval_loss);
            }
            let stalled = self
                .cfg
                .train
                .early_stop_patience
                .is_some_and(|p| self.state.evals_without_gain >= p.max(1));
            let last = last || stalled;
            let print = every(self.cfg.train.log_every.max(1))
                || last
                || record.eval_loss.is_some()
                || self.state.step == 1;
            reporter.step(&record, print)?;
            let interrupted = stop.load(Ordering::Relaxed);
            if every(self.cfg.train.save_every) || last || interrupted {
                self.state.finished = last;
                reporter.sync()?;
                let at = self.save(store)?;
                if stalled {
                    reporter.say(&format!(
                        "no gain of the evaluation loss in {} evaluations (best {:.4}): stopping early",
                        self.state.evals_without_gain,
                        self.state.best_eval.unwrap_or(f64::NAN)
                    ));
                    break;
                }
                if interrupted && !last {
                    return Err(Error::Interrupted(format!(
                        "interrupted at step {} ({} tokens); state saved in {}; the same command goes on from there",
                        self.state.step,
                        self.state.tokens,
                        at.display()
                    )));
                }
            }
        }
        let skipped = if self.state.skipped > 0 {
            format!(" ({} skipped by the spike guard)", self.state.skipped)
        } else {
            String::new()
        };
        let share = match self.plan.objective {
            Objective::Sft => String::new(),
            Objective::BlockDiffusion(_) => {
                format!(
                    "; {:.0} % of the 4L form's tokens were processed",
                    25.0 * self.state.processed as f64 / self.state.slots.max(1) as f64
                )
            }
        };
        reporter.say(&format!(
            "done: {} of {} tokens in {} steps{skipped}, {:.0} s{share}",
            self.state.tokens,
            self.cfg.conversion.total_tokens,
            self.state.step,
            self.state.seconds
        ));
        Ok(())
    }

    fn headline(&self) -> String {
        let m = self.data.manifest();
        let rows = self.data.rows(Split::Train);
        format!(
            "{} ({:?}, {:.2} M parameters) from {} on {}; {rows} rows of {} (bd_size {}), {} rows a step in micro-batches of {}, {} tokens to go",
            self.cfg.model.name,
            self.decoder.cfg.family,
            self.decoder.params.numel() as f64 / 1e6,
            self.located.name,
            self.compute.device.name,
            m.seq_len,
            m.bd_size,
            self.plan.batch_rows,
            self.plan.micro_batch_rows,
            self.cfg.conversion.total_tokens.saturating_sub(self.state.tokens),
        )
    }

    fn note_eval(&mut self, loss: Option<f64>) {
        let Some(loss) = loss else { return };
        self.state.eval_loss = Some(loss);
        if self.state.best_eval.is_none_or(|b| loss < b - self.cfg.train.early_stop_min_delta) {
            self.state.best_eval = Some(loss);
            self.state.evals_without_gain = 0;
        } else {
            self.state.evals_without_gain += 1;
        }
    }

    /// Mean loss over the first `train.eval_rows` rows of the eval split under fixed masks.
    fn evaluate(&self) -> Result<Option<f64>> {
        let rows = self.data.rows(Split::Eval).min(self.cfg.train.eval_rows);
        evaluate(
            &self.decoder,
            &self.weights,
            &self.data,
            Split::Eval,
            &self.plan,
            &self.pass,
            &self.compute,
            rows,
        )
    }

    fn save(&mut self, store: &CheckpointStore) -> Result<PathBuf> {
        if self.saved_step == Some(self.state.step)
            && !self.state.finished
            && let Some(at) = store.latest()?
        {
            return Ok(at);
        }
        let at = store.save(&Snapshot {
            params: &self.decoder.params,
            weights: &self.weights,
            optimizer: &self.optimizer.state,
            state: &self.state,
            identity: &self.identity,
        })?;
        self.saved_step = Some(self.state.step);
        Ok(at)
    }
}

/// The objective a configuration asks for.
pub fn objective_of(cfg: &Config) -> Objective {
    match (cfg.conversion.objective, cfg.conversion.layout) {
        (config::Objective::Sft, _) => Objective::Sft,
        (config::Objective::BlockDiffusion, config::Layout::Saving) => {
            Objective::BlockDiffusion(Layout::Saving)
        }
        (config::Objective::BlockDiffusion, config::Layout::Reference) => {
            Objective::BlockDiffusion(Layout::Reference)
        }
    }
}
