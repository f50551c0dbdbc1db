//! From `source.*` and the dataset's manifest to a decoder with weights that knows the mask token.
//!
//! In: configuration, manifest. Out: [`ModelSource`], then [`PreparedModel`]. The dataset must fit
//! the model: block size and mask id agree with an already converted source, every token has a row.
//! Spare rows of the embedding table are used first; a table only ever grows. A mask row that is
//! new starts as the mean of the rows of ordinary tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use dlm_datasets::{Dataset, Manifest};
use dlm_prep::ConsoleProgress;
use dlm_prep::hub::{HubName, ModelPart, resolve_model};

use crate::config::{BitLinear, Config, Init};
use crate::error::{Error, Result};
use crate::model::config::Quantization;
use crate::model::{Decoder, ModelConfig, ParamKind, Params, Weights, load};

/// A model ready to train.
pub struct PreparedModel {
    /// Architecture.
    pub decoder: Decoder,
    /// fp32 masters; none where a checkpoint gives them.
    pub weights: Option<Weights>,
}

/// Rows are added in multiples of this, so that matrix shapes stay friendly.
const VOCAB_MULTIPLE: usize = 64;

/// Where a run's model comes from.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// Local folder; none with `source.init=random`.
    pub folder: Option<PathBuf>,
    /// The folder as configured, `hf://org/name@commit`, or `random`: what is recorded.
    pub name: String,
}

/// The folder of a model given on the command line: local, `hf://org/name[@rev]` or `org/name`.
pub fn folder_of(model: &Path) -> Result<PathBuf> {
    match model.to_str() {
        Some(text) => {
            let progress = ConsoleProgress::default();
            Ok(resolve_model(text, ModelPart::Whole, "--model", &progress)?.folder)
        }
        None => Ok(model.to_path_buf()),
    }
}

/// Resolve `source.path` to a local folder, downloading what is needed of what a hub has.
///
/// `recorded` is the source of the checkpoint that will be resumed: its weights come from there, so
/// only shapes and tokenizer are needed; and where `source.path` names the recorded repository and
/// no revision, the recorded commit is taken, whatever the repository's main branch has become.
pub fn locate(cfg: &Config, recorded: Option<&str>) -> Result<ModelSource> {
    if cfg.source.init == Init::Random {
        return Ok(ModelSource { folder: None, name: "random".into() });
    }
    let path = cfg.source.path.as_deref().ok_or_else(|| {
        Error::Usage(
            "source.path is not set: give a model with source.path=DIR|hf://ORG/NAME, or source.init=random with source.config".into(),
        )
    })?;
    let before = recorded.and_then(HubName::parse).filter(HubName::is_pinned);
    let path = match (HubName::unless_local(path), before, recorded) {
        (Some(asked), Some(before), Some(recorded))
            if asked.id == before.id && asked.revision.is_none() =>
        {
            recorded
        }
        _ => path,
    };
    let part = if recorded.is_some() { ModelPart::Shapes } else { ModelPart::Whole };
    let found = resolve_model(path, part, "source.path", &ConsoleProgress::default())?;
    Ok(ModelSource { folder: Some(found.folder), name: found.name })
}

/// The model that `cfg` names, fitted to the dataset; its weights, too, loaded or drawn, unless a
/// checkpoint will give them.
pub fn prepare(
    cfg: &Config,
    located: &ModelSource,
    data: &Dataset,
    device: &Device,
    with_weights: bool,
) -> Result<PreparedModel> {
    let manifest = data.manifest();
    let ModelSource { folder, name: source } = located;
    let mut model = match folder {
        Some(dir) => ModelConfig::read(dir)?,
        None => {
            let text = cfg.source_config().map_err(|e| Error::Usage(e.to_string()))?;
            let raw = serde_json::from_str(&text)
                .map_err(|e| Error::Usage(format!("source.config is not valid JSON: {e}")))?;
            ModelConfig::from_json(raw)?
        }
    };
    check_fit(&model, manifest, source)?;
    if let Some(dir) = folder {
        check_tokenizer(
            &dir.join("tokenizer.json"),
            &data.dir().join("tokenizer/tokenizer.json"),
            &manifest.mask_token,
        )?;
    }
    let params = Params::new(&model);
    let mut host = match folder {
        _ if !with_weights => Vec::new(),
        Some(dir) => load::read_host(dir, &mut model, &params)?,
        None => load::random_host(&model, &params, cfg.train.seed),
    };
    if model.quantization.is_some() {
        // packed weights become masters that are quantised online; a checkpoint holds such masters
        model.quantization = Some(Quantization::Online);
    }
    let new_mask = model.mask_token_id.is_none();
    let params = fit_vocabulary(
        &mut model,
        params,
        &mut host,
        manifest.mask_token_id as usize,
        new_mask && folder.is_some(),
    );
    match cfg.conversion.bitlinear {
        BitLinear::Auto => {}
        BitLinear::On => model.set_bitlinear(true),
        BitLinear::Off => model.set_bitlinear(false),
    }
    let decoder = Decoder::new(model);
    let weights = with_weights.then(|| load::upload(host, &params, device));
    Ok(PreparedModel { decoder, weights })
}

