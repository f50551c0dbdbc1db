//! Converting a model, as a library call: [`Conversion`] says how, [`convert`] trains and exports.
//!
//! In: a source model (folder, hub name or random weights), settings, a packed dataset written by
//! `dlm-prep`. Out: a run folder with checkpoints, metrics and the exported Hugging Face folder.
//! `dlm-train --data DIR key=value …` is a thin user of this file.

use std::path::{Path, PathBuf};

use crate::compute::device;
use crate::config::Config;
use crate::error::Result;
use crate::publish::facts::Facts;
use crate::publish::push;
use crate::train::run::{self, Outcome, RunOptions};

pub use crate::train::run::Resume;

/// How a model is converted: source, token budget, configuration keys, device and resume policy.
///
/// Settings are those of the configuration tree (`configs/`, built in): groups of alternatives
/// (`model=qwen3_4b`) and single keys (`optim.lr=1e-5`). A later setting of the same key wins. Keys
/// and values are checked when the conversion runs; an unknown key is an error that names the
/// nearest known one.
///
/// ```
/// use dlm_train::Conversion;
///
/// let conversion = Conversion::new()
///     .source("hf://Qwen/Qwen2.5-0.5B-Instruct")
///     .token_budget(10_000_000)
///     .set("optim.lr", "1e-5")
///     .device("cpu");
/// assert!(conversion.config_yaml()?.contains("total_tokens: 10000000"));
///
/// let error = conversion.set("optim.lrr", "1").config_yaml().unwrap_err();
/// assert!(error.to_string().contains("optim.lr"));
/// # Ok::<(), dlm_train::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    overrides: Vec<String>,
    config_dir: Option<PathBuf>,
    device: Option<String>,
    devices: Option<usize>,
    resume: Resume,
    overwrite: bool,
    allow_changes: bool,
}

/// Result of [`convert`].
///
/// ```no_run
/// # use dlm_train::{Conversion, Model, ModelOptions, convert};
/// let converted = convert(&Conversion::new().group("model", "sample"), "datasets/packed", "out")?;
/// let model = Model::load(&converted.export, &ModelOptions::default())?;
/// # Ok::<(), dlm_train::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Optimizer steps done, those of earlier sessions of the run included.
    pub steps: u64,
    /// Tokens consumed, padding not counted.
    pub tokens: u64,
    /// Targets that carried loss.
    pub loss_tokens: u64,
    /// Steps whose update the spike guard skipped.
    pub skipped_steps: u64,
    /// Mean cross-entropy of the last step in nats; none when there was no step.
    pub loss: Option<f64>,
    /// Running mean of the loss in nats.
    pub mean_loss: Option<f64>,
    /// Last loss on the eval split in nats; none without an evaluation.
    pub eval_loss: Option<f64>,
    /// Seconds spent in steps, over all sessions of the run.
    pub seconds: f64,
    /// The exported Hugging Face folder.
    pub export: PathBuf,
}

impl Conversion {
    /// A conversion with the default configuration; it needs at least a source.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts from the weights of a Hugging Face folder, of `hf://ORG/NAME[@REVISION]` or of
    /// `ORG/NAME`.
    #[must_use]
    pub fn source(self, source: impl AsRef<str>) -> Self {
        self.set("source.init", "pretrained").set("source.path", source)
    }

    /// Starts from random weights in the shapes of a `config.json`: a file, or a built-in one such
    /// as `configs/model/sample.json`.
    #[must_use]
    pub fn random_init(self, config: impl AsRef<str>) -> Self {
        self.set("source.init", "random").set("source.config", config)
    }

    /// Ends with the step that reaches this number of consumed tokens, padding not counted
    /// (`conversion.total_tokens`).
    #[must_use]
    pub fn token_budget(self, tokens: u64) -> Self {
        self.set("conversion.total_tokens", tokens.to_string())
    }

    /// Picks an alternative of a configuration group, for example `model` = `qwen3_4b` or
    /// `conversion` = `smoke`.
    #[must_use]
    pub fn group(self, group: impl AsRef<str>, choice: impl AsRef<str>) -> Self {
        self.set(group, choice)
    }

    /// Sets a configuration key (`section.key`) to a value in YAML, as `key=value` on the command
    /// line does.
    #[must_use]
    pub fn set(self, key: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.with_override(format!("{}={}", key.as_ref(), value.as_ref()))
    }

