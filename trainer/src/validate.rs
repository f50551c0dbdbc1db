//! Checking a model folder, as a library call: against tensors of another implementation, or
//! against a packed dataset.
//!
//! In: a model (folder or hub name) and a [`Reference`]. Out: [`ValidationReport`]. Used by
//! `dlm-train parity` and `dlm-train eval`, and to read an export back after a conversion.

use std::path::{Path, PathBuf};

use dlm_datasets::{Dataset, Split};
use serde::{Serialize, Serializer};

use crate::compute::{ComputeDtype, ComputePlan, EngineChoice, device};
use crate::diffusion::{DocumentMask, Layout, Objective, ObjectiveSpec, PassOptions};
use crate::error::{Error, Result};
use crate::io::load_model::{self, HostModel, LoadedModel};
use crate::model::ModelConfig;
use crate::native::{self, Native, NativeOptions};
use crate::parity::{self, ParityOptions, ParityReport};
use crate::report::console::message;
use crate::report::held_out::{Acceptance, SimulatedDecode};
use crate::train::checked_dataset::CheckedDataset;
use crate::train::data::{self, BatchPlan};
use crate::train::evaluate::{Evaluation, Scorer, evaluate};
use crate::train::prepare_model;

/// Smallest share of a block that is hidden, as in training.
const NOISE_EPS: f64 = 1e-3;
/// Positions whose logits exist at one time.
const LOSS_CHUNK: usize = 1024;

/// One row in so many is decoded.
const DECODED_SHARE: usize = 4;

/// What a model is validated against.
///
/// ```
/// use dlm_train::{DatasetOptions, Reference};
///
/// let against = Reference::from(DatasetOptions::new("datasets/packed"));
/// assert!(matches!(against, Reference::Dataset(_)));
/// ```
#[derive(Clone, Debug)]
pub enum Reference {
    /// Tensors computed by another implementation.
    Case(ParityOptions),
    /// A packed dataset.
    Dataset(DatasetOptions),
}

impl From<ParityOptions> for Reference {
    fn from(options: ParityOptions) -> Self {
        Reference::Case(options)
    }
}

impl From<DatasetOptions> for Reference {
    fn from(options: DatasetOptions) -> Self {
        Reference::Dataset(options)
    }
}

/// How a model is evaluated on a packed dataset.
///
/// ```
/// use dlm_train::{DatasetOptions, Split};
///
/// let options = DatasetOptions {
///     split: Some(Split::Train),
///     rows: Some(64),
///     ..DatasetOptions::new("datasets/packed")
/// };
/// assert_eq!(options.seed, 42);
/// ```
#[derive(Clone, Debug)]
pub struct DatasetOptions {
    /// Folder written by `dlm-prep`.
    pub data: PathBuf,
    /// Split to evaluate. Default: the eval split where the dataset has one, else the train split.
    pub split: Option<Split>,
    /// Evaluate at most this many rows, from the first on. Default: all.
    pub rows: Option<usize>,
    /// Evaluate documents that are longer than the model has positions. Default: refused.
    pub allow_long_documents: bool,
    /// Rows per forward pass. Default: 8.
    pub micro_batch_rows: usize,
    /// Seed of the masks. Default: 42.
    pub seed: u64,
    /// Dtype of activations and matrix products. Default: fp32.
    pub dtype: ComputeDtype,
    /// Device: `auto`, `cpu`, `cuda[:N]` or `wgpu`. Default: `auto`.
    pub device: String,
    /// What computes. Default: the native engine where it can be used.
    pub engine: EngineChoice,
}

impl DatasetOptions {
    /// The default evaluation on a dataset.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        DatasetOptions {
            data: data.into(),
            split: None,
            rows: None,
            allow_long_documents: false,
            micro_batch_rows: 8,
            seed: 42,
            dtype: ComputeDtype::Fp32,
            device: "auto".into(),
            engine: EngineChoice::Auto,
        }
    }
}

/// Result of [`validate`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ValidationReport {
    /// Differences from reference tensors.
    Parity(ParityReport),
    /// Losses on a dataset that fits the model.
    Dataset(DatasetReport),
}

