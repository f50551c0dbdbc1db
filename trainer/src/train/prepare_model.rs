//! The source model made ready to train: checked against the dataset, given a row for the mask
//! token, on the device.
//!
//! In: configuration, the model's source, the dataset. Out: [`PreparedModel`]. The dataset must fit
//! the model: block size and mask id agree with those of an already converted source, and every
//! token has a row in the embedding table. Spare rows of the table are used first; it never
//! shrinks. A new row for the mask token starts as the mean of the ordinary tokens' rows.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use burn::tensor::DType;
use dlm_datasets::{Dataset, Manifest, Split};

use crate::compute::memory;
use crate::config::{BitLinear, Config, Lora, Objective};
use crate::error::{Error, Result};
use crate::io::conversion_record::ConversionRecord;
use crate::io::json;
use crate::io::load_model::{HostModel, LoadedModel};
use crate::io::source::{ModelSource, missing_tokenizer};
use crate::model::config::Quantization;
use crate::model::json_text;
use crate::model::lora::ALL_TARGETS;
use crate::model::params::LoraShape;
use crate::model::{Decoder, ModelConfig, ParamKind, Params, Weights};
use crate::report::console::message;

/// The embedding table grows to a multiple of this many rows, which keeps matrix shapes friendly
/// to kernels.
const VOCAB_MULTIPLE: usize = 64;

/// Most rows that an embedding table may grow to: some ten times the largest known vocabulary.
const MOST_ROWS: usize = 1 << 22;

/// A model ready to train.
pub(super) struct PreparedModel {
    pub(super) decoder: Decoder,
    /// fp32 weights; `None` where a checkpoint supplies them.
    pub(super) weights: Option<Weights>,
}

/// Load the model of `cfg` and fit it to the dataset. Without `with_weights` only its shapes are
/// read; with `conversion.lora` the weights are read always, ready to compute in `dtype`.
pub(super) fn prepare(
    cfg: &Config,
    source: &ModelSource,
    data: &Dataset,
    device: &Device,
    with_weights: bool,
    dtype: DType,
) -> Result<PreparedModel> {
    let lora = cfg.conversion.lora.as_ref();
    let with_weights = with_weights || lora.is_some();
    let manifest = data.manifest();
    let mut model = HostModel::new(described_model(cfg, source)?);
    if let Some(folder) = &source.folder {
        read_record(folder, &mut model.config)?;
    }
    let of_source = model.config.has_token_shift();
    let token_shift = token_shift(cfg, of_source);
    if with_weights && token_shift != of_source {
        message(format_args!(
            "{} predicts each token {}; this run trains it to predict each token {} (conversion.token_shift={token_shift})",
            source.name,
            place_of_prediction(of_source),
            place_of_prediction(token_shift)
        ));
    }
    model.config.token_shift = Some(token_shift);
    check_mask_token(data)?;
    let equal = source.folder.as_ref().is_some_and(|folder| has_same_tokenizer(folder, data));
    check_fit(&model.config, manifest, &source.name, equal)?;
    if cfg.data.allow_long_documents != Some(true) {
        check_lengths(&model.config, data, "set data.allow_long_documents=true")?;
    }
    if let Some(folder) = &source.folder {
        if with_weights {
            warn_without_tokenizer(folder);
        }
        check_tokenizer(
            &folder.join("tokenizer.json"),
            &data.dir().join("tokenizer/tokenizer.json"),
            &manifest.mask_token,
        )?;
    }
    match &source.folder {
        _ if !with_weights => {}
        Some(folder) => model.read_weights(folder)?,
        None => {
            check_memory(&model)?;
            model.draw_weights(cfg.train.seed);
        }
    }
    if model.config.quantization.is_some() {
        // training always quantises full-precision weights online, packed sources included
        model.config.quantization = Some(Quantization::Online);
    }
    match &source.folder {
        Some(folder) => add_rows(&mut model, folder, data)?,
        None => fit_vocabulary(&mut model, manifest.mask_token_id as usize, 0, false),
    }
    match cfg.conversion.bitlinear {
        BitLinear::Auto => {}
        BitLinear::On => model.config.set_bitlinear(true),
        BitLinear::Off => model.config.set_bitlinear(false),
    }
    if let Some(lora) = lora {
        let gated = cfg.conversion.objective == Objective::Lossless;
        let shape = lora_shape(lora, manifest.mask_token_id as usize, gated);
        let first =
            |params: &Params, table: &[f32]| Ok(params.first_adapters(table, cfg.train.seed));
        let LoadedModel { decoder, weights } = model.adapted(shape, first, dtype, device)?;
        return Ok(PreparedModel { decoder, weights: Some(weights) });
    }
    Ok(if with_weights {
        let LoadedModel { decoder, weights } = model.upload(device);
        PreparedModel { decoder, weights: Some(weights) }
    } else {
        PreparedModel { decoder: Decoder::new(model.config), weights: None }
    })
}

