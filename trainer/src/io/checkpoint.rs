//! One checkpoint: everything of a training run that a resume needs, as a folder.
//!
//! `step-N/` holds `model.safetensors` (fp32 weights by parameter name), `optimizer.safetensors`
//! (fp32 moments by parameter name), the small files of a model folder (`description.rs`) and
//! `state.json` (step, data cursor, clipping statistics, the run's identity, and the sha256 of
//! every other file). `state.json` is written last: a folder that has one is whole.
//!
//! Of a run that trains adapters it holds these alone: `adapter_model.safetensors` takes the place
//! of `model.safetensors`, there are no small files, and the identity names the source's weights,
//! which are needed again, by their sha256.
//! `checkpoint_store.rs` keeps the checkpoints of a run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use burn::prelude::*;
use dlm_datasets::hash;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::io::description::{ExportInfo, write_small_files};
use crate::io::json;
use crate::io::safetensors_file::{self, TensorEntry};
use crate::model::{Decoder, Params, Weights};
use crate::optim::adamw::State as OptimizerState;
use crate::optim::clip::ZState;

const FORMAT_VERSION: u32 = 1;
const MODEL: &str = "model.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Names of a checkpoint's files besides those of the tokenizer.
pub(crate) const FILES: [&str; 6] =
    [MODEL, OPTIMIZER, STATE, "config.json", "generation_config.json", "dlm_config.json"];
/// Most steps of a run: their folders are named by nine digits.
const MOST_STEPS: u64 = 999_999_999;
/// Most rows or tokens of a run.
const MOST_COUNT: u64 = 1 << 60;
/// What to do about a damaged checkpoint.
const OLDER: &str = "resume from an older one by writing its folder name into checkpoints/latest";

/// Everything of a run that is not a tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Optimizer steps done (skipped ones included).
    pub step: u64,
    /// Updates made by the optimizer.
    pub updates: u64,
    /// Rows per forward pass, as chosen when the run began.
    #[serde(alias = "micro_rows")]
    pub micro_batch_rows: usize,
    /// Rows consumed since the run began: the data cursor.
    pub cursor: u64,
    /// Tokens consumed, padding not counted.
    pub tokens: u64,
    /// Tokens that carried loss.
    pub loss_tokens: u64,
    /// Steps skipped by the spike guard.
    pub skipped: u64,
    /// Statistics of z-score clipping.
    pub zclip: ZState,
    /// Running mean of the loss, for the spike guard and the report.
    pub loss_mean: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Last evaluation loss.
    pub eval_loss: Option<f64>,
    /// Best evaluation loss, for early stopping.
    pub best_eval: Option<f64>,
    /// Step with the lowest evaluation loss, whose checkpoint is kept, and that loss.
    #[serde(default)]
    pub best: Option<BestStep>,
    /// Evaluations since the best one.
    pub evals_without_gain: u64,
    /// Tokens the decoder ran on.
    pub processed: u64,
    /// Dataset positions consumed, padding counted.
    pub slots: u64,
    /// Seconds spent in steps, over all sessions.
    pub seconds: f64,
    /// The run reached its end.
    pub finished: bool,
}

/// The step with the lowest evaluation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BestStep {
    pub step: u64,
    pub eval_loss: f64,
}

/// What identifies a run, by name: settings, dataset and model. A resume compares it.
pub(crate) type Identity = BTreeMap<String, String>;

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    format_version: u32,
    state: RunState,
    identity: Identity,
    /// sha256 of the files by name; folders of templates are not in it.
    files: BTreeMap<String, String>,
}

/// What a checkpoint is written from.
pub(crate) struct Snapshot<'a> {
    pub decoder: &'a Decoder,
    /// What config.json and generation_config.json are written from.
    pub info: &'a ExportInfo,
    pub weights: &'a Weights,
    /// In the order of the trained parameters.
    pub optimizer: &'a [OptimizerState],
    pub state: &'a RunState,
    pub identity: &'a Identity,
}