fn check_fit(model: &ModelConfig, manifest: &Manifest, source: &str) -> Result<()> {
    if let Some(id) = model.mask_token_id.filter(|id| *id != i64::from(manifest.mask_token_id)) {
        return Err(Error::Mismatch(format!(
            "the dataset's mask token {:?} has id {}, the model {source} was converted with mask id {id}; prepare the data with the model's own tokenizer",
            manifest.mask_token, manifest.mask_token_id
        )));
    }
    if let Some(bd) = model.bd_size.filter(|bd| *bd != manifest.bd_size) {
        return Err(Error::Mismatch(format!(
            "the dataset was packed with bd_size {}, the model {source} was converted with bd_size {bd}; prepare the data with --bd-size {bd}",
            manifest.bd_size
        )));
    }
    // One id past the table is the mask token itself; anything beyond is another tokenizer's.
    if manifest.vocab_size > model.vocab_size + 1 {
        return Err(Error::Mismatch(format!(
            "the dataset's tokenizer has {} ids, the embedding table of {source} has {} rows; prepare the data with this model's tokenizer",
            manifest.vocab_size, model.vocab_size
        )));
    }
    Ok(())
}

/// Every token has the same id in the model's tokenizer and in the dataset's; only the mask token
/// may be new.
///
/// Folders without a `tokenizer.json` are not checked: there is nothing to hold against.
fn check_tokenizer(of_model: &Path, of_data: &Path, mask_token: &str) -> Result<()> {
    let (Some(ours), Some(theirs)) = (vocabulary(of_model)?, vocabulary(of_data)?) else {
        return Ok(());
    };
    let differs = |a: &BTreeMap<String, u64>, b: &BTreeMap<String, u64>| -> Vec<String> {
        let show = |id: Option<&u64>| id.map_or("absent".to_string(), u64::to_string);
        a.iter()
            .filter(|(t, id)| *t != mask_token && b.get(*t) != Some(id))
            .map(|(t, _)| {
                format!(
                    "{t:?} is {} in the model's and {} in the data's",
                    show(ours.get(t)),
                    show(theirs.get(t))
                )
            })
            .collect()
    };
    let mut found = differs(&ours, &theirs);
    found.extend(differs(&theirs, &ours));
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::Mismatch(format!(
        "the dataset was prepared with another tokenizer than the model's ({} against {}): {} tokens differ, for example {}. Prepare the data with the model's own tokenizer",
        of_data.display(),
        of_model.display(),
        found.len(),
        found.iter().take(3).cloned().collect::<Vec<_>>().join("; ")
    )))
}

/// Token → id of a `tokenizer.json`, added tokens included; `None` where the file or a vocabulary
/// map is missing.
fn vocabulary(path: &Path) -> Result<Option<BTreeMap<String, u64>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(t) => t,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "reading the tokenizer", e)),
    };
    let json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::format(path, format!("not valid JSON: {e}")))?;
    let Some(map) = json.pointer("/model/vocab").and_then(|v| v.as_object()) else {
        return Ok(None);
    };
    let mut out: BTreeMap<String, u64> =
        map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_u64()?))).collect();
    for token in json.get("added_tokens").and_then(|v| v.as_array()).into_iter().flatten() {
        if let (Some(text), Some(id)) = (
            token.get("content").and_then(|v| v.as_str()),
            token.get("id").and_then(|v| v.as_u64()),
        ) {
            out.insert(text.to_string(), id);
        }
    }
    Ok(Some(out))
}

/// Make sure the mask id has a row; returns the parameter table of the (possibly grown) model.
fn fit_vocabulary(
    model: &mut ModelConfig,
    params: Params,
    host: &mut [Vec<f32>],
    mask: usize,
    init_mask: bool,
) -> Params {
    let width = model.hidden_size;
    let old = model.vocab_size;
    let new = if mask < old { old } else { (mask + 1).next_multiple_of(VOCAB_MULTIPLE) };
    for (spec, values) in params.specs.iter().zip(host.iter_mut()) {
        if spec.kind != ParamKind::Embedding {
            continue;
        }
        if new > old || init_mask {
            let used = mask.min(old).max(1);
            let mut mean = vec![0f64; width];
            for row in values.chunks(width).take(used) {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
            }
            let mean: Vec<f32> = mean.iter().map(|m| (m / used as f64) as f32).collect();
            for _ in old..new {
                values.extend_from_slice(&mean);
            }
            if init_mask {
                values[mask * width..(mask + 1) * width].copy_from_slice(&mean);
            }
        }
    }
    if new == old {
        return params;
    }
    model.vocab_size = new;
    Params::new(model)
}

/// Files of a source folder that an export carries along when the dataset does not bring its own.
pub fn tokenizer_files(dir: &Path) -> Vec<PathBuf> {
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ]
    .iter()
    .map(|n| dir.join(n))
    .filter(|p| p.is_file())
    .collect()
}
