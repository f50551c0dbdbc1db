//! Checkpoints: a training run as files, exactly.
//!
//! `RUN/checkpoints/step-N/` holds `model.safetensors` (fp32 masters by parameter name),
//! `optimizer.safetensors` and `state.json` (step, cursor, clipping statistics, fingerprints, and
//! the sha256 of the two others). The folder is written under another name and renamed when it is
//! whole; `checkpoints/latest` names the newest and is written last. Older ones beyond
//! `train.keep_checkpoints` are removed after that.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::tensors;
use crate::model::{Params, Weights};
use crate::optim::adamw::State as OptState;
use crate::optim::clip::ZState;
use dlm_datasets::{fs, hash};

/// Everything of a run that is not a tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done (skipped ones included).
    pub step: u64,
    /// Updates made by the optimizer.
    pub updates: u64,
    /// Rows a forward pass, as chosen when the run began.
    #[serde(alias = "micro_rows")]
    pub micro_batch_rows: usize,
    /// Rows consumed: the data cursor.
    pub cursor: u64,
    /// Tokens consumed, padding not counted.
    pub tokens: u64,
    /// Counted targets so far: tokens that carried loss.
    pub loss_tokens: u64,
    /// Steps skipped by the spike guard.
    pub skipped: u64,
    /// z-score clipping statistics.
    pub zclip: ZState,
    /// Running mean of the loss, for the spike guard and the report.
    pub loss_mean: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Last evaluation loss.
    pub eval_loss: Option<f64>,
    /// Best evaluation loss, for early stopping.
    pub best_eval: Option<f64>,
    /// Evaluations since the best one.
    pub evals_without_gain: u64,
    /// Tokens the decoder ran on.
    pub processed: u64,
    /// Dataset slots consumed, padding counted.
    pub slots: u64,
    /// Seconds spent in steps, over all sessions.
    pub seconds: f64,
    /// The run reached its end.
    pub finished: bool,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    format_version: u32,
    state: RunState,
    /// What the run is: config, data and model fingerprints by name.
    identity: std::collections::BTreeMap<String, String>,
    /// sha256 of the tensor files by name.
    files: std::collections::BTreeMap<String, String>,
}

const FORMAT: u32 = 1;
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// What identifies a run; a resume compares it.
pub type Identity = std::collections::BTreeMap<String, String>;

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    keep: usize,
}

/// A checkpoint read back to the device.
pub struct Restored {
    /// Weights.
    pub weights: Weights,
    /// Optimizer state.
    pub optimizer: Vec<OptState>,
    /// The rest.
    pub state: RunState,
    /// What the run was.
    pub identity: Identity,
    /// Where it was.
    pub path: PathBuf,
}

impl Store {
    /// The store of the run in `run_dir`.
    pub fn new(run_dir: &Path, keep: usize) -> Self {
        Store { dir: run_dir.join("checkpoints"), keep: keep.max(1) }
    }