impl ValidationReport {
    /// Whether the model passed: every difference is within tolerance. A dataset that does not fit
    /// the model is an error and not a report, so its losses always pass.
    pub fn ok(&self) -> bool {
        match self {
            ValidationReport::Parity(report) => report.ok,
            ValidationReport::Dataset(_) => true,
        }
    }
}

/// Losses of a model on a packed dataset, nats per counted token; `None` where no token counts.
///
/// ```no_run
/// use dlm_train::{DatasetOptions, ValidationReport, validate};
///
/// let report = validate("output/sample", DatasetOptions::new("datasets/packed"))?;
/// if let ValidationReport::Dataset(report) = report {
///     println!("{:?} nats over {} rows", report.block_diffusion_loss, report.rows);
/// }
/// # Ok::<(), dlm_train::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DatasetReport {
    /// The split that was evaluated.
    #[serde(serialize_with = "split_name")]
    pub split: Split,
    /// Rows that were evaluated.
    pub rows: usize,
    /// Loss of denoising blocks under fixed masks, both views of each row.
    pub block_diffusion_loss: Option<f64>,
    /// Loss of causal next-token prediction; `None` for a model without the token shift.
    pub causal_loss: Option<f64>,
    /// Hidden tokens that were predicted right.
    pub acceptance: Option<Acceptance>,
    /// Tokens per forward pass of a simulated decode of the first rows, one row in four.
    pub decode: Option<SimulatedDecode>,
}

fn split_name<S: Serializer>(split: &Split, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(split.name())
}

/// Validates a model (folder, `hf://ORG/NAME[@REVISION]` or `ORG/NAME`) against reference tensors
/// or a packed dataset.
///
/// With a case file, the model computes the case's batch, and logits, loss and gradients are
/// compared with the expected ones ([`ParityReport`]). With a dataset, the folder is read as any
/// user of it would, its tokenizer, mask token id and block size are checked against the dataset's,
/// and the losses are computed ([`DatasetReport`]). In a model that was not converted the mask
/// token has the row with which a conversion would start.
///
/// ```no_run
/// use dlm_train::{DatasetOptions, ParityOptions, validate};
///
/// // Does the exported model fit the dataset, and what is its loss there?
/// let report = validate("output/sample_diffusion", DatasetOptions::new("datasets/packed"))?;
/// println!("{report:?}");
///
/// // Does this checkpoint compute what the reference implementation computes?
/// let report = validate("models/qwen2", ParityOptions::new("case.safetensors"))?;
/// assert!(report.ok());
/// # Ok::<(), dlm_train::Error>(())
/// ```
///
/// # Errors
/// [`Error::Mismatch`] where model and dataset do not fit each other, [`Error::Format`],
/// [`Error::Model`] and [`Error::Tensors`] where a file cannot be used, [`Error::Device`] where the
/// device is missing, [`Error::Usage`] for options that cannot be used.
pub fn validate(
    model: impl AsRef<Path>,
    against: impl Into<Reference>,
) -> Result<ValidationReport> {
    let model = model.as_ref();
    Ok(match against.into() {
        Reference::Case(options) => ValidationReport::Parity(parity::compare(model, &options)?),
        Reference::Dataset(options) => ValidationReport::Dataset(losses(model, &options)?),
    })
}