/// A checkpoint read back to the device.
pub(crate) struct Restored {
    /// In the order of the trained parameters, as everything here.
    pub weights: Weights,
    pub optimizer: Vec<OptimizerState>,
    pub state: RunState,
    pub identity: Identity,
}

/// Write a checkpoint into the empty folder `dir`.
pub(crate) fn write(dir: &Path, snapshot: &Snapshot) -> Result<()> {
    let params = &snapshot.decoder.params;
    let specs = params.trained_specs();
    let entry = |name: String, shape: &[usize], t: &Tensor<2>| {
        TensorEntry::floats(name, Dtype::F32, shape.to_vec(), t.clone())
    };
    let model: Vec<TensorEntry> = specs
        .iter()
        .zip(&snapshot.weights.0[params.trained()])
        .map(|(spec, t)| entry(spec.name.clone(), &spec.shape, t))
        .collect();
    let optimizer: Vec<TensorEntry> = specs
        .iter()
        .zip(snapshot.optimizer)
        .flat_map(|(spec, state)| {
            let entry = |moment: &str, t| entry(format!("{moment}.{}", spec.name), &spec.shape, t);
            match state {
                OptimizerState::Adam(m, v) => vec![entry("exp_avg", m), entry("exp_avg_sq", v)],
                OptimizerState::Muon(m) => vec![entry("momentum", m)],
            }
        })
        .collect();
    let mut files = BTreeMap::new();
    for (name, entries) in [(weights_file(params), model), (OPTIMIZER, optimizer)] {
        let sha256 = safetensors_file::write_hashed(&dir.join(name), &entries)?;
        files.insert(name.to_string(), sha256);
    }
    if params.lora.is_none() {
        write_small_files(dir, snapshot.decoder, Dtype::F32, ExportFormat::Hf, snapshot.info)?;
    }
    for name in file_names(dir)? {
        if let Entry::Vacant(entry) = files.entry(name) {
            let sha256 = hash::sha256_file(&dir.join(entry.key()))?;
            entry.insert(sha256);
        }
    }
    let file = StateFile {
        format_version: FORMAT_VERSION,
        state: snapshot.state.clone(),
        identity: snapshot.identity.clone(),
        files,
    };
    json::write(&dir.join(STATE), &file)
}

/// Name of the file of weights.
fn weights_file(params: &Params) -> &'static str {
    if params.lora.is_some() { ADAPTER } else { MODEL }
}

/// Names of the files in a checkpoint, without `state.json`.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(dir, "listing the checkpoint", e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(failed)?.is_file() && name != STATE {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether `dir` is a checkpoint that was written to its end.
pub(crate) fn is_whole(dir: &Path) -> bool {
    dir.join(STATE).is_file()
}

/// Whether a checkpoint describes its model, as those of older versions and of adapters do not.
pub(crate) fn has_config(dir: &Path) -> bool {
    dir.join("config.json").is_file()
}

/// sha256 of the files of a checkpoint, as `state.json` has them; it has none of itself.
pub(crate) fn file_hashes(dir: &Path) -> Result<BTreeMap<String, String>> {
    Ok(read_state(dir)?.files)
}

/// Everything of a checkpoint that is not a tensor.
pub(crate) fn state(dir: &Path) -> Result<RunState> {
    Ok(read_state(dir)?.state)
}

/// The identity of the run that wrote a checkpoint.
pub(crate) fn identity(dir: &Path) -> Result<Identity> {
    Ok(read_state(dir)?.identity)
}

