//! The plan of `wf dlm`: checked options, before anything is written or rented.
//!
//! In: [`LaunchOptions`], the environment (`GCS_BUCKET`, `HF_TOKEN`), the current folder. Out: a
//! [`LaunchPlan`] with the obstacles that would be refused without `--dry-run`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::config::{Config, Engine, OptimName};
use crate::error::{Error, Result};

/// Size of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scale {
    /// 1 GPU.
    Dev,
    /// 1 GPU.
    Small,
    /// 2 GPUs.
    Medium,
    /// 4 GPUs.
    Large,
    /// 8 GPUs.
    Xlarge,
}

impl Scale {
    /// Number of GPUs of the machine.
    pub(crate) fn gpus(self) -> usize {
        match self {
            Scale::Dev | Scale::Small => 1,
            Scale::Medium => 2,
            Scale::Large => 4,
            Scale::Xlarge => 8,
        }
    }
}

/// What to launch, and where.
#[derive(Debug, Clone)]
pub(crate) struct LaunchOptions {
    /// Model: a choice of configs/model.
    pub model: String,
    /// Source of the model: folder, hub name or bucket; `None`: that of the model's configuration.
    pub source: Option<String>,
    pub scale: Scale,
    /// GPU model, by SkyPilot's name.
    pub gpu: String,
    /// Cloud, or cloud/region[/zone]; `None`: the cheapest that SkyPilot may use.
    pub cloud: Option<String>,
    /// Rent a spot machine.
    pub spot: bool,
    /// Bucket for checkpoints and result, with scheme.
    pub bucket: Option<String>,
    /// Name of the run; `None`: made from model and time.
    pub name: Option<String>,
    /// A dlm-train built with CUDA, to be sent to the machine.
    pub binary: Option<PathBuf>,
    /// Do not follow the log.
    pub detach: bool,
    /// Print the task and the command; launch nothing.
    pub dry_run: bool,
    /// Overrides for dlm-train, `data.dir` included.
    pub overrides: Vec<String>,
}

/// Where the machine gets the dataset or the source model from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InputLocation {
    /// A local folder, sent to the machine.
    Local(PathBuf),
    /// A bucket, mounted on the machine.
    Bucket(String),
    /// A hub name, which the trainer resolves.
    Hub(String),
}

/// A run that can be launched.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LaunchPlan {
    /// Name of the job and last part of its folder in the bucket.
    pub name: String,
    /// Model name: part of its folder in the bucket, and MODEL.
    pub model: String,
    /// Source, where it is not that of the model's configuration.
    pub source: Option<InputLocation>,
    /// Packed dataset.
    pub data: InputLocation,
    /// Bucket for checkpoints and result, with scheme and without a trailing slash.
    pub bucket: Option<String>,
    /// GPU model and count, for example `H100:1`.
    pub accelerators: String,
    /// Cloud, or cloud/region[/zone].
    pub infra: Option<String>,
    /// Rent a spot machine.
    pub spot: bool,
    /// Whether Burn must compute on the GPU, which takes a build with the feature `cuda`.
    pub needs_burn: bool,
    /// The dlm-train to send; `None`: the repository is sent and built on the machine.
    pub binary: Option<PathBuf>,
    /// The repository, where no binary is sent.
    pub repository: Option<PathBuf>,
    /// Overrides for dlm-train besides model, source and output.dir.
    pub overrides: Vec<String>,
    /// Do not follow the log.
    pub detach: bool,
    /// Reasons why this plan cannot be launched.
    pub obstacles: Vec<String>,
}

impl LaunchPlan {
    /// Checks the options. `stamp` makes the default name unique, `bucket` is the name of the
    /// default bucket, `here` the current folder.
    pub(super) fn new(
        options: &LaunchOptions,
        stamp: &str,
        bucket: Option<&str>,
        here: &Path,
    ) -> Result<LaunchPlan> {
        if options.scale.gpus() > 1 {
            return Err(Error::Usage(format!(
                "--scale {} rents {} GPUs, but dlm-train uses one; take --scale small (1 GPU), with --gpu H200 for more memory",
                format!("{:?}", options.scale).to_lowercase(),
                options.scale.gpus()
            )));
        }
        let mut obstacles = Vec::new();
        let mut overrides = Vec::new();
        let mut composed = vec![format!("model={}", options.model)];
        let mut data = None;
        for text in &options.overrides {
            match text.split_once('=') {
                Some(("data.dir", dir)) => data = Some(dir.to_string()),
                Some((key @ ("output.dir" | "model" | "source.path"), _)) => {
                    let instead = match key {
                        "output.dir" => "--bucket and --name",
                        "model" => "-m",
                        _ => "-s",
                    };
                    return Err(Error::Usage(format!(
                        "{text}: wf sets {key} itself; use {instead}"
                    )));
                }
                _ => overrides.push(text.clone()),
            }
        }
        composed.extend(overrides.iter().cloned());
        let source =
            options.source.as_deref().map(|source| locate(source, here, true)).transpose()?;
        composed.extend(options.source.iter().map(|source| format!("source.path={source}")));
        let config = Config::load(None, &composed)?;
        let data_text = data.unwrap_or_else(|| config.data.dir.display().to_string());
        let data = locate(&data_text, here, false).unwrap_or_else(|error| {
            obstacles.push(error.to_string());
            InputLocation::Local(here.join(&data_text))
        });
        if let InputLocation::Local(dir) = &data
            && dir.is_dir()
            && !dir.join("manifest.json").is_file()
        {
            obstacles.push(format!(
                "data.dir={data_text} has no manifest.json; expected a folder written by dlm-prep"
            ));
        }
        let bucket = options
            .bucket
            .clone()
            .or(bucket.filter(|name| !name.is_empty()).map(|name| format!("gs://{name}")));
        let bucket = bucket.map(|bucket| bucket.trim_end_matches('/').to_string());
        match &bucket {
            None => obstacles.push(
                "no bucket: checkpoints and the result would be lost with the machine; give --bucket gs://NAME or set GCS_BUCKET".into(),
            ),
            Some(bucket) if !is_bucket(bucket) => return Err(Error::Usage(format!("--bucket {bucket}: {BUCKET}"))),
            Some(_) => {}
        }
        let needs_burn = needs_burn(&config);
        let fits = !needs_burn || cfg!(feature = "cuda");
        let (binary, repository) =
            program(options.binary.clone(), here, fits && runs_on(&options.gpu), &mut obstacles)?;
        let name = options
            .name
            .clone()
            .unwrap_or_else(|| format!("dlm-{}-{stamp}", options.model.replace('_', "-")));
        check_name(&name)?;
        check_word("--gpu", &options.gpu, "a GPU by SkyPilot's name, such as H100")?;
        if let Some(cloud) = &options.cloud {
            check_word("--cloud", cloud, "a cloud, or cloud/region[/zone]")?;
        }
        Ok(LaunchPlan {
            name,
            model: options.model.clone(),
            source,
            data,
            bucket,
            accelerators: format!("{}:{}", options.gpu, options.scale.gpus()),
            infra: options.cloud.clone(),
            spot: options.spot,
            needs_burn,
            binary,
            repository,
            overrides,
            detach: options.detach,
            obstacles,
        })
    }
}