    /// Adds `group=choice` or `section.key=value` as typed on the command line.
    #[must_use]
    pub fn with_override(mut self, text: impl Into<String>) -> Self {
        self.overrides.push(text.into());
        self
    }

    /// Reads configuration files from this folder before the built-in ones.
    #[must_use]
    pub fn config_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config_dir = Some(dir.into());
        self
    }

    /// Device: `auto` (the default: CUDA if it can be used, else the CPU), `cpu`, `cuda[:N]` or
    /// `wgpu`.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// Trains on this number of GPUs, or with this number of workers on the CPU, each with its own
    /// share of a step's rows (data parallelism); the default is 1. [`Conversion::device`] may name
    /// the GPUs instead (`cuda:0,2`). Losses are those of one device up to the order of sums, and a
    /// run may go on with another number.
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = Some(devices);
        self
    }

    /// What to do with a checkpoint that the output folder already holds; the default is
    /// [`Resume::Auto`].
    #[must_use]
    pub fn resume(mut self, resume: Resume) -> Self {
        self.resume = resume;
        self
    }

    /// With [`Resume::Never`]: discard the checkpoints of an earlier run instead of refusing.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Resume even though settings, dataset or model differ from the checkpoint's.
    #[must_use]
    pub fn allow_changes(mut self, allow_changes: bool) -> Self {
        self.allow_changes = allow_changes;
        self
    }

    /// The composed configuration as YAML, every key with its value.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for an unknown key or group and for a value of the wrong type or
    /// out of range.
    pub fn config_yaml(&self) -> Result<String> {
        Ok(self.config()?.to_yaml()?)
    }

    /// The composed and checked configuration.
    pub(crate) fn config(&self) -> Result<Config> {
        Ok(Config::load(self.config_dir.as_deref(), &self.overrides)?)
    }
}

/// Converts a model: trains on the packed dataset in `data` until the token budget is used up, then
/// exports a Hugging Face folder to `out`.
///
/// `data` and `out` replace `data.dir` and `output.dir` of the configuration. Called again with the
/// same settings, an interrupted run continues exactly where its last checkpoint left it. Progress
/// is written to stderr, and every step to `metrics.jsonl` in `out`. SIGTERM, SIGINT, SIGHUP,
/// SIGUSR1 and SIGUSR2 save a checkpoint and end the call with [`crate::Error::Interrupted`]: the
/// step under way is given up after the layer that is computed and taken again on resume. Further
/// signals change nothing.
///
/// ```no_run
/// use dlm_train::{Conversion, convert};
///
/// let conversion = Conversion::new().group("model", "sample").token_budget(100_000).device("cpu");
/// let converted = convert(&conversion, "datasets/packed", "output/sample")?;
/// println!("{} steps, loss {:?}", converted.steps, converted.loss);
/// # Ok::<(), dlm_train::Error>(())
/// ```
///
/// # Errors
/// [`crate::Error::Usage`] and [`crate::Error::Config`] for settings that cannot be used,
/// [`crate::Error::Mismatch`] where dataset, model and checkpoint do not fit each other,
/// [`crate::Error::Numeric`] for a non-finite loss or gradient, [`crate::Error::Device`] where the
/// device is missing or its memory does not suffice, and I/O and format errors of the files read.
pub fn convert(
    conversion: &Conversion,
    data: impl AsRef<Path>,
    out: impl AsRef<Path>,
) -> Result<Converted> {
    let mut config = conversion.config()?;
    config.data.dir = data.as_ref().to_path_buf();
    config.output.dir = out.as_ref().to_path_buf();
    if let Some(id) = &config.output.push {
        dlm_prep::hub::check_push("output.push", id)?;
    }
    let spec = conversion.device.as_deref().unwrap_or("auto");
    let team = device::choose_team(spec, conversion.devices)?;
    let options = RunOptions {
        resume: conversion.resume,
        overwrite: conversion.overwrite,
        allow_changes: conversion.allow_changes,
    };
    let Outcome { state, export } = run::run(&config, &team, options)?;
    if let Some(id) = &config.output.push {
        let facts = Facts::read(&export, &export, Some(&config.data.dir))?;
        push::push(&export, &facts, id, false)?;
    }
    Ok(Converted {
        steps: state.step,
        tokens: state.tokens,
        loss_tokens: state.loss_tokens,
        skipped_steps: state.skipped,
        loss: state.last_loss,
        mean_loss: state.loss_mean,
        eval_loss: state.eval_loss,
        seconds: state.seconds,
        export,
    })
}
