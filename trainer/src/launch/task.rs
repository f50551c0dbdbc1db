//! The SkyPilot task of a [`LaunchPlan`]: `configs/launch/dlm_train.yaml` with the plan's values.
//!
//! In: the plan. Out: the task as YAML, and the `sky` command. Disk size, recovery, setup and run
//! scripts are those of the file.

use serde_json::{Map, Value, json};

use crate::config::{built_in, parse_yaml};
use crate::error::{Error, Result};

use super::plan::{InputLocation, LaunchPlan};

const TEMPLATE: &str = "launch/dlm_train.yaml";

impl LaunchPlan {
    /// The task as YAML.
    pub(super) fn yaml(&self) -> Result<String> {
        let options = serde_saphyr::ser_options! { prefer_block_scalars: true };
        serde_saphyr::to_string_with_options(&self.task()?, options)
            .map_err(|error| Error::Model(format!("writing the task failed: {error}")))
    }

    /// The task as a tree.
    pub(super) fn task(&self) -> Result<Value> {
        let broken = |problem: &str| Error::Model(format!("configs/{TEMPLATE}: {problem}"));
        let text = built_in(TEMPLATE).ok_or_else(|| broken("not built in"))?;
        let mut task = parse_yaml(text).map_err(|error| broken(&error))?;
        let mut mounts = Map::new();
        mounts.insert("~/data".into(), mount(&self.data));
        // without a bucket the one of the file, which `--env GCS_BUCKET` of sky names
        let bucket = self.bucket.as_deref().unwrap_or("gs://${GCS_BUCKET}");
        mounts.insert("~/outputs".into(), json!({"source": bucket, "mode": "MOUNT"}));
        let source = match &self.source {
            None => String::new(),
            Some(InputLocation::Hub(name)) => name.clone(),
            Some(location) => {
                mounts.insert("~/source".into(), mount(location));
                "source".into()
            }
        };
        if let Some(binary) = &self.binary {
            mounts.insert("~/dlm/dlm-train".into(), json!(binary));
        }
        let sections = task.as_object_mut().ok_or_else(|| broken("not a mapping"))?;
        sections.insert("name".into(), json!(self.name));
        sections.insert("file_mounts".into(), Value::Object(mounts));
        match (&self.repository, &self.binary) {
            (Some(dir), _) => sections.insert("workdir".into(), json!(dir)),
            (None, Some(_)) => sections.shift_remove("workdir"),
            // the folder in which sky is called must be the repository
            (None, None) => None,
        };
        let resources = section(sections, "resources").ok_or_else(|| broken("no `resources`"))?;
        resources.insert("accelerators".into(), json!(self.accelerators));
        resources.insert("use_spot".into(), json!(self.spot));
        if let Some(infra) = &self.infra {
            resources.insert("infra".into(), json!(infra));
        }
        let envs = section(sections, "envs").ok_or_else(|| broken("no `envs`"))?;
        envs.insert("MODEL".into(), json!(self.model));
        envs.insert("SOURCE_PATH".into(), json!(source));
        envs.insert("HYDRA_OVERRIDES".into(), json!(shell_words(&self.overrides)));
        envs.insert("RUN_NAME".into(), json!(self.name));
        let features = if self.needs_burn { "cuda" } else { "" };
        envs.insert("CARGO_FEATURES".into(), json!(features));
        if self.bucket.is_some() {
            // the mount above names the bucket; the script does not read this variable
            envs.shift_remove("GCS_BUCKET");
        }
        Ok(task)
    }

    /// The `sky` command for a task written to `file`; `secrets` are names of environment
    /// variables.
    pub(super) fn command(&self, file: &str, secrets: &[&str]) -> Vec<String> {
        let mut command: Vec<String> =
            ["sky", "jobs", "launch", "--yes", "--name", &self.name].map(Into::into).to_vec();
        for secret in secrets {
            command.extend(["--secret".into(), secret.to_string()]);
        }
        if self.detach {
            command.push("--detach-run".into());
        }
        command.push(file.into());
        command
    }
}

fn section<'a>(task: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    task.get_mut(name).and_then(Value::as_object_mut)
}

fn mount(location: &InputLocation) -> Value {
    match location {
        InputLocation::Local(path) => json!(path),
        InputLocation::Bucket(bucket) => json!({"source": bucket, "mode": "COPY"}),
        InputLocation::Hub(name) => json!(name),
    }
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
