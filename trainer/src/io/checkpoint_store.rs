//! The checkpoints of one run, `RUN/checkpoints/`.
//!
//! A checkpoint is written as `.step-N.partial` and renamed to `step-N` when it is whole; `latest`
//! holds the name of the newest and is written after that. Older checkpoints beyond
//! `train.keep_checkpoints` are then removed, except the one with the lowest evaluation loss, whose
//! step is in the newest one's `state.json`.
//!
//! Where `step-N` exists already it is first renamed to `.step-N.old`. A crash between the two
//! renames leaves both under their hidden names, and `latest` naming no folder:
//! [`CheckpointStore::repair`] finishes the replacement, or undoes it. Where the folder is lost
//! altogether, [`CheckpointStore::latest`] falls back to the newest whole checkpoint before it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dlm_datasets::fs;

use crate::error::{Error, Result};
use crate::io::checkpoint::{self, BestStep, Snapshot};
use crate::io::uploads::Uploads;
use crate::report::console::message;

/// The checkpoint folder of a run.
#[derive(Debug)]
pub(crate) struct CheckpointStore {
    dir: PathBuf,
    keep: usize,
    /// Sends checkpoints to a bucket.
    pub(crate) uploads: Option<Uploads>,
}

impl CheckpointStore {
    /// The store of the run in `run_dir`, which keeps the newest `keep` checkpoints.
    pub(crate) fn new(run_dir: &Path, keep: usize) -> Self {
        CheckpointStore { dir: run_dir.join("checkpoints"), keep: keep.max(1), uploads: None }
    }

    /// Finish or undo the replacement of a checkpoint that a crash interrupted. Only the training
    /// run itself may call this: it renames folders.
    pub(crate) fn repair(&self) -> Result<()> {
        if !self.dir.is_dir() {
            return Ok(());
        }
        for name in self.names()? {
            let step = name.strip_prefix('.').and_then(|name| name.strip_suffix(".old"));
            let Some(step) = step.filter(|step| is_step(step)) else { continue };
            let partial = self.dir.join(format!(".{step}.partial"));
            let old = self.dir.join(&name);
            if self.dir.join(step).exists() {
                remove_dir(&old, "removing a replaced checkpoint")?;
            } else if let Some(whole) =
                [partial, old].into_iter().find(|dir| checkpoint::is_whole(dir))
            {
                fs::rename(&whole, &self.dir.join(step))?;
            }
        }
        Ok(())
    }

