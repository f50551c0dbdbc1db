//! What a run is (its identity, for resume) and what it leaves behind (the exported folder).

use std::path::{Path, PathBuf};

use dlm_datasets::Dataset;
use safetensors::Dtype as FileDtype;
use serde_json::json;

use crate::compute::device::ComputeDevice;
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Identity, RunState};
use crate::io::checkpoint_store::CheckpointStore;
use crate::io::export::{self, ExportInfo};
use crate::io::source::{self, PreparedModel};
use crate::model::{Decoder, Weights};
use crate::optim::adamw;

/// A trained model and where it came from.
pub struct TrainedModel<'a> {
    /// Configuration of the run.
    pub cfg: &'a Config,
    /// Its dataset.
    pub data: &'a Dataset,
    /// Architecture.
    pub decoder: &'a Decoder,
    /// Weights.
    pub weights: &'a Weights,
    /// How far it got.
    pub state: &'a RunState,
    /// Source as configured.
    pub source: &'a str,
    /// Local folder of the source.
    pub source_folder: Option<&'a Path>,
}

/// Write the Hugging Face folder of a run.
pub fn export(t: &TrainedModel, out: &Path) -> Result<()> {
    let m = t.data.manifest();
    let mut eos: Vec<i32> = t.decoder.cfg.eos_token_ids.iter().map(|e| *e as i32).collect();
    if eos.is_empty() {
        eos.push(m.eos_token_id);
    }
    for id in &m.end_of_turn_ids {
        if !eos.contains(id) {
            eos.push(*id);
        }
    }
    let block = t.cfg.conversion.objective == config::Objective::BlockDiffusion;
    let info = ExportInfo {
        bd_size: m.bd_size,
        mask_token: m.mask_token.clone(),
        mask_token_id: m.mask_token_id,
        eos_token_ids: eos,
        pad_token_id: m.pad_token_id,
        tokenizer: t.data.dir().join("tokenizer"),
        source_folder: t.source_folder.map(PathBuf::from),
        record: json!({
            "training_method": if block { "fast-dllm-v2-sft" } else { "sft" },
            "objective": if block { "block_diffusion" } else { "sft" },
            "total_tokens_trained": t.state.tokens,
            "loss_tokens_trained": t.state.loss_tokens,
            "steps": t.state.step,
            "training_loss": t.state.last_loss,
            "training_loss_mean": t.state.loss_mean,
            "eval_loss": t.state.eval_loss,
            "max_seq_length": m.seq_len,
            "source_checkpoint": t.source,
            "data_fingerprint": t.data.fingerprint(),
            "seed": t.cfg.train.seed,
            "code_version": env!("CARGO_PKG_VERSION"),
        }),
    };
    if t.decoder.cfg.quantization.is_some() && t.cfg.conversion.lambda_warmup > t.state.step {
        eprintln!(
            "warning: BitLinear's quantisation was still being blended in (step {} of conversion.lambda_warmup={}); the exported model is quantised fully",
            t.state.step, t.cfg.conversion.lambda_warmup
        );
    }
    let dtype =
        if t.cfg.export.dtype == config::Dtype::Bf16 { FileDtype::BF16 } else { FileDtype::F32 };
    export::export(out, t.decoder, t.weights, dtype, t.cfg.export.format, &info)?;
    eprintln!("exported to {}", out.display());
    Ok(())
}

/// Export a checkpoint of the run in `cfg.output.dir`: the named one, else the newest.
pub fn export_checkpoint(
    cfg: &Config,
    data_dir: &Path,
    name: Option<&str>,
    out: &Path,
    chosen: &ComputeDevice,
) -> Result<()> {
    let run_dir = &cfg.output.dir;
    let at = match name {
        Some(n) if n.starts_with("step-") && !n.contains('/') => {
            run_dir.join("checkpoints").join(n)
        }
        Some(n) => {
            return Err(Error::Usage(format!(
                "--checkpoint {n:?}: expected the name of a step-N folder"
            )));
        }
        None => CheckpointStore::new(run_dir, 1).latest()?.ok_or_else(|| {
            Error::Usage(format!(
                "there is no checkpoint in {}",
                run_dir.join("checkpoints").display()
            ))
        })?,
    };
    let data = crate::train::data::open(data_dir)?;
    let recorded = checkpoint::identity(&at)?;
    let located = source::locate(cfg, recorded.get("source").map(String::as_str))?;
    let PreparedModel { decoder, .. } =
        source::prepare(cfg, &located, &data, &chosen.device, false)?;
    let muon: Vec<bool> =
        decoder.params.specs.iter().map(|s| adamw::uses_muon(&cfg.optim, s.kind)).collect();
    let restored = checkpoint::restore(&at, &decoder.params, &muon, &chosen.device)?;
    if restored.identity.get("data") != Some(&data.fingerprint()) {
        return Err(Error::Mismatch(format!(
            "{} was trained on another dataset than {}; give the right one with --data",
            at.display(),
            data_dir.display()
        )));
    }
    let what = TrainedModel {
        cfg,
        data: &data,
        decoder: &decoder,
        weights: &restored.weights,
        state: &restored.state,
        source: &located.name,
        source_folder: located.folder.as_deref(),
    };
    export(&what, out)
}

/// What must be the same for a resume to be exact.
pub fn identity(cfg: &Config, data: &Dataset, source: &str, decoder: &Decoder) -> Result<Identity> {
    let mut id = Identity::new();
    id.insert("data".into(), data.fingerprint());
    id.insert("source".into(), source.into());
    id.insert("parameters".into(), decoder.params.numel().to_string());
    let yaml = cfg.to_yaml()?;
    let tree: serde_json::Value = serde_saphyr::from_str(&yaml)
        .map_err(|e| Error::Usage(format!("the configuration cannot be recorded: {e}")))?;
    // what only decides where, when and how much is told may change between sessions
    let free = [
        "train.log_every",
        "train.eval_every",
        "train.eval_rows",
        "train.save_every",
        "train.keep_checkpoints",
        "train.prefetch",
    ];
    for section in ["conversion", "optim", "train"] {
        let Some(map) = tree.get(section).and_then(|v| v.as_object()) else {
            continue;
        };
        for (k, v) in map {
            let key = format!("{section}.{k}");
            if !free.contains(&key.as_str()) {
                id.insert(key, v.to_string());
            }
        }
    }
    Ok(id)
}
