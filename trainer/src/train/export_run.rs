//! Exporting a run: at its end, or later from one of its checkpoints.
//!
//! In: decoder, weights and state of a run, its configuration and dataset. Out: a Hugging Face
//! folder (`io/export.rs`), whose `dlm_config.json` records how the model was trained.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use dlm_datasets::{Dataset, Manifest, fs};
use safetensors::Dtype as FileDtype;
use serde_json::json;

use crate::compute::device;
use crate::config::{self, Config, ExportWhich, LoraExport};
use crate::error::{Error, Result};
use crate::io::checkpoint::{self, BestStep, Identity, RunState};
use crate::io::checkpoint_store::{self, CheckpointStore};
use crate::io::description::ExportInfo;
use crate::io::export::{self, ExportAs};
use crate::io::source::{self, ModelSource};
use crate::model::{Decoder, Weights};
use crate::optim::adamw;
use crate::report::console::message;
use crate::train::data;
use crate::train::identity::SOURCE_HASH;
use crate::train::output_folder::{self, Purpose};
use crate::train::prepare_model::{PreparedModel, prepare};
use crate::train::turn_opening;

/// A trained model and the run it comes from.
pub(crate) struct TrainedModel<'a> {
    pub cfg: &'a Config,
    pub data: &'a Dataset,
    pub decoder: &'a Decoder,
    pub weights: &'a Weights,
    pub state: &'a RunState,
    pub source: &'a ModelSource,
    /// sha256 of the source's config.json and weights, where it is recorded.
    pub source_hash: Option<&'a str>,
}

/// Everything in an export of the run besides the tensors.
pub(crate) fn info(model: &TrainedModel) -> ExportInfo {
    let TrainedModel { cfg, data, decoder, state, .. } = *model;
    let manifest = data.manifest();
    let method = match cfg.conversion.objective {
        config::Objective::BlockDiffusion => "fast-dllm-v2-sft",
        config::Objective::Sft => "sft",
        config::Objective::Lossless => "lossless",
    };
    ExportInfo {
        bd_size: (cfg.conversion.objective != config::Objective::Sft).then_some(manifest.bd_size),
        mask_token: manifest.mask_token.clone(),
        mask_token_id: manifest.mask_token_id,
        source_eos_token_ids: decoder.cfg.eos_token_ids.clone(),
        eos_token_ids: eos_token_ids(manifest),
        pad_token_id: manifest.pad_token_id,
        tokenizer: data.dir().join("tokenizer"),
        source_folder: model.source.folder.clone(),
        record: json!({
            "training_method": method,
            "objective": cfg.conversion.objective.as_str(),
            "total_tokens_trained": state.tokens,
            "loss_tokens_trained": state.loss_tokens,
            "steps": state.step,
            "training_loss": state.last_loss,
            "training_loss_mean": state.loss_mean,
            "eval_loss": state.eval_loss,
            "max_seq_length": manifest.seq_len,
            "source_checkpoint": model.source.name,
            "data_fingerprint": data.fingerprint(),
            "seed": cfg.train.seed,
            "code_version": env!("CARGO_PKG_VERSION"),
        }),
    }
}

/// Write the Hugging Face folder of a run.
pub(crate) fn export(model: &TrainedModel, out: &Path) -> Result<()> {
    let TrainedModel { cfg, decoder, state, .. } = *model;
    if decoder.cfg.quantization.is_some() && cfg.conversion.lambda_warmup > state.step {
        message(format_args!(
            "warning: BitLinear's quantisation was still being blended in (step {} of conversion.lambda_warmup={}); the exported model is quantised fully",
            state.step, cfg.conversion.lambda_warmup
        ));
    }
    let dtype = match cfg.export.dtype {
        config::Dtype::Bf16 => FileDtype::BF16,
        config::Dtype::Fp32 => FileDtype::F32,
    };
    let mut info = info(model);
    let opening = turn_opening::of(model.data)?.filter(|opening| !opening.is_empty());
    if let (Some(opening), Some(record)) = (opening, info.record.as_object_mut()) {
        record.insert("assistant_opening_ids".into(), json!(opening));
    }
    let written = ExportAs { dtype, format: cfg.export.format, lora: cfg.export.lora };
    if let (Some(lora), Some(record)) = (&decoder.params.lora, info.record.as_object_mut()) {
        let targets: Vec<&str> = lora.shape.targets.iter().map(|t| t.as_str()).collect();
        let (rank, alpha) = (lora.shape.rank, lora.shape.alpha);
        record.insert(
            "lora".into(),
            json!({"rank": rank, "alpha": alpha, "targets": targets, "merged": cfg.export.lora == LoraExport::Merged}),
        );
        if lora.shape.gated {
            record.insert("mode".into(), json!("verify"));
            record.insert("gate".into(), json!("mask_token"));
        }
        record.insert("source_sha256".into(), json!(model.source_hash));
        record.insert("vocab_size".into(), json!(decoder.cfg.vocab_size));
    }
    let ternary = export::export(out, decoder, model.weights, written, &info)?;
    if let Some(ternary) = ternary {
        message(format_args!("{ternary}"));
    }
    message(format_args!("exported to {}", out.display()));
    Ok(())
}

