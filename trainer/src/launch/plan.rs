//! The plan of `wf dlm`: checked options, before anything is written or rented.
//!
//! In: [`LaunchOptions`], the default bucket, the current folder. Out: a [`LaunchPlan`] with the
//! obstacles that would be refused without `--dry-run`. The configuration is composed and checked
//! here, so that a mistyped key is found before a machine is rented.

use std::path::{Path, PathBuf};

use dlm_datasets::Manifest;

use crate::config::{Config, Engine, OptimName, WandbChoice};
use crate::error::{Error, Result};

use super::location::{self, Expected, Location, locate};
use super::program::{self, Programs, Wanted};
use super::scale::{Machine, Scale, check_name, check_word, infra};

/// How a machine is rented and gets its programs: what `wf dlm`, `wf prep` and `wf smoke` share.
#[derive(Debug, Clone)]
pub(crate) struct MachineOptions {
    /// Cloud, cloud/region[/zone], or any.
    pub cloud: String,
    /// Rent a spot machine.
    pub spot: bool,
    /// An image that has the programs.
    pub image: Option<String>,
    /// Name of the run; `None`: made from the time.
    pub name: Option<String>,
    /// The program to be sent to the machine.
    pub binary: Option<PathBuf>,
    /// Send the repository and build there.
    pub build: bool,
    /// Do not follow the log.
    pub detach: bool,
    /// Print the task and the command; launch nothing.
    pub dry_run: bool,
}

/// What `wf dlm` launches, and where.
#[derive(Debug, Clone)]
pub(crate) struct LaunchOptions {
    /// Model: a choice of configs/model.
    pub model: String,
    /// Source of the model: folder, hub name or bucket; `None`: that of the model's configuration.
    pub source: Option<String>,
    pub scale: Scale,
    /// Rent the GPUs of a scale that dlm-train leaves idle, too.
    pub allow_idle: bool,
    /// GPU model, by SkyPilot's name.
    pub gpu: String,
    /// Bucket for checkpoints and result, with scheme.
    pub bucket: Option<String>,
    /// Price of the machine per hour, for the estimate.
    pub price_per_hour: Option<f64>,
    pub machine: MachineOptions,
    /// Overrides for dlm-train, `data.dir` included.
    pub overrides: Vec<String>,
}

/// A run that can be launched.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LaunchPlan {
    /// Name of the job: `dlm-MODEL-RUN`.
    pub job: String,
    /// Name of the run, the last part of its folder in the bucket.
    pub run: String,
    /// Model name: part of its folder in the bucket, and MODEL.
    pub model: String,
    /// Source, where it is not that of the model's configuration.
    pub source: Option<Location>,
    /// Packed dataset.
    pub data: Location,
    /// Bucket for checkpoints and result, with scheme and without a trailing slash.
    pub bucket: Option<String>,
    pub machine: Machine,
    /// GPUs that train.
    pub devices: usize,
    pub programs: Programs,
    /// Whether steps are reported to Weights & Biases if there is a key.
    pub wandb: bool,
    /// Overrides for dlm-train besides model, source, data.dir and output.dir.
    pub overrides: Vec<String>,
    /// Do not follow the log.
    pub detach: bool,
    /// Reasons why this plan cannot be launched.
    pub obstacles: Vec<String>,
}

impl LaunchPlan {
    /// Checks the options; also returns the configuration that the run will have. `stamp` makes the
    /// default name unique, `bucket` is the name of the default bucket, `here` the current folder.
    pub(super) fn new(
        options: &LaunchOptions,
        stamp: &str,
        bucket: Option<&str>,
        here: &Path,
    ) -> Result<(LaunchPlan, Config)> {
        let mut obstacles = Vec::new();
        let (overrides, data) = split_overrides(&options.overrides)?;
        let mut composed = vec![format!("model={}", options.model)];
        composed.extend(overrides.iter().cloned());
        let source = options
            .source
            .as_deref()
            .map(|source| locate(source, here, Expected::Model))
            .transpose()?;
        composed.extend(options.source.iter().map(|source| format!("source.path={source}")));
        let config = Config::load(None, &composed)?;
        let devices = used_gpus(&config, options.scale.gpus());
        let idle = options.scale.idle(&options.gpu, devices);
        obstacles.extend(idle.filter(|_| !options.allow_idle));
        let data_text = data.unwrap_or_else(|| config.data.dir.display().to_string());
        let data = dataset(&data_text, here, &mut obstacles);
        let bucket = bucket_of(options.bucket.as_deref(), bucket)?;
        if bucket.is_none() {
            obstacles.push(
                "no bucket: checkpoints and the result would be lost with the machine; give --bucket gs://NAME or set GCS_BUCKET".into(),
            );
        }
        check_word("--gpu", &options.gpu, "a GPU by SkyPilot's name, such as H100")?;
        let asked = &options.machine;
        let wanted = Wanted {
            names: &["dlm-train"],
            binary: asked.binary.as_deref(),
            image: asked.image.is_some(),
            build: asked.build,
            needs_burn: needs_burn(&config),
            gpu: Some(&options.gpu),
        };
        let programs = program::find(wanted, here, &mut obstacles)?;
        let run = asked.name.clone().unwrap_or_else(|| stamp.to_string());
        check_name("--name", &run)?;
        let accelerators = Some(format!("{}:{}", options.gpu, options.scale.gpus()));
        let plan = LaunchPlan {
            job: job_name("dlm", &options.model, &run),
            run,
            model: options.model.clone(),
            source,
            data,
            bucket,
            machine: machine(asked, accelerators, 1)?,
            programs,
            devices,
            wandb: config.report.wandb != WandbChoice::Off,
            overrides,
            detach: asked.detach,
            obstacles,
        };
        Ok((plan, config))
    }

