//! Continuing a run from its newest checkpoint.
//!
//! In: the run's checkpoints and what the caller allows. Out: a [`Trainer`] at the checkpoint's
//! step, or at step 0 where there is no checkpoint. A resumed run computes exactly what the
//! uninterrupted one would have: same rows, same masks, same losses.

use std::path::Path;

use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Identity, RunState};
use crate::io::checkpoint_store::CheckpointStore;
use crate::optim::adamw;
use crate::report::console::message;
use crate::train::identity::{ADDED, BUDGET, SOURCE, SOURCE_HASH};
use crate::train::micro_batch;
use crate::train::trainer::{Trainer, budget_used};

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
            .trained_specs()
            .iter()
            .map(|spec| adamw::uses_muon(&self.cfg.optim, spec.kind))
            .collect();
        let device = &self.compute.device.device;
        let mut restored = checkpoint::restore(dir, &self.decoder.params, &uses_muon, device)?;
        for (key, usual) in ADDED {
            restored.identity.entry(key.into()).or_insert_with(|| usual.into());
        }
        let longer = self.has_longer_budget(&restored.identity, &restored.state);
        self.adopt_source(&restored.identity);
        let changes: Vec<String> = self
            .identity
            .iter()
            .filter(|(key, value)| restored.identity.get(*key) != Some(value))
            // checkpoints of older versions do not record it
            .filter(|(key, _)| *key != SOURCE_HASH || restored.identity.contains_key(SOURCE_HASH))
            .filter(|(key, _)| !longer || !BUDGET.contains(&key.as_str()))
            .map(|(key, value)| change(&restored.identity, key, value))
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
        if longer {
            restored.state.finished = false;
            restored.state.evals_without_gain = 0;
            let budget: Vec<String> = BUDGET
                .iter()
                .filter_map(|key| Some((key, self.identity.get(*key)?)))
                .filter(|(key, value)| restored.identity.get(**key) != Some(value))
                .map(|(key, value)| change(&restored.identity, key, value))
                .collect();
            message(format_args!(
                "the run was complete and goes on under a larger budget; {}; from here on the learning rate follows the schedule of the new budget",
                budget.join("; ")
            ));
        }
        self.weights.set_trained(&self.decoder.params, restored.weights.0);
        self.optimizer.state = restored.optimizer;
        self.optimizer.updates = restored.state.updates;
        self.saved_step = Some(restored.state.step);
        self.state = restored.state;
        self.plan.micro_batch_rows = micro_batch::for_workers(
            self.state.micro_batch_rows,
            self.plan.batch_rows,
            self.workers.count(),
        );
        message(format_args!(
            "resumed {}: step {}, {} tokens{}",
            dir.display(),
            self.state.step,
            self.state.tokens,
            if self.state.finished { "; the run is complete" } else { "" }
        ));
        Ok(())
    }

    /// Whether a complete run is given a larger budget than it had, of which something is left.
    fn has_longer_budget(&self, before: &Identity, state: &RunState) -> bool {
        // no limit is larger than any
        let amount = |identity: &Identity, key: &str| {
            identity.get(key).map(|value| value.parse().unwrap_or(u64::MAX))
        };
        let grew = BUDGET.iter().any(|key| amount(&self.identity, key) > amount(before, key));
        state.finished && grew && !budget_used(self.cfg, state)
    }

    /// Where the source is the checkpoint's under another path, keep the name that was recorded.
    /// Files decide; checkpoints of older versions do not record their hash, and there the path
    /// without links and relative parts does.
    fn adopt_source(&mut self, before: &Identity) {
        let Some(recorded) = before.get(SOURCE) else { return };
        let same = match (before.get(SOURCE_HASH), self.identity.get(SOURCE_HASH)) {
            (Some(a), Some(b)) => a == b,
            _ => {
                let path = |name: &str| Path::new(name).canonicalize().ok();
                path(recorded).is_some() && path(recorded) == path(&self.source.name)
            }
        };
        if same {
            self.source.name = recorded.clone();
            self.identity.insert(SOURCE.into(), recorded.clone());
        }
        if let (Some(hash), None) = (before.get(SOURCE_HASH), self.identity.get(SOURCE_HASH)) {
            // the weights are not needed for a resume, and need not be there any more
            self.identity.insert(SOURCE_HASH.into(), hash.clone());
        }
    }
}

/// A key of the identity with its values before and now.
fn change(before: &Identity, key: &str, value: &str) -> String {
    let before = before.get(key).map_or("absent", String::as_str);
    match key {
        SOURCE_HASH => format!(
            "{key}: was {before}, is {value} (config.json or the weights of the source are others)"
        ),
        _ => format!("{key}: was {before}, is {value}"),
    }
}