/// Takes what the files of a model folder say of its conversion into its configuration.
pub(crate) fn read_record(folder: &Path, config: &mut ModelConfig) -> Result<()> {
    let record = ConversionRecord::read(folder, config)?;
    config.mask_token_id = record.mask_token_id;
    config.bd_size = record.bd_size;
    config.token_shift = record.token_shift;
    Ok(())
}

/// Makes sure that every token of the dataset has a row in the model of `folder`; in a model that
/// was not converted the mask token's row is the mean of the ordinary tokens' rows.
pub(crate) fn add_rows(model: &mut HostModel, folder: &Path, data: &Dataset) -> Result<()> {
    let manifest = data.manifest();
    let ids = if has_same_tokenizer(folder, data) { manifest.vocab_size } else { 0 };
    check_growth(&model.config, ids.max(manifest.mask_token_id as usize + 1), data)?;
    let is_new = model.config.mask_token_id.is_none();
    fit_vocabulary(model, manifest.mask_token_id as usize, ids, is_new);
    Ok(())
}

/// Refuse a table of so many rows where the dataset's tokenizer has not so many ids, or this
/// machine has not the memory for them.
fn check_growth(model: &ModelConfig, rows: usize, data: &Dataset) -> Result<()> {
    if rows <= model.vocab_size + 1 {
        return Ok(());
    }
    let path = data.dir().join("tokenizer/tokenizer.json");
    let known = vocabulary(&path)?.unwrap_or_default().into_values().max();
    let known = known.map_or(0, |id| id.saturating_add(1));
    if rows as u64 > known {
        return Err(Error::Mismatch(format!(
            "manifest.json of the dataset {} says {rows} token ids, its tokenizer has {known}; prepare the data again",
            data.dir().display()
        )));
    }
    let added = (rows - model.vocab_size).saturating_mul(model.hidden_size);
    // the table, and a head of its own
    let bytes = added.saturating_mul(if model.tie_word_embeddings { 4 } else { 8 });
    let free = memory::available_bytes();
    if bytes <= free && rows <= MOST_ROWS {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "the dataset's tokenizer has ids up to {}, and the embedding table {} rows: {} GiB would be added, and {} GiB of memory are free (at most {MOST_ROWS} rows in any case); expected the model's own tokenizer",
        known - 1,
        model.vocab_size,
        bytes >> 30,
        free >> 30
    )))
}

/// Whether the run trains with the token shift: as configured, else as the source was converted;
/// the objectives with causal attention always do.
fn token_shift(cfg: &Config, of_source: bool) -> bool {
    match cfg.conversion.objective {
        Objective::Sft | Objective::Lossless => true,
        Objective::BlockDiffusion => cfg.conversion.token_shift.unwrap_or(of_source),
    }
}

/// In words.
fn place_of_prediction(token_shift: bool) -> &'static str {
    match token_shift {
        true => "from the position before it",
        false => "at its own position",
    }
}

/// The adapters of a configuration for a dataset with this mask token.
pub(crate) fn lora_shape(lora: &Lora, mask_token_id: usize, gated: bool) -> LoraShape {
    LoraShape {
        rank: lora.rank,
        alpha: lora.alpha.unwrap_or(2.0 * lora.rank as f64),
        targets: lora.targets.clone().unwrap_or_else(|| ALL_TARGETS.to_vec()),
        mask_token_id,
        gated,
    }
}

/// What the source, or `source.config`, says of the model.
pub(super) fn described_model(cfg: &Config, source: &ModelSource) -> Result<ModelConfig> {
    match source.checkpoint.as_ref().or(source.folder.as_ref()) {
        Some(folder) => ModelConfig::read(folder),
        None => random_model_config(cfg),
    }
}