    /// Tokens of a packed row, where the dataset is here.
    pub(super) fn seq_len(&self) -> Option<usize> {
        match &self.data {
            Location::Local(dir) => Manifest::read(dir).ok().map(|manifest| manifest.seq_len),
            Location::Bucket(_) | Location::Hub(_) => None,
        }
    }

    /// The folder of the run in the bucket.
    pub(super) fn remote(&self) -> Option<String> {
        Some(format!("{}/dlm/{}/{}", self.bucket.as_deref()?, self.model, self.run))
    }
}

/// The machine that the options describe.
pub(super) fn machine(
    options: &MachineOptions,
    accelerators: Option<String>,
    nodes: usize,
) -> Result<Machine> {
    if let Some(image) = &options.image {
        check_word("--image", image, "the name of an image, such as ghcr.io/you/dlm:1")?;
    }
    Ok(Machine {
        accelerators,
        infra: infra(&options.cloud)?,
        spot: options.spot,
        image: options.image.as_ref().map(|image| {
            let named = image.strip_prefix("docker:").unwrap_or(image);
            format!("docker:{named}")
        }),
        nodes,
    })
}

/// Name of a job, of its kind, what it works on, and the run; characters that SkyPilot does not
/// take become one `-`.
pub(super) fn job_name(kind: &str, what: &str, run: &str) -> String {
    let mut name = format!("{kind}-");
    for c in what.chars() {
        match c.is_ascii_alphanumeric() {
            true => name.push(c),
            false if !name.ends_with('-') => name.push('-'),
            false => {}
        }
    }
    format!("{}-{run}", name.trim_end_matches('-'))
}

/// The bucket that was asked for, else the default one.
pub(super) fn bucket_of(asked: Option<&str>, default: Option<&str>) -> Result<Option<String>> {
    let default = default.filter(|name| !name.is_empty());
    match (asked, default) {
        (Some(asked), _) => location::bucket("--bucket ", asked).map(Some),
        (None, Some(name)) => {
            let text =
                if location::has_scheme(name) { name.into() } else { format!("gs://{name}") };
            location::bucket("GCS_BUCKET=", &text).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// The overrides for dlm-train, and the dataset that they name; keys that `wf` sets itself are
/// refused.
fn split_overrides(all: &[String]) -> Result<(Vec<String>, Option<String>)> {
    let (mut kept, mut data) = (Vec::new(), None);
    for text in all {
        match text.split_once('=') {
            Some(("data.dir", dir)) => data = Some(dir.to_string()),
            Some((key @ ("output.dir" | "output.remote" | "model" | "source.path"), _)) => {
                let instead = match key {
                    "output.dir" | "output.remote" => "--bucket and --name",
                    "model" => "-m",
                    _ => "-s",
                };
                return Err(Error::Usage(format!("{text}: wf sets {key} itself; use {instead}")));
            }
            _ => kept.push(text.clone()),
        }
    }
    Ok((kept, data))
}

/// The packed dataset; what is wrong with it is an obstacle.
fn dataset(text: &str, here: &Path, obstacles: &mut Vec<String>) -> Location {
    let data = locate(text, here, Expected::Dataset).unwrap_or_else(|error| {
        obstacles.push(error.to_string());
        Location::Local(here.join(text))
    });
    if let Location::Local(dir) = &data
        && dir.is_dir()
        && !dir.join("manifest.json").is_file()
    {
        obstacles.push(format!(
            "data.dir={text} has no manifest.json; expected a folder written by dlm-prep"
        ));
    }
    data
}

/// Whether the native engine cannot compute this run.
fn needs_burn(config: &Config) -> bool {
    config.optim.name == OptimName::Muon || config.train.engine == Engine::Burn
}

/// Of so many GPUs those that the run computes on: only the native engine takes several, and each
/// needs a row of every step.
fn used_gpus(config: &Config, gpus: usize) -> usize {
    if needs_burn(config) { 1 } else { gpus.min(config.train.batch_rows.max(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_train_on_every_gpu_and_muon_on_one() {
        let used = |key: &str| {
            let keys = ["model=qwen3_4b".to_string(), key.into(), "train.batch_rows=6".into()];
            let config = Config::load(None, &keys).unwrap();
            (needs_burn(&config), used_gpus(&config, 4), used_gpus(&config, 8))
        };
        assert_eq!(used("conversion.lora={rank: 16}"), (false, 4, 6));
        assert_eq!(used("optim=muon"), (true, 1, 1));
        assert_eq!(used("train.engine=burn"), (true, 1, 1));
    }

    #[test]
    fn jobs_are_named_after_model_and_run() {
        assert_eq!(job_name("dlm", "qwen3_4b", "t0"), "dlm-qwen3-4b-t0");
        assert_eq!(
            job_name("prep", "nvidia/Llama-Nemotron__X.", "a"),
            "prep-nvidia-Llama-Nemotron-X-a"
        );
        for model in ["qwen3_4b", "a__b", "x."] {
            check_name("", &job_name("dlm", model, "r1")).unwrap();
        }
    }

    #[test]
    fn the_default_bucket_may_have_a_scheme() {
        assert_eq!(bucket_of(None, Some("b")).unwrap().as_deref(), Some("gs://b"));
        assert_eq!(bucket_of(None, Some("s3://b/x/")).unwrap().as_deref(), Some("s3://b/x"));
        assert_eq!(bucket_of(Some("az://c"), Some("b")).unwrap().as_deref(), Some("az://c"));
        assert_eq!(bucket_of(None, Some("")).unwrap(), None);
        assert!(bucket_of(Some("b"), None).is_err());
        assert!(bucket_of(None, Some("B ad")).unwrap_err().to_string().contains("GCS_BUCKET="));
    }
}