fn read_state(dir: &Path) -> Result<StateFile> {
    let path = dir.join(STATE);
    let file: StateFile = json::read(&path, "a checkpoint state")?;
    if file.format_version != FORMAT_VERSION {
        return Err(Error::format(
            &path,
            format!("format_version {}; this program reads {FORMAT_VERSION}", file.format_version),
        ));
    }
    let s = &file.state;
    for (name, found, most) in [
        ("step", s.step, MOST_STEPS),
        ("updates", s.updates, MOST_STEPS),
        ("best.step", s.best.map_or(0, |best| best.step), MOST_STEPS),
        ("micro_batch_rows", s.micro_batch_rows as u64, MOST_COUNT),
        ("cursor", s.cursor, MOST_COUNT),
        ("tokens", s.tokens, MOST_COUNT),
        ("loss_tokens", s.loss_tokens, MOST_COUNT),
        ("processed", s.processed, MOST_COUNT),
        ("slots", s.slots, MOST_COUNT),
    ] {
        if found > most {
            let reason =
                format!("{name} is {found}; expected at most {most}: it is damaged; {OLDER}");
            return Err(Error::format(&path, reason));
        }
    }
    Ok(file)
}

/// Read a checkpoint back; the sha256 of its files must be those of `state.json`. `muon` says for
/// each trained parameter whether Muon updates it.
pub(crate) fn restore(
    dir: &Path,
    params: &Params,
    muon: &[bool],
    device: &Device,
) -> Result<Restored> {
    let file = read_state(dir)?;
    for name in [weights_file(params), OPTIMIZER] {
        if !file.files.contains_key(name) {
            return Err(Error::format(
                dir.join(STATE),
                format!(
                    "files has no sha256 of {name}, expected one of every file: it is damaged; {OLDER}"
                ),
            ));
        }
    }
    for (name, expected) in &file.files {
        if name.contains(['/', '\\']) || name == ".." {
            return Err(Error::format(
                dir.join(STATE),
                format!("files names {name:?}; expected names of files in this folder; {OLDER}"),
            ));
        }
        let path = dir.join(name);
        if path.exists() && !path.is_file() {
            let reason = format!("a folder, pipe or device; expected a file; {OLDER}");
            return Err(Error::format(&path, reason));
        }
        let actual = hash::sha256_file(&path)?;
        if actual != *expected {
            return Err(Error::format(
                &path,
                format!(
                    "sha256 is {actual}, state.json says {expected}: the checkpoint is damaged; {OLDER}"
                ),
            ));
        }
    }
    let weights = safetensors_file::read_f32(
        &dir.join(weights_file(params)),
        params.trained_specs().iter().map(|s| (s.name.clone(), s.shape.clone(), s.shape2())),
        device,
    )?;
    Ok(Restored {
        weights: Weights(weights),
        optimizer: restore_optimizer(&dir.join(OPTIMIZER), params, muon, device)?,
        state: file.state,
        identity: file.identity,
    })
}

fn restore_optimizer(
    path: &Path,
    params: &Params,
    muon: &[bool],
    device: &Device,
) -> Result<Vec<OptimizerState>> {
    let names = params.trained_specs().iter().zip(muon).flat_map(|(spec, muon)| {
        let moments: &[&str] = if *muon { &["momentum"] } else { &["exp_avg", "exp_avg_sq"] };
        moments
            .iter()
            .map(|m| (format!("{m}.{}", spec.name), spec.shape.clone(), spec.shape2()))
            .collect::<Vec<_>>()
    });
    let mut tensors = safetensors_file::read_f32(path, names, device)?.into_iter();
    let mut next = || tensors.next().ok_or_else(|| Error::format(path, "too few tensors"));
    muon.iter()
        .map(|muon| {
            Ok(if *muon {
                OptimizerState::Muon(next()?)
            } else {
                OptimizerState::Adam(next()?, next()?)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_with_the_old_name_of_a_field_is_read() {
        let state = RunState { micro_batch_rows: 4, step: 7, ..RunState::default() };
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains("\"micro_batch_rows\":4"), "{text}");
        let old = text.replace("micro_batch_rows", "micro_rows");
        assert_eq!(serde_json::from_str::<RunState>(&old).unwrap(), state);
    }
}