    /// Folder of the newest whole checkpoint, if there is one.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let pointer = self.dir.join("latest");
        let name = match std::fs::read_to_string(&pointer) {
            Ok(n) => n.trim().to_string(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
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
    pub fn save(
        &self,
        params: &Params,
        weights: &Weights,
        optimizer: &[OptState],
        state: &RunState,
        identity: &Identity,
    ) -> Result<PathBuf> {
        fs::create_dir(&self.dir)?;
        let name = format!("step-{:09}", state.step);
        let (dir, tmp) = (self.dir.join(&name), self.dir.join(format!(".{name}.partial")));
        if tmp.exists() {
            std::fs::remove_dir_all(&tmp)
                .map_err(|e| Error::io(&tmp, "removing a partial checkpoint", e))?;
        }
        fs::create_dir(&tmp)?;
        let named: Vec<(String, Vec<usize>, Tensor<2>)> = params
            .specs
            .iter()
            .zip(&weights.0)
            .map(|(s, t)| (s.name.clone(), s.shape.clone(), t.clone()))
            .collect();
        tensors::write_f32(&tmp.join(MODEL), &named)?;
        let named: Vec<(String, Vec<usize>, Tensor<2>)> = params
            .specs
            .iter()
            .zip(optimizer)
            .flat_map(|(s, st)| {
                let entry = |what: &str, t: &Tensor<2>| {
                    (format!("{what}.{}", s.name), s.shape.clone(), t.clone())
                };
                match st {
                    OptState::Adam(m, v) => vec![entry("exp_avg", m), entry("exp_avg_sq", v)],
                    OptState::Muon(m) => vec![entry("momentum", m)],
                }
            })
            .collect();
        tensors::write_f32(&tmp.join(OPTIMIZER), &named)?;
        let mut sums = std::collections::BTreeMap::new();
        for f in [MODEL, OPTIMIZER] {
            sums.insert(f.to_string(), hash::sha256_file(&tmp.join(f))?);
        }
        let file = StateFile {
            format_version: FORMAT,
            state: state.clone(),
            identity: identity.clone(),
            files: sums,
        };
        let json =
            serde_json::to_vec_pretty(&file).map_err(|e| Error::format(&tmp, e.to_string()))?;
        fs::write_atomic(&tmp.join("state.json"), &json)?;
        if dir.exists() {
            // the same step was saved before (a resumed run that ended at once); the new one
            // replaces it
            let old = self.dir.join(format!(".{name}.old"));
            let _ = std::fs::remove_dir_all(&old);
            std::fs::rename(&dir, &old)
                .map_err(|e| Error::io(&dir, "moving the old checkpoint aside", e))?;
            fs::rename(&tmp, &dir)?;
            let _ = std::fs::remove_dir_all(&old);
        } else {
            fs::rename(&tmp, &dir)?;
        }
        fs::write_atomic(&self.dir.join("latest"), name.as_bytes())?;
        self.prune(&name)?;
        Ok(dir)
    }

    fn prune(&self, newest: &str) -> Result<()> {
        let mut steps: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(&self.dir)
            .map_err(|e| Error::io(&self.dir, "listing checkpoints", e))?
        {
            let entry = entry.map_err(|e| Error::io(&self.dir, "listing checkpoints", e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("step-") {
                steps.push(name);
            } else if name.starts_with(".step-") {
                // left by a killed process
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        steps.sort_unstable();
        // steps above the newest belong to a run that was rolled back
        steps.retain(|s| s.as_str() <= newest);
        let surplus = steps.len().saturating_sub(self.keep);
        for s in &steps[..surplus] {
            let path = self.dir.join(s);
            std::fs::remove_dir_all(&path)
                .map_err(|e| Error::io(&path, "removing an old checkpoint", e))?;
        }
        Ok(())
    }

    /// Remove every checkpoint of this run.
    pub fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(&self.dir, "removing old checkpoints", e)),
        }
    }
}

/// What the run of a checkpoint folder was.
pub fn identity(dir: &Path) -> Result<Identity> {
    Ok(read_state(dir)?.identity)
}

fn read_state(dir: &Path) -> Result<StateFile> {
    let state_path = dir.join("state.json");
    let text = std::fs::read_to_string(&state_path)
        .map_err(|e| Error::io(&state_path, "reading the checkpoint", e))?;
    let file: StateFile = serde_json::from_str(&text)
        .map_err(|e| Error::format(&state_path, format!("not a checkpoint state: {e}")))?;
    if file.format_version != FORMAT {
        return Err(Error::format(
            &state_path,
            format!("format_version {}; this program reads {FORMAT}", file.format_version),
        ));
    }
    Ok(file)
}

/// Read a checkpoint folder back; its checksums must hold.
pub fn restore(dir: &Path, params: &Params, muon: &[bool], device: &Device) -> Result<Restored> {
    let file = read_state(dir)?;
    for (name, expected) in &file.files {
        let path = dir.join(name);
        let found = hash::sha256_file(&path)?;
        if found != *expected {
            return Err(Error::format(
                &path,
                format!(
                    "sha256 is {found}, state.json says {expected}: the checkpoint is damaged; resume from an older one by writing its folder name into checkpoints/latest"
                ),
            ));
        }
    }
    let weights = tensors::read_f32(
        &dir.join(MODEL),
        params.specs.iter().map(|s| (s.name.clone(), s.shape.clone(), s.shape2())),
        device,
    )?;
    let opt_path = dir.join(OPTIMIZER);
    let names = params.specs.iter().zip(muon).flat_map(|(s, muon)| {
        let kinds: &[&str] = if *muon { &["momentum"] } else { &["exp_avg", "exp_avg_sq"] };
        kinds
            .iter()
            .map(|k| (format!("{k}.{}", s.name), s.shape.clone(), s.shape2()))
            .collect::<Vec<_>>()
    });
    let mut flat = tensors::read_f32(&opt_path, names, device)?.into_iter();
    let mut optimizer = Vec::with_capacity(params.specs.len());
    for is_muon in muon {
        let mut next = || flat.next().ok_or_else(|| Error::format(&opt_path, "too few tensors"));
        optimizer.push(if *is_muon {
            OptState::Muon(next()?)
        } else {
            OptState::Adam(next()?, next()?)
        });
    }
    Ok(Restored {
        weights: Weights(weights),
        optimizer,
        state: file.state,
        identity: file.identity,
        path: dir.to_path_buf(),
    })
}
