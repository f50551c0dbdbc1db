//! SkyPilot tasks: the files in `configs/launch` with a plan's values.
//!
//! In: a plan. Out: the task as YAML, and the `sky` command. Disk size, recovery, setup and run
//! scripts are those of the file, unless the machine needs a larger disk.

use serde_json::{Map, Value, json};

use crate::config::{built_in, parse_yaml};
use crate::error::{Error, Result};

use super::location::Location;
use super::plan::LaunchPlan;
use super::program::Programs;
use super::scale::Machine;

const TRAIN: &str = "launch/dlm_train.yaml";

/// `BUILD_FEATURES` of a task whose program is not built on the machine.
const NOT_BUILT: &str = "-";

/// Variables that say where W&B puts a run; none of them is secret.
const WANDB: [&str; 3] = ["WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE"];

/// A task under way: a file of `configs/launch` and what is put into it.
pub(super) struct Task {
    file: &'static str,
    tree: Map<String, Value>,
    mounts: Map<String, Value>,
}

impl Task {
    pub(super) fn new(file: &'static str) -> Result<Task> {
        let text = built_in(file).ok_or_else(|| broken(file, "not built in"))?;
        match parse_yaml(text).map_err(|error| broken(file, &error))? {
            Value::Object(tree) => Ok(Task { file, tree, mounts: Map::new() }),
            _ => Err(broken(file, "not a mapping")),
        }
    }

    /// Sets name and machine.
    pub(super) fn machine(&mut self, job: &str, machine: &Machine) -> Result<()> {
        self.tree.insert("name".into(), json!(job));
        if machine.nodes > 1 {
            self.tree.insert("num_nodes".into(), json!(machine.nodes));
        }
        let resources = self.section("resources")?;
        match &machine.accelerators {
            Some(accelerators) => resources.insert("accelerators".into(), json!(accelerators)),
            None => resources.shift_remove("accelerators"),
        };
        resources.insert("use_spot".into(), json!(machine.spot));
        match &machine.infra {
            Some(infra) => resources.insert("infra".into(), json!(infra)),
            None => resources.shift_remove("infra"),
        };
        if let Some(image) = &machine.image {
            resources.insert("image_id".into(), json!(image));
        }
        Ok(())
    }

    /// Raises the size of the disk to `gb`.
    pub(super) fn disk_at_least(&mut self, gb: u64) -> Result<()> {
        let resources = self.section("resources")?;
        if resources.get("disk_size").and_then(Value::as_u64).is_none_or(|size| size < gb) {
            resources.insert("disk_size".into(), json!(gb));
        }
        Ok(())
    }

    /// Says how the machine gets its programs.
    pub(super) fn programs(&mut self, programs: &Programs) -> Result<()> {
        let built = match programs {
            Programs::Sent(files) => {
                for (name, file) in files {
                    self.mounts.insert(format!("~/dlm/bin/{name}"), json!(file));
                }
                NOT_BUILT
            }
            Programs::InImage | Programs::Missing => NOT_BUILT,
            Programs::Built { repository, features } => {
                self.tree.insert("workdir".into(), json!(repository));
                features
            }
        };
        self.env("BUILD_FEATURES", built)
    }

    /// Sets a variable that the file has.
    pub(super) fn env(&mut self, name: &str, value: &str) -> Result<()> {
        let file = self.file;
        let envs = self.section("envs")?;
        match envs.get_mut(name) {
            Some(entry) => *entry = json!(value),
            None => return Err(broken(file, &format!("no {name} in `envs`"))),
        }
        Ok(())
    }

    /// The word for a location on the machine; a local one is sent to `~/name`.
    pub(super) fn input(&mut self, name: &str, location: &Location) -> String {
        match location {
            Location::Local(path) => {
                self.mounts.insert(format!("~/{name}"), json!(path));
                name.into()
            }
            Location::Bucket(text) | Location::Hub(text) => text.clone(),
        }
    }

    /// The task as a tree.
    pub(super) fn tree(mut self) -> Value {
        if !self.mounts.is_empty() {
            self.tree.insert("file_mounts".into(), Value::Object(self.mounts));
        }
        Value::Object(self.tree)
    }

    fn section(&mut self, name: &str) -> Result<&mut Map<String, Value>> {
        let file = self.file;
        let section = self.tree.get_mut(name).and_then(Value::as_object_mut);
        section.ok_or_else(|| broken(file, &format!("no `{name}`")))
    }
}

fn broken(file: &str, problem: &str) -> Error {
    Error::Model(format!("configs/{file}: {problem}"))
}

/// A task as YAML.
pub(super) fn yaml(task: &Value) -> Result<String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: true };
    serde_saphyr::to_string_with_options(task, options)
        .map_err(|error| Error::Model(format!("writing the task failed: {error}")))
}

impl LaunchPlan {
    /// The task; `env` reads a variable of this process, `disk_gb` is what the run needs.
    pub(super) fn task(
        &self,
        env: impl Fn(&str) -> Option<String>,
        disk_gb: Option<u64>,
    ) -> Result<Value> {
        let mut task = Task::new(TRAIN)?;
        task.machine(&self.job, &self.machine)?;
        task.programs(&self.programs)?;
        let data = task.input("data", &self.data);
        let source = self.source.as_ref().map(|source| task.input("source", source));
        task.env("MODEL", &self.model)?;
        task.env("SOURCE_PATH", source.as_deref().unwrap_or_default())?;
        task.env("DATA", &data)?;
        task.env("HYDRA_OVERRIDES", &shell_words(&self.overrides))?;
        task.env("RUN_NAME", &self.run)?;
        task.env("DEVICES", &self.devices.to_string())?;
        // without a bucket that of GCS_BUCKET, which `--env` of sky may name
        task.env("REMOTE", self.bucket.as_deref().unwrap_or_default())?;
        for name in WANDB {
            task.env(name, &env(name).filter(|_| self.wandb).unwrap_or_default())?;
        }
        if let Some(gb) = disk_gb {
            task.disk_at_least(gb)?;
        }
        Ok(task.tree())
    }

    /// The buckets that the machine must be able to open.
    pub(super) fn buckets(&self) -> Vec<&str> {
        let source = self.source.as_ref().and_then(Location::bucket);
        [self.bucket.as_deref(), self.data.bucket(), source].into_iter().flatten().collect()
    }
}

/// The `sky` command for a task written to `file`; `secrets` are names of environment variables.
pub(super) fn launch_command(
    job: &str,
    detach: bool,
    secrets: &[String],
    file: &str,
) -> Vec<String> {
    let mut command: Vec<String> =
        ["sky", "jobs", "launch", "--yes", "--name", job].map(Into::into).to_vec();
    for secret in secrets {
        command.extend(["--secret".into(), secret.clone()]);
    }
    if detach {
        command.push("--detach-run".into());
    }
    command.push(file.into());
    command
}

/// Words joined and quoted so that a POSIX shell reads them back.
pub(super) fn shell_words(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=._-/:,@+%".contains(c);
    let quote = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}