/// Refuse random weights that do not fit into the memory of this machine.
fn check_memory(model: &HostModel) -> Result<()> {
    let bytes = model.params.numel().saturating_mul(4);
    let free = memory::available_bytes();
    if bytes <= free {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "source.config describes {} parameters, {} GiB in fp32, and {} GiB of memory are free; expected a smaller model",
        model.params.numel(),
        bytes >> 30,
        free >> 30
    )))
}

/// The shapes of `source.config`, for `source.init=random`.
fn random_model_config(cfg: &Config) -> Result<ModelConfig> {
    let text = cfg.source_config().map_err(|e| Error::Usage(e.to_string()))?;
    let raw = json_text::parse(&text)
        .map_err(|e| Error::Usage(format!("source.config is not valid JSON: {e}")))?;
    ModelConfig::from_json(raw).map_err(|e| Error::Usage(format!("source.config: {e}")))
}

/// Refuse a dataset whose mask id, block size or vocabulary does not fit the model. With
/// `may_grow` ids beyond the embedding table get rows.
pub(crate) fn check_fit(
    model: &ModelConfig,
    manifest: &Manifest,
    source: &str,
    may_grow: bool,
) -> Result<()> {
    if let Some(id) = model.mask_token_id.filter(|id| *id != i64::from(manifest.mask_token_id)) {
        return Err(Error::Mismatch(format!(
            "the dataset's mask token {:?} has id {}, the model {source} was converted with mask id {id}; prepare the data with the model's own tokenizer",
            manifest.mask_token, manifest.mask_token_id
        )));
    }
    if let Some(bd_size) = model.bd_size.filter(|n| *n != manifest.bd_size) {
        return Err(Error::Mismatch(format!(
            "the dataset was packed with bd_size {}, the model {source} was converted with bd_size {bd_size}; prepare the data with --bd-size {bd_size}",
            manifest.bd_size
        )));
    }
    // one id past the table is the mask token itself; more belong to another tokenizer, unless the
    // model's own tokenizer has them too
    if manifest.vocab_size > model.vocab_size + 1 && !may_grow {
        return Err(Error::Mismatch(format!(
            "the dataset's tokenizer has {} ids, the embedding table of {source} has {} rows; prepare the data with this model's tokenizer",
            manifest.vocab_size, model.vocab_size
        )));
    }
    Ok(())
}

/// Whether model and dataset both have a tokenizer whose vocabulary can be read; that they agree is
/// checked by [`check_tokenizer`].
pub(crate) fn has_same_tokenizer(folder: &Path, data: &Dataset) -> bool {
    let known = |path: &Path| matches!(vocabulary(path), Ok(Some(_)));
    known(&folder.join("tokenizer.json")) && known(&data.dir().join("tokenizer/tokenizer.json"))
}

/// Refuse a dataset whose manifest gives the mask token another id than its tokenizer.
fn check_mask_token(data: &Dataset) -> Result<()> {
    let (manifest, path) = (data.manifest(), data.dir().join("tokenizer/tokenizer.json"));
    let ids = vocabulary(&path)?.unwrap_or_default();
    match ids.get(&manifest.mask_token) {
        Some(id) if *id != manifest.mask_token_id as u64 => Err(Error::Mismatch(format!(
            "the mask token {:?} has id {id} in {}, and manifest.json of the same dataset says {}; prepare the data again",
            manifest.mask_token,
            path.display(),
            manifest.mask_token_id
        ))),
        _ => Ok(()),
    }
}

/// Say that token ids cannot be checked where the model's folder has no `tokenizer.json`.
pub(crate) fn warn_without_tokenizer(folder: &Path) {
    if !folder.join("tokenizer.json").is_file() {
        message(format_args!(
            "warning: {} has {}: whether the dataset's token ids are the model's cannot be checked",
            folder.display(),
            missing_tokenizer(folder)
        ));
    }
}

/// Refuse documents that are longer than the model has positions, naming the first of them.
pub(crate) fn check_lengths(model: &ModelConfig, data: &Dataset, way_out: &str) -> Result<()> {
    let limit = model.max_position_embeddings;
    if data.manifest().seq_len <= limit {
        return Ok(());
    }
    for split in [Split::Train, Split::Eval] {
        for i in 0..data.rows(split) {
            if let Some(long) = data.row(split, i)?.documents.iter().find(|d| d.length > limit) {
                return Err(Error::Mismatch(format!(
                    "{} row {i} of {} holds a document of {} tokens, and the model has {limit} positions (max_position_embeddings in config.json); prepare the data with --seq-len {limit}, or {way_out}",
                    split.name(),
                    data.dir().display(),
                    long.length
                )));
            }
        }
    }
    Ok(())
}