/// Whether a text is a bucket, or a folder in one, that SkyPilot and a shell take as it is: names
/// as Google and Amazon allow them, folders without `..` or characters that mean something else.
fn is_bucket(text: &str) -> bool {
    let rest = ["gs://", "s3://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest else { return false };
    let mut parts = rest.trim_end_matches('/').split('/');
    let name = parts.next().unwrap_or_default();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-=+@".contains(c);
    (1..=222).contains(&name.len())
        && name.chars().all(|c| edge(c) || "._-".contains(c))
        && name.starts_with(edge)
        && name.ends_with(edge)
        && parts.all(|part| !part.trim_matches('.').is_empty() && part.chars().all(plain))
}

/// The location that `text` names: a bucket, an existing folder, or (with `hub`) a hub name.
fn locate(text: &str, here: &Path, hub: bool) -> Result<InputLocation> {
    if is_bucket(text) {
        return Ok(InputLocation::Bucket(text.trim_end_matches('/').into()));
    }
    if text.starts_with("gs://") || text.starts_with("s3://") {
        let option = if hub { "--source " } else { "data.dir=" };
        return Err(Error::Usage(format!("{option}{text}: {BUCKET}")));
    }
    let path = here.join(text);
    if path.is_dir() {
        return Ok(InputLocation::Local(path));
    }
    let named = text.strip_prefix("hf://").unwrap_or(text);
    let parts: Vec<&str> = named.split('/').collect();
    let plain = |part: &&str| !part.is_empty() && !part.starts_with(['.', '~']);
    if hub && parts.len() == 2 && parts.iter().all(plain) {
        return Ok(InputLocation::Hub(text.into()));
    }
    let expected = if hub {
        "a folder, hf://org/name, org/name, gs:// or s3://"
    } else {
        "a folder written by dlm-prep, gs:// or s3://"
    };
    let option = if hub { "--source " } else { "data.dir=" };
    Err(Error::Usage(format!("{option}{text}: no such folder here; expected {expected}")))
}

/// Whether the native engine cannot compute this run.
fn needs_burn(config: &Config) -> bool {
    config.optim.name == OptimName::Muon || config.train.engine == Engine::Burn
}

/// Whether a program built here runs on the rented machine. Those with GH200 and GB200 have ARM
/// processors.
fn runs_on(gpu: &str) -> bool {
    let arm = gpu.starts_with("GH") || gpu.starts_with("GB");
    let machine = ("linux", if arm { "aarch64" } else { "x86_64" });
    machine == (std::env::consts::OS, std::env::consts::ARCH) && cfg!(feature = "native")
}

/// The binary to send, or the repository to build on the machine. The dlm-train beside this program
/// is sent if it `fits`.
fn program(
    binary: Option<PathBuf>,
    here: &Path,
    fits: bool,
    obstacles: &mut Vec<String>,
) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    if let Some(path) = binary {
        return match path.is_file() {
            true => Ok((Some(path), None)),
            false => Err(Error::Usage(format!("--binary {}: no such file", path.display()))),
        };
    }
    let sibling =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("dlm-train")));
    if let Some(sibling) = sibling.filter(|path| fits && path.is_file()) {
        return Ok((Some(sibling), None));
    }
    let repository = here
        .ancestors()
        .find(|dir| dir.join("trainer/Cargo.toml").is_file() && dir.join("configs").is_dir());
    if repository.is_none() {
        obstacles.push("no dlm-train to send: call wf in the repository (it is then built on the machine), or give --binary FILE".into());
    }
    Ok((None, repository.map(Into::into)))
}

/// What a bucket must be.
const BUCKET: &str = "expected gs://NAME or s3://NAME, or a folder in it: NAME of at most 222 lower-case letters, digits, -, _ and ., a folder of letters, digits and -_.=+@";

/// Accepts words that SkyPilot cannot take for an option or for something else than a name.
fn check_word(option: &str, word: &str, expected: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(plain) {
        true => Ok(()),
        false => Err(Error::Usage(format!("{option} {word:?}: expected {expected}"))),
    }
}

/// Accepts names that SkyPilot takes for a job and that are safe in a path.
fn check_name(name: &str) -> Result<()> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    match plain
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "name {name:?}: expected letters, digits, - and _, a letter or digit at both ends"
        ))),
    }
}