fn losses(model: &Path, options: &DatasetOptions) -> Result<DatasetReport> {
    let compute = ComputePlan::new(device::choose(&options.device)?, Some(options.dtype));
    let data = data::open(&options.data)?;
    let (split, rows) = rows_to_evaluate(&data, options)?;
    let folder = load_model::resolve(model)?;
    let config = checked_config(model, &folder, &data, options.allow_long_documents)?;
    let compute = match native::is_chosen(options.engine, &compute, &config, None)? {
        true => compute.on_native_engine(),
        false => compute,
    };
    let mut host = HostModel::new(config);
    host.read_weights(&folder)?;
    if host.config.mask_token_id.is_none() {
        message(format_args!(
            "{} was not converted: its mask token gets the row with which a conversion would start, the mean of the others",
            model.display()
        ));
    }
    prepare_model::add_rows(&mut host, &folder, &data)?;
    let loaded = host.upload(&compute.device.device);
    let mut engine = None;
    if compute.native {
        let options = NativeOptions::decoding(compute.dtype);
        let mut native = Native::open(compute.cuda_index(), &loaded.decoder, options)?;
        native.set_weights(&loaded.weights)?;
        engine = Some(native);
    }
    let mut found = |objective| {
        let engine = engine.as_mut();
        evaluate_objective(&loaded, engine, &data, split, rows, objective, options, &compute)
    };
    let blocks = found(Objective::BlockDiffusion(Layout::Saving))?;
    let has_token_shift = loaded.decoder.cfg.has_token_shift();
    Ok(DatasetReport {
        split,
        rows,
        block_diffusion_loss: blocks.loss,
        // without the token shift no position predicts the next token
        causal_loss: match has_token_shift {
            true => found(Objective::Sft)?.loss,
            false => None,
        },
        acceptance: blocks.acceptance,
        decode: blocks.decode,
    })
}

fn rows_to_evaluate(data: &Dataset, options: &DatasetOptions) -> Result<(Split, usize)> {
    let split = options.split.unwrap_or(match data.rows(Split::Eval) {
        0 => Split::Train,
        _ => Split::Eval,
    });
    match data.rows(split).min(options.rows.unwrap_or(usize::MAX)) {
        0 => Err(Error::Usage(format!(
            "{} has no {} rows; prepare it with --eval-fraction or use --split train",
            options.data.display(),
            split.name()
        ))),
        rows => Ok((split, rows)),
    }
}

/// The configuration of a model folder whose tokenizer, block size and mask token fit a dataset. A
/// model that was not converted has no block size or mask token of its own.
fn checked_config(
    model: &Path,
    folder: &Path,
    data: &Dataset,
    allow_long_documents: bool,
) -> Result<ModelConfig> {
    let mut config = ModelConfig::read(folder)?;
    prepare_model::read_record(folder, &mut config)?;
    let manifest = data.manifest();
    let name = model.display().to_string();
    let may_grow = prepare_model::has_same_tokenizer(folder, data);
    prepare_model::check_fit(&config, manifest, &name, may_grow)?;
    if !allow_long_documents {
        prepare_model::check_lengths(&config, data, "add --allow-long-documents")?;
    }
    prepare_model::warn_without_tokenizer(folder);
    prepare_model::check_tokenizer(
        &folder.join("tokenizer.json"),
        &data.dir().join("tokenizer/tokenizer.json"),
        &manifest.mask_token,
    )?;
    Ok(config)
}

#[allow(clippy::too_many_arguments, reason = "a model, what computes it, and what is evaluated")]
fn evaluate_objective(
    model: &LoadedModel,
    engine: Option<&mut Native>,
    data: &CheckedDataset,
    split: Split,
    rows: usize,
    objective: Objective,
    options: &DatasetOptions,
    compute: &ComputePlan,
) -> Result<Evaluation> {
    let manifest = data.manifest();
    let micro_batch_rows = options.micro_batch_rows.clamp(1, rows.max(1));
    let plan = BatchPlan {
        seed: options.seed,
        batch_rows: micro_batch_rows,
        micro_batch_rows,
        objective,
        spec: ObjectiveSpec {
            bd_size: manifest.bd_size,
            mask_token_id: manifest.mask_token_id,
            complementary: true,
            document_mask: DocumentMask::Document,
            token_shift: model.decoder.cfg.has_token_shift(),
        },
        noise_eps: NOISE_EPS,
        shape: compute.stream_shape,
        vocab_size: model.decoder.cfg.vocab_size,
    };
    let pass =
        PassOptions { activation_checkpointing: false, loss_chunk: LOSS_CHUNK, distill: 0.0 };
    let scorer = match engine {
        Some(native) => Scorer::Native(native),
        None => {
            Scorer::Burn { decoder: &model.decoder, weights: &model.weights, pass: &pass, compute }
        }
    };
    evaluate(data, split, &plan, (rows, rows.div_ceil(DECODED_SHARE)), scorer)
}