    /// Remove what a process that was killed after writing its newest checkpoint left: checkpoints
    /// too many, and files under their temporary names.
    pub(crate) fn tidy(&self) -> Result<()> {
        let partial = fs::partial_path(&self.dir.join(LATEST));
        match std::fs::remove_file(&partial) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(Error::io(&partial, "removing", e));
            }
            _ => {}
        }
        let Some(newest) = self.latest()? else { return Ok(()) };
        let best = checkpoint::state(&newest)?.best.map(|best| folder_name(best.step));
        match newest.file_name().and_then(|name| name.to_str()) {
            Some(name) => self.prune(name, best),
            None => Ok(()),
        }
    }

    /// Folder of the checkpoint that `latest` names, if there is one. Where that folder is missing,
    /// the newest whole checkpoint before it, with a warning.
    pub(crate) fn latest(&self) -> Result<Option<PathBuf>> {
        let pointer = self.dir.join(LATEST);
        let name = match std::fs::read_to_string(&pointer) {
            Ok(name) => name.trim().to_string(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&pointer, "reading", e)),
        };
        if !is_step(&name) {
            return Err(Error::format(
                &pointer,
                format!("holds {name:?}; expected the name of a step-N folder, with nine digits"),
            ));
        }
        let dir = self.dir.join(&name);
        if dir.is_dir() {
            return Ok(Some(dir));
        }
        let whole = |other: &String| {
            is_step(other)
                && other.as_str() < name.as_str()
                && checkpoint::is_whole(&self.dir.join(other))
        };
        match self.names()?.into_iter().filter(whole).max() {
            Some(older) => {
                message(format_args!(
                    "warning: checkpoints/latest names {name}, which is missing; continuing from the newest whole checkpoint before it, {older}"
                ));
                Ok(Some(self.dir.join(older)))
            }
            None => Err(Error::format(
                &pointer,
                format!(
                    "names {name}, which is missing, and there is no earlier whole checkpoint; remove the checkpoints folder to start again"
                ),
            )),
        }
    }

    /// Folder of the checkpoint with the lowest evaluation loss.
    pub(crate) fn best(&self, best: BestStep) -> Result<PathBuf> {
        let dir = self.dir.join(folder_name(best.step));
        if checkpoint::is_whole(&dir) {
            return Ok(dir);
        }
        Err(Error::format(
            &dir,
            format!(
                "the checkpoint with the lowest evaluation loss ({:.4}) is missing; export the last weights with export.which=last",
                best.eval_loss
            ),
        ))
    }

    /// Write a checkpoint; returns its folder.
    pub(crate) fn save(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        fs::create_dir(&self.dir)?;
        let name = folder_name(snapshot.state.step);
        let dir = self.dir.join(&name);
        let partial = self.dir.join(format!(".{name}.partial"));
        remove_dir(&partial, "removing a partial checkpoint")?;
        fs::create_dir(&partial)?;
        checkpoint::write(&partial, snapshot)?;
        if dir.exists() {
            // the same step was saved before (a resumed run that ended at once); the new
            // checkpoint replaces the old one
            let old = self.dir.join(format!(".{name}.old"));
            remove_dir(&old, "removing a replaced checkpoint")?;
            std::fs::rename(&dir, &old)
                .map_err(|e| Error::io(&dir, "moving the old checkpoint aside", e))?;
        }
        fs::rename(&partial, &dir)?;
        fs::write_atomic(&self.dir.join(LATEST), name.as_bytes())?;
        if let Some(uploads) = &self.uploads {
            let best = snapshot.state.best.map(|best| best.step);
            uploads.add(snapshot.state.step, &dir, best)?;
        }
        self.prune(&name, snapshot.state.best.map(|best| folder_name(best.step)))?;
        Ok(dir)
    }

    /// Take in the checkpoint of a step that `fill` writes into the empty folder which it is given;
    /// with `as_latest` it is the newest one then.
    pub(crate) fn install(
        &self,
        step: u64,
        as_latest: bool,
        fill: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<()> {
        fs::create_dir(&self.dir)?;
        let name = folder_name(step);
        let partial = self.dir.join(format!(".{name}.partial"));
        remove_dir(&partial, "removing a partial checkpoint")?;
        fs::create_dir(&partial)?;
        fill(&partial)?;
        let found = checkpoint::state(&partial)?.step;
        if found != step {
            let reason = format!("is the state of step {found}; expected that of step {step}");
            return Err(Error::format(partial.join("state.json"), reason));
        }
        remove_dir(&self.dir.join(&name), "removing a replaced checkpoint")?;
        fs::rename(&partial, &self.dir.join(&name))?;
        if as_latest {
            fs::write_atomic(&self.dir.join(LATEST), name.as_bytes())?;
        }
        Ok(())
    }

    /// Remove checkpoints beyond the newest `keep` and the best, and what a killed process left;
    /// other names in the folder are somebody else's.
    fn prune(&self, newest: &str, best: Option<String>) -> Result<()> {
        let mut steps = Vec::new();
        for name in self.names()? {
            let hidden = name.strip_prefix('.').and_then(|name| {
                name.strip_suffix(".partial").or_else(|| name.strip_suffix(".old"))
            });
            if is_step(&name) {
                steps.push(name);
            } else if hidden.is_some_and(is_step) {
                remove_dir(&self.dir.join(name), "removing an unfinished checkpoint")?;
            }
        }
        steps.sort_unstable();
        // steps above the newest belong to a run that was rolled back
        steps.retain(|s| s.as_str() <= newest);
        let surplus = steps.len().saturating_sub(self.keep);
        steps[..surplus]
            .iter()
            .filter(|step| best.as_ref() != Some(step))
            .try_for_each(|s| remove_dir(&self.dir.join(s), "removing an old checkpoint"))
    }

    /// Names of the files and folders in the store.
    fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Error::io(&self.dir, "listing checkpoints", e);
        std::fs::read_dir(&self.dir)
            .map_err(failed)?
            .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Remove every checkpoint of this run.
    pub(crate) fn clear(&self) -> Result<()> {
        remove_dir(&self.dir, "removing old checkpoints")
    }
}

/// The file that names the newest checkpoint.
const LATEST: &str = "latest";

/// Name of the checkpoint folder of a step; names sort as steps do.
fn folder_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// Whether a name is one that [`folder_name`] makes.
pub(crate) fn is_step(name: &str) -> bool {
    let digits = name.strip_prefix("step-");
    digits.is_some_and(|digits| digits.len() == 9 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Remove a folder and all in it, if it is there.
fn remove_dir(dir: &Path, action: &'static str) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(dir, action, e)),
        _ => Ok(()),
    }
}