/// Check that every token has the same id in the model's tokenizer and in the dataset's; only the
/// mask token may be new. Folders without a `tokenizer.json` are not checked.
pub(crate) fn check_tokenizer(of_model: &Path, of_data: &Path, mask_token: &str) -> Result<()> {
    let (Some(model_ids), Some(data_ids)) = (vocabulary(of_model)?, vocabulary(of_data)?) else {
        return Ok(());
    };
    let id_or_absent = |id: Option<&u64>| id.map_or("absent".to_string(), u64::to_string);
    let mut tokens: Vec<&String> = model_ids.keys().chain(data_ids.keys()).collect();
    tokens.sort();
    tokens.dedup();
    let differences: Vec<String> = tokens
        .into_iter()
        .filter(|token| model_ids.get(*token) != data_ids.get(*token))
        .filter(|token| *token != mask_token || model_ids.contains_key(*token))
        .map(|token| {
            format!(
                "{token:?} is {} in the model's and {} in the data's",
                id_or_absent(model_ids.get(token)),
                id_or_absent(data_ids.get(token))
            )
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let examples = differences.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    Err(Error::Mismatch(format!(
        "the dataset was prepared with another tokenizer than the model's ({} against {}): {} tokens differ, for example {examples}. Prepare the data with the model's own tokenizer",
        of_data.display(),
        of_model.display(),
        differences.len(),
    )))
}

/// Token → id of a `tokenizer.json`, added tokens included; `None` where the file or its vocabulary
/// map is missing.
fn vocabulary(path: &Path) -> Result<Option<BTreeMap<String, u64>>> {
    let Some(json) = json::read_if_present::<serde_json::Value>(path, "valid JSON")? else {
        return Ok(None);
    };
    let Some(map) = json.pointer("/model/vocab").and_then(|v| v.as_object()) else {
        return Ok(None);
    };
    let added = json.get("added_tokens").and_then(|v| v.as_array()).into_iter().flatten();
    let added = added.filter_map(|token| Some((token.get("content")?.as_str()?, token.get("id")?)));
    let mut ids = BTreeMap::new();
    for (token, id) in map.iter().map(|(token, id)| (token.as_str(), id)).chain(added) {
        let number = id.as_u64().filter(|id| *id <= i32::MAX as u64).ok_or_else(|| {
            let found =
                format!("{token:?} has id {id}; expected a whole number up to {}", i32::MAX);
            Error::format(path, found)
        })?;
        ids.insert(token.to_string(), number);
    }
    Ok(Some(ids))
}

/// Make sure the mask token and `ids` ids have rows in the embedding table (and in an untied head).
///
/// Rows that are added start as the mean of the ordinary tokens' rows. With `new_mask_token` the
/// mask token's row is set to that mean even where the table had a spare row for it.
fn fit_vocabulary(model: &mut HostModel, mask: usize, ids: usize, new_mask_token: bool) {
    let width = model.config.hidden_size;
    let old = model.config.vocab_size;
    let needed = ids.max(mask + 1);
    let new = if needed <= old { old } else { needed.next_multiple_of(VOCAB_MULTIPLE) };
    if ids > old + 1 {
        message(format_args!(
            "the tokenizer has {ids} ids and the embedding table {old} rows: {} rows are added, which start as the mean of the others",
            new - old
        ));
    }
    if new == old && !new_mask_token {
        return;
    }
    for (spec, values) in model.params.specs.iter().zip(model.values.iter_mut()) {
        if spec.kind != ParamKind::Embedding {
            continue;
        }
        let ordinary = mask.min(old).max(1);
        let mut mean = vec![0f64; width];
        for row in values.chunks(width).take(ordinary) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
        }
        let mean: Vec<f32> = mean.iter().map(|m| (m / ordinary as f64) as f32).collect();
        for _ in old..new {
            values.extend_from_slice(&mean);
        }
        if new_mask_token {
            values[mask * width..(mask + 1) * width].copy_from_slice(&mean);
        }
    }
    if new > old {
        model.config.vocab_size = new;
        model.params = Params::new(&model.config);
    }
}
