//! The checkpoints of one run, `RUN/checkpoints/`.
//!
//! A checkpoint is written as `.step-N.partial` and renamed to `step-N` when it is whole;
//! `latest` holds the name of the newest and is written after that. Older checkpoints beyond
//! `train.keep_checkpoints` are then removed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dlm_datasets::fs;

use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Snapshot};

/// The checkpoint folder of a run.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    dir: PathBuf,
    keep: usize,
}

impl CheckpointStore {
    /// The store of the run in `run_dir`, which keeps the newest `keep` checkpoints.
    pub fn new(run_dir: &Path, keep: usize) -> Self {
        CheckpointStore { dir: run_dir.join("checkpoints"), keep: keep.max(1) }
    }

    /// Folder of the newest whole checkpoint, if there is one.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let pointer = self.dir.join("latest");
        let name = match std::fs::read_to_string(&pointer) {
            Ok(name) => name.trim().to_string(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&pointer, "reading", e)),
        };
        if !name.starts_with("step-") || name.contains('/') {
            return Err(Error::format(
                &pointer,
                format!("holds {name:?}; expected the name of a step-N folder"),
            ));
        }
        Ok(Some(self.dir.join(name)))
    }

    /// Write a checkpoint; returns its folder.
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        fs::create_dir(&self.dir)?;
        let name = format!("step-{:09}", snapshot.state.step);
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
        fs::write_atomic(&self.dir.join("latest"), name.as_bytes())?;
        self.prune(&name)?;
        Ok(dir)
    }

    /// Remove checkpoints beyond the newest `keep`, and what a killed process left.
    fn prune(&self, newest: &str) -> Result<()> {
        let mut steps = Vec::new();
        for name in self.names()? {
            if name.starts_with("step-") {
                steps.push(name);
            } else if name.starts_with(".step-") {
                let _ = std::fs::remove_dir_all(self.dir.join(name));
            }
        }
        steps.sort_unstable();
        // steps above the newest belong to a run that was rolled back
        steps.retain(|s| s.as_str() <= newest);
        let surplus = steps.len().saturating_sub(self.keep);
        steps[..surplus]
            .iter()
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
    pub fn clear(&self) -> Result<()> {
        remove_dir(&self.dir, "removing old checkpoints")
    }
}

/// Remove a folder and all in it, if it is there.
fn remove_dir(dir: &Path, action: &'static str) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(dir, action, e)),
        _ => Ok(()),
    }
}