/// The dataset's ends of turn, and of text.
fn eos_token_ids(manifest: &Manifest) -> Vec<i32> {
    let mut ids = manifest.end_of_turn_ids.clone();
    if !ids.contains(&manifest.eos_token_id) {
        ids.push(manifest.eos_token_id);
    }
    ids
}

/// The step to export, where it is not the last one.
pub(super) fn best_to_export(cfg: &Config, state: &RunState) -> Result<Option<BestStep>> {
    match (cfg.export.which, state.best) {
        (ExportWhich::Last, _) => Ok(None),
        (ExportWhich::Best, Some(best)) => Ok(Some(best).filter(|best| best.step != state.step)),
        (ExportWhich::Best, None) => Err(Error::Usage(format!(
            "export.which=best: no evaluation loss was recorded up to step {}; export the last weights with export.which=last",
            state.step
        ))),
    }
}

/// Export a checkpoint of the run in `cfg.output.dir`: the named one, else the newest or the best
/// as `export.which` says.
pub(crate) fn export_checkpoint(
    cfg: &Config,
    data_dir: &Path,
    name: Option<&str>,
    out: &Path,
) -> Result<()> {
    let checkpoint = find_checkpoint(cfg, name)?;
    let recorded = checkpoint::identity(&checkpoint)?;
    check_out(cfg, data_dir, &recorded, out)?;
    let _lock = fs::lock_dir(out)?;
    write_checkpoint(cfg, data_dir, &checkpoint, out)
}

/// Refuse a folder for the export that belongs to something else.
fn check_out(cfg: &Config, data_dir: &Path, recorded: &Identity, out: &Path) -> Result<()> {
    let taken = [
        ("the source", cfg.source.path.as_deref().map(Path::new)),
        ("the dataset", Some(data_dir)),
    ];
    let purpose = Purpose::Export { run: &cfg.output.dir, identity: recorded };
    output_folder::check("--out", out, purpose, &taken)
}

/// Export a checkpoint to `out`, computing on the CPU.
pub(super) fn write_checkpoint(
    cfg: &Config,
    data_dir: &Path,
    checkpoint: &Path,
    out: &Path,
) -> Result<()> {
    let device = device::choose("cpu")?;
    let data = data::open(data_dir)?;
    let recorded = checkpoint::identity(checkpoint)?;
    let recorded_source = recorded.get("source").map(String::as_str);
    let source = if checkpoint::has_config(checkpoint) {
        // the source itself may be gone
        ModelSource {
            folder: Some(checkpoint.to_path_buf()),
            name: recorded_source.unwrap_or_default().to_string(),
            checkpoint: Some(checkpoint.to_path_buf()),
        }
    } else {
        source::locate(cfg, recorded_source)?
    };
    let PreparedModel { decoder, weights } =
        prepare(cfg, &source, &data, &device.device, false, DType::F32)?;
    let uses_muon: Vec<bool> = decoder
        .params
        .trained_specs()
        .iter()
        .map(|s| adamw::uses_muon(&cfg.optim, s.kind))
        .collect();
    let restored = checkpoint::restore(checkpoint, &decoder.params, &uses_muon, &device.device)?;
    if restored.identity.get("data") != Some(&data.fingerprint()) {
        return Err(Error::Mismatch(format!(
            "{} was trained on another dataset than {}; give the right one with --data",
            checkpoint.display(),
            data_dir.display()
        )));
    }
    check_source(&restored.identity, &source, checkpoint)?;
    let mut weights = weights.unwrap_or(Weights(Vec::new()));
    weights.set_trained(&decoder.params, restored.weights.0);
    let model = TrainedModel {
        cfg,
        data: &data,
        decoder: &decoder,
        weights: &weights,
        state: &restored.state,
        source: &source,
        source_hash: restored.identity.get(SOURCE_HASH).map(String::as_str),
    };
    export(&model, out)
}

/// Refuse weights for the adapters of a checkpoint that are not those they were trained with.
fn check_source(recorded: &Identity, source: &ModelSource, checkpoint: &Path) -> Result<()> {
    let Some(folder) = source.folder.as_deref().filter(|_| source.checkpoint.is_none()) else {
        return Ok(());
    };
    let Some(before) = recorded.get(SOURCE_HASH) else { return Ok(()) };
    let now = source::content_hash(folder)?.unwrap_or_default();
    if now == *before {
        return Ok(());
    }
    Err(Error::Mismatch(format!(
        "{} holds adapters of a source whose config.json and weights had sha256 {before}, and those of {} have {now}; give the model they were trained with (source.path in config.yaml of the run)",
        checkpoint.display(),
        source.name
    )))
}

fn find_checkpoint(cfg: &Config, name: Option<&str>) -> Result<PathBuf> {
    let run_dir = &cfg.output.dir;
    let store = CheckpointStore::new(run_dir, 1);
    if let Some(name) = name {
        if !checkpoint_store::is_step(name) {
            return Err(Error::Usage(format!(
                "--checkpoint {name:?}: expected the name of a step-N folder, such as step-000000200"
            )));
        }
        return Ok(run_dir.join("checkpoints").join(name));
    }
    let newest = store.latest()?.ok_or_else(|| {
        Error::Usage(format!("there is no checkpoint in {}", run_dir.join("checkpoints").display()))
    })?;
    Ok(match best_to_export(cfg, &checkpoint::state(&newest)?)? {
        Some(best) => store.best(best)?,
        None => newest,
    })
}
