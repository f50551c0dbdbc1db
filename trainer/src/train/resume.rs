//! Continuing a run from its newest checkpoint.
//!
//! In: the run's checkpoints and what the caller allows. Out: a [`Trainer`] at the checkpoint's
//! step, or at step 0 where there is no checkpoint. A resumed run computes exactly what the
//! uninterrupted one would have: same rows, same masks, same losses.

use std::path::Path;

use crate::error::{Error, Result};
use crate::io::checkpoint;
use crate::io::checkpoint_store::CheckpointStore;
use crate::optim::adamw;
use crate::report::console::message;
use crate::train::trainer::Trainer;

/// What to do with a checkpoint that exists already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Resume {
    /// Continue from it; start at step 0 where there is none.
    #[default]
    Auto,
    /// Start at step 0; refused while there are checkpoints, unless they may be overwritten.
    Never,
    /// Continue from it; an error where there is none.
    Must,
}

/// What a run may do with an earlier run in its folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunOptions {
    pub resume: Resume,
    /// With [`Resume::Never`]: remove an earlier run's checkpoints.
    pub overwrite: bool,
    /// Resume although configuration, dataset or model differ from the checkpoint's.
    pub allow_changes: bool,
}

impl Trainer<'_> {
    /// Start at step 0 or continue from the newest checkpoint, as `options` say.
    pub(super) fn start_or_resume(
        &mut self,
        store: &CheckpointStore,
        options: RunOptions,
    ) -> Result<()> {
        if options.resume == Resume::Never && options.overwrite {
            return store.clear();
        }
        let out = self.cfg.output.dir.display();
        match (store.latest()?, options.resume) {
            (None, Resume::Must) => Err(Error::Usage(format!(
                "--resume must: there is no checkpoint in {out}/checkpoints"
            ))),
            (None, Resume::Auto | Resume::Never) => Ok(()),
            (Some(dir), Resume::Never) => Err(Error::Usage(format!(
                "--resume never: {} is there; add --overwrite to discard it, or choose another output.dir",
                dir.display()
            ))),
            (Some(dir), Resume::Auto | Resume::Must) => self.resume(&dir, options.allow_changes),
        }
    }

    fn resume(&mut self, dir: &Path, allow_changes: bool) -> Result<()> {
        let uses_muon: Vec<bool> = self
            .decoder
            .params
            .specs
            .iter()
            .map(|spec| adamw::uses_muon(&self.cfg.optim, spec.kind))
            .collect();
        let device = &self.compute.device.device;
        let restored = checkpoint::restore(dir, &self.decoder.params, &uses_muon, device)?;
        let changes: Vec<String> = self
            .identity
            .iter()
            .filter(|(key, value)| restored.identity.get(*key) != Some(value))
            .map(|(key, value)| {
                let before = restored.identity.get(key).map_or("absent", String::as_str);
                format!("{key}: was {before}, is {value}")
            })
            .collect();
        let changes = changes.join("; ");
        if !changes.is_empty() && !allow_changes {
            return Err(Error::Mismatch(format!(
                "{} belongs to a run that differs from this call; {changes}. Give the same settings, choose another output.dir, or add --allow-changes",
                dir.display()
            )));
        }
        if !changes.is_empty() {
            message(format_args!(
                "warning: resuming under other settings (--allow-changes); {changes}"
            ));
        }
        self.weights = restored.weights;
        self.optimizer.state = restored.optimizer;
        self.optimizer.updates = restored.state.updates;
        self.saved_step = Some(restored.state.step);
        self.state = restored.state;
        self.plan.micro_batch_rows = self.state.micro_batch_rows.max(1);
        message(format_args!(
            "resumed {}: step {}, {} tokens{}",
            dir.display(),
            self.state.step,
            self.state.tokens,
            if self.state.finished { "; the run is complete" } else { "" }
        ));
        Ok(())
    }
}
